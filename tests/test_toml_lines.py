"""The line of every key of a TOML text."""

from __future__ import annotations

import tomllib
from typing import Any

from fastresnet.toml_lines import line_numbers, nearest_line

EVERY_SYNTAX = '''\
# a comment with [brackets] and = signs
plain = 1  # = [
"quoted key" = "a # no comment \\" ] }"
'literal'."dotted".key = 'x = "y"'
text = """
[not.a.table]
fake = 1 \\
"""  # after
raw = \'\'\'
also = "not"'\'\'\'
ends = """two quotes ""\"""
date = 1979-05-27T07:32:00Z
empty = []
nest = [ [1, 2], # one
  [ { a = 1, b.c = [
    3 ] }, "]" ],
]

[table . inner]
key = { x = { y = true }, z = "}" }
[[list]]
key = 1
[[list]]
[list.below]
key = 2
[[list.deep]]
key = 3
[[list.deep]]
key = 4
'''


def test_line_finder_knows_every_syntax() -> None:
    data = tomllib.loads(EVERY_SYNTAX)
    lines = line_numbers(EVERY_SYNTAX)

    def walk(value: Any, path: tuple[str | int, ...]) -> None:
        assert path in lines or not path, path
        children = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in children:
            walk(child, (*path, key)) if isinstance(child, (dict, list)) else None
            assert (*path, key) in lines

    walk(data, ())
    wanted: dict[tuple[str | int, ...], int] = {
        ("plain",): 2,
        ("quoted key",): 3,
        ("literal", "dotted", "key"): 4,
        ("text",): 5,
        ("raw",): 9,
        ("ends",): 11,
        ("empty",): 13,
        ("nest", 1): 15,
        ("nest", 1, 0, "b", "c", 0): 16,
        ("table", "inner", "key", "z"): 20,
        ("list", 1): 23,
        ("list", 1, "below", "key"): 25,
        ("list", 1, "deep", 1, "key"): 29,
    }
    assert {path: lines[path] for path in wanted} == wanted
    assert nearest_line(lines, ("list", 0, "absent", 3)) == 21
    assert nearest_line(lines, ("absent",)) == 1
