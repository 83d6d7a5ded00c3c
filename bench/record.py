"""Raw records of measurements: what was measured, on what, and the command that does it again."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from fastresnet.atomic import write_atomic
from fastresnet.run import environment


def make_record(kind: str, device_name: str, threads: int, **content: Any) -> dict[str, Any]:
    """Return a record of JSON types: the kind of measurement, when, where and how, then ``content``.

    The command is given as typed after ``fastresnet``, with file names in place of whole paths.
    """
    arguments = [os.path.basename(part) if os.path.isabs(part) else part for part in sys.argv[1:]]
    return {
        "kind": kind,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": shlex.join(["fastresnet", *arguments]),
        "environment": environment(device_name, threads),
        **content,
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, atomically; raises UserError where the disk refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))
