"""Raw records of measurements: what was measured, on what, and the command that does it again."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from fastresnet.atomic import write_atomic
from fastresnet.errors import UserError
from fastresnet.run import environment


def typed_command() -> str:
    """Return the command as typed after ``fastresnet``, with file names in place of whole paths."""
    arguments = [os.path.basename(part) if os.path.isabs(part) else part for part in sys.argv[1:]]
    return shlex.join(["fastresnet", *arguments])


def make_record(kind: str, device_name: str, threads: int, **content: Any) -> dict[str, Any]:
    """Return a record of JSON types: the kind of measurement, when, where and how, then ``content``."""
    return {
        "kind": kind,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": typed_command(),
        "environment": environment(device_name, threads),
        **content,
    }


def read_record(path: Path) -> dict[str, Any]:
    """Return what :func:`write_record` wrote; raises UserError where it cannot be read."""
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the record {path}: {error}") from error
    return record


def insert_marked(name: str, text: str, path: Path) -> None:
    """Put ``text`` into a file, in place of what stands between ``name``'s two marks.

    Raises:
        UserError: the file cannot be read or written, or lacks the marks.
    """
    begin, end = (f"<!-- {name}: {which} -->" for which in ("begin", "end"))
    try:
        before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
        _, found_end, after = rest.partition(end)
        if not found_begin or not found_end:
            raise UserError(f"{path} has no place for the table; put {begin} and {end} where it is to stand")
        path.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot update {path}: {error.strerror}") from error


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, atomically; raises UserError where the disk refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def default_record_path(kind: str) -> Path:
    """Return where a record of this kind is written unless told otherwise."""
    return Path("bench-results") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}.json"
