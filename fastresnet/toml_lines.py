"""Where in a TOML text each key stands: the standard library's parser keeps no line numbers."""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_PLACE = re.compile(r" \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)$")
_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SCALAR = re.compile(r"[^,\]}\n#]+")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'  # up to two of the closing quotes may belong to the string
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)


def line_numbers(text: str) -> dict[Path, int]:
    """Return the line, from 1, of every table, array element and key of a text that ``tomllib`` accepts."""
    return _Scan(text).lines


def nearest_line(lines: dict[Path, int], path: Path) -> int:
    """Return the line of ``path``, or of the closest part of the document that holds it."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def explain(text: str, error: str) -> tuple[int, str]:
    """Return the line, from 1, of what ``tomllib`` says of a text that it refuses, and what it says of it, less that.

    A key that is given twice is named, which ``tomllib`` does not do.
    """
    place = _PLACE.search(error)
    end = len(text.rstrip("\n"))
    if place is None or place[1] is None:
        at = end
    else:
        lines = text.splitlines(keepends=True)  # tomllib reads CRLF as LF, so that its columns are ours
        at = min(sum(map(len, lines[: int(place[1]) - 1])) + int(place[2]) - 1, end)
    said = _PLACE.sub("", error)
    said = re.sub(r"\('([^()]*)',?\)", lambda key: key[1].replace("', '", "."), said)
    line = text.count("\n", 0, at) + 1
    if said == "Cannot overwrite a value":
        try:
            scan = _Scan(text[:at])
        except (AssertionError, IndexError, ValueError):  # it ends within a table's header
            said = f"the table {text.splitlines()[line - 1].strip()} has the name of a value"
        else:
            key = ".".join(map(str, scan.last))
            line, said = scan.last_line, f"{key} is given twice, first in line {scan.lines[scan.last]}"
    return line, f"{said[:1].lower()}{said[1:]}"


class _Scan:
    """One pass over a valid text; ``at`` is the offset of the next character, ``last`` the last key of a table."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.last: Path = ()
        self.last_line = 1
        self.counts: dict[Path, int] = {}  # elements so far of each array of tables
        table: Path = ()
        self.skip()
        while self.at < len(text):
            if text.startswith("[[", self.at):
                self.at += 2
                array = self.header()
                element = self.counts.get(array, 0)
                self.counts[array] = element + 1
                table = (*array, element)
                self.lines[table] = self.line
                self.at = text.index("]]", self.at) + 2
            elif text[self.at] == "[":
                self.at += 1
                table = self.header()
                self.lines[table] = self.line
                self.at = text.index("]", self.at) + 1
            else:
                self.pair(table)
            self.skip()

    @property
    def line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1

    def skip(self) -> None:
        space = _SPACE.match(self.text, self.at)
        assert space is not None
        self.at = space.end()

    def header(self) -> Path:
        """Return the path a header means: an array of tables on the way stands for its last element."""
        path: Path = ()
        key = self.key()
        for i, part in enumerate(key):
            path = (*path, part)
            self.lines.setdefault(path, self.line)
            if path in self.counts and i < len(key) - 1:
                path = (*path, self.counts[path] - 1)
        return path

    def key(self) -> Path:
        parts: list[str] = []
        while True:
            self.skip()
            bare = _BARE.match(self.text, self.at)
            if bare:
                parts.append(bare.group())
                self.at = bare.end()
            else:
                quoted = _STRING.match(self.text, self.at)
                assert quoted is not None
                parts.append(tomllib.loads(f"v = {quoted.group()}")["v"])
                self.at = quoted.end()
            self.skip()
            if self.text[self.at] != ".":
                return tuple(parts)
            self.at += 1

    def pair(self, table: Path) -> None:
        line = self.line
        path: Path = table
        for part in self.key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.at = self.text.index("=", self.at) + 1
        self.value(path)
        self.last, self.last_line = path, line

    def value(self, path: Path) -> None:
        self.skip()
        first = self.text[self.at]
        if first in "\"'":
            string = _STRING.match(self.text, self.at)
            assert string is not None
            self.at = string.end()
        elif first in "[{":
            closing = "]" if first == "[" else "}"
            self.at += 1
            self.skip()
            element = 0
            while self.text[self.at] != closing:
                if first == "[":
                    self.lines[(*path, element)] = self.line
                    self.value((*path, element))
                    element += 1
                else:
                    self.pair(path)
                self.skip()
                if self.text[self.at] == ",":
                    self.at += 1
                    self.skip()
            self.at += 1
        else:
            scalar = _SCALAR.match(self.text, self.at)
            assert scalar is not None
            self.at = scalar.end()
