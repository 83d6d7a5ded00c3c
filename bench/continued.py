"""Going on with a record: what was measured before stays, so a measurement may be stopped at any moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastresnet.bench.record import ToMarkdown, check_page, commands_of, load_record
from fastresnet.environment import HOST_KEYS, machine_difference
from fastresnet.errors import UserError


def earlier_record(path: Path, kind: str, to_markdown: ToMarkdown) -> dict[str, Any] | None:
    """Return the record at ``path``, None where there is none yet.

    Raises:
        UserError: it cannot be read, is something else, or ``to_markdown`` makes no page of it.
    """
    if not path.exists():
        return None
    record = load_record(path)
    parts = {"settings": dict, "environment": dict, "command": str}
    if record["kind"] != kind or not all(isinstance(record.get(key), type_) for key, type_ in parts.items()):
        raise UserError(
            f"{path} is no record that `fastresnet bench {kind}` can go on with; choose another --out"
        )
    check_page(path, record, to_markdown)
    return record


def go_on(earlier: dict[str, Any], new: dict[str, Any], *, same_source: bool = True) -> dict[str, Any]:
    """Return ``earlier``, to be added to under the conditions of ``new``, whose command it takes beside its own.

    Both have ``settings``: what all figures of the record share. Unless ``same_source``, the commit may differ, and
    beside a GPU the processor.

    Raises:
        UserError: machine, versions, source or settings differ, so that the figures would not be one table's.
    """
    here = new["environment"]
    # Of a GPU's runs each names the processor beside it.
    but = HOST_KEYS if not same_source and here["device_name"] != here["cpu"] else ()
    difference = machine_difference(earlier["environment"], here, but)
    git = [record["environment"].get("git") for record in (earlier, new)]
    if same_source and difference is None and git[0] != git[1]:
        difference = f"the source was {git[0]} and is {git[1]}"
    for name, value in new["settings"].items():
        before = earlier["settings"].get(name)
        if difference is None and before != value:
            difference = f"{name} was {before} and is {value}"
    if difference is not None:
        raise UserError(f"this record was begun under other conditions: {difference}; choose another --out")
    commands = dict.fromkeys([*commands_of(earlier), new["command"]])
    return {**earlier, "command": new["command"], "commands": list(commands)}
