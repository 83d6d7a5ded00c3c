"""Raw records of measurements: what was measured, on what, and the command that does it again."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastresnet.atomic import explain_os_error, temporary_of, write_atomic
from fastresnet.environment import environment
from fastresnet.errors import UserError

ToMarkdown = Callable[[dict[str, Any]], str]
KINDS = (
    "loaders",
    "kernels",
    "throughput",
    "time-to",
    "ablation",
    "sweep",
)  # as typed after `fastresnet bench`


def typed_command() -> str:
    """Return the command as typed after ``fastresnet``, fit to be published.

    File names stand in place of paths that lead out of the working folder, and ``URL`` in place of a URL, which may
    hold a password.
    """
    return shlex.join(["fastresnet", *map(_publishable, sys.argv[1:])])


def publishable(text: str) -> str:
    """Return a shell's command, or what it said, without the folders of absolute paths, and with ``URL`` for URLs."""
    text = re.sub(r"[A-Za-z][\w+.-]*://[^\s'\"]+", "URL", text)
    return re.sub(r"(?<![\w./~-])~?(?:/[^\s/'\";:|&<>()=,]+)+/(?=[^\s/'\";:|&<>()=,]+)", "", text)


def _publishable(part: str) -> str:
    option, value = re.fullmatch(r"(--[\w-]+=)?(.*)", part, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    if re.match(r"[A-Za-z][\w+.-]*://", value):
        return f"{option}URL"
    leads_out = os.path.isabs(value) or os.path.normpath(value).split(os.sep)[0] == os.pardir
    return publishable(option + (os.path.basename(value) if leads_out else value))


def make_record(kind: str, device_name: str, threads: int, **content: Any) -> dict[str, Any]:
    """Return a record of JSON types: the kind of measurement, when, where and how, then ``content``."""
    return {
        "kind": kind,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": typed_command(),
        "environment": environment(device_name, threads),
        **content,
    }


def commands_of(record: dict[str, Any]) -> list[str]:
    """Return the commands that a record was made by, each once; of an earlier form it tells only the last."""
    return record.get("commands", [record["command"]])


def commands_told(record: dict[str, Any]) -> str:
    """Return the commands that make a record again, as Markdown."""
    return ", then ".join(f"`{command}`" for command in commands_of(record))


def load_record(path: Path) -> dict[str, Any]:
    """Return what :func:`write_record` wrote, of any kind; raises UserError where it cannot be read."""
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"cannot read the record {path}: no such file") from None
    except OSError as error:
        raise explain_os_error(error, f"cannot read the record {path}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no record: it is not JSON") from error
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise UserError(f"{path} is no record of a measurement")
    return record


def read_record(path: Path, kind: str, to_markdown: ToMarkdown) -> dict[str, Any]:
    """Return a record of ``fastresnet bench <kind>`` of which ``to_markdown`` makes a page.

    Raises:
        UserError: it cannot be read, is of another kind, or ``to_markdown`` misses something in it.
    """
    record = load_record(path)
    if record["kind"] != kind:
        told = f"is a record of `bench {record['kind']}`; show it with that"
        raise UserError(f"{path} {told if record['kind'] in KINDS else f'is no record of `bench {kind}`'}")
    check_page(path, record, to_markdown)
    return record


def check_page(path: Path, record: dict[str, Any], to_markdown: ToMarkdown) -> None:
    """Raise UserError unless ``to_markdown`` makes a page of the record at ``path``."""
    try:
        to_markdown(record)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{path} is damaged, or of an earlier form, which only its own version shows"
        ) from error


def mark_of(kind: str, path: Path) -> str:
    """Return the name of the marks between which the page of the record at ``path`` goes."""
    return f"bench {kind} {path.stem}"


def check_insert(name: str, *paths: Path) -> None:
    """Raise what :func:`insert_marked` would for one of the files, and leave them as they are."""
    for path in paths:
        _around_marks(name, path)
        try:
            path.open("r+b").close()
        except OSError as error:
            raise explain_os_error(error, f"cannot update {path}") from error


def insert_marked(name: str, text: str, path: Path) -> None:
    """Put ``text`` into a file, in place of what stands between ``name``'s two marks.

    Raises:
        UserError: the file cannot be read or written, or lacks the marks.
    """
    before, after = _around_marks(name, path)
    try:
        path.write_text(f"{before}\n\n{text}\n{after}", encoding="utf-8")
    except OSError as error:
        raise explain_os_error(error, f"cannot update {path}") from error


def _around_marks(name: str, path: Path) -> tuple[str, str]:
    """Return a file's text up to the first mark, with it, and from the second one on."""
    begin, end = (f"<!-- {name}: {which} -->" for which in ("begin", "end"))
    try:
        before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    except OSError as error:
        raise explain_os_error(error, f"cannot update {path}") from error
    except UnicodeDecodeError:
        raise UserError(f"cannot update {path}: it is not UTF-8 text") from None
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise UserError(f"{path} has no place for the table; put {begin} and {end} where it is to stand")
    return before + begin, end + after


def check_out(path: Path, *beside: str) -> None:
    """Raise UserError unless a record can be written to ``path``, and what goes ``beside`` it, by suffix.

    Something is written there, in folders that are made if need be, and all of it taken away again.
    """
    if path.suffix in beside:
        raise UserError(
            f"--out is {path}, the name of what goes beside the record; give one that ends in .json"
        )
    temporary = temporary_of(path)
    made: list[Path] = []
    try:
        for file in (path, *(path.with_suffix(suffix) for suffix in beside if path.name)):
            if file.is_dir():
                raise UserError(f"cannot write {file}: it is a folder; give --out the name of a file")
        missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir()
            made.append(folder)
        with open(temporary, "wb") as probe:
            probe.write(bytes(4096))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise explain_os_error(error, f"cannot write {path}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, atomically; raises UserError where the disk refuses."""
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, f"cannot write {path}") from error
    write_atomic(path, lambda file: file.write(text.encode()))


def default_record_path(kind: str) -> Path:
    """Return where a record of this kind is written unless told otherwise."""
    return Path("bench-results") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}.json"
