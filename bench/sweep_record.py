"""A finished sweep as a record: each cell's training beside what was printed, the machine, and a table of it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastresnet.errors import UserError
from fastresnet.folder import RunFolder
from fastresnet.sweep_table import caption, find_table, markdown_rows

DESCRIBES_DATA = ("name", "digest", "image_size", "num_train", "num_val", "num_test")


def make_sweep_record(name: str, sweeps_dir: Path) -> dict[str, Any]:
    """Return a sweep's table with, for each cell that is done, its clocks, machine and a row per epoch.

    ``environments`` are the machines and versions, ``environment`` of a row its place among them.

    Args:
        name: the sweep's name, or its folder's path.
        sweeps_dir: where sweeps' folders lie.

    Raises:
        UserError: there is no such sweep, cells of it still wait or train, none came out, or a run is damaged.
    """
    folder, content = find_table(name, sweeps_dir)
    unfinished = sum(row["state"] in ("running", "waiting") for row in content["rows"])
    if unfinished:
        raise UserError(
            f"{unfinished} of {len(content['rows'])} cells of {name} are waiting or being trained; `fastresnet sweep` "
            "goes on with them"
        )
    results = {row["run"]: _result(folder, row) for row in content["rows"] if row["state"] == "done"}
    if not results:
        raise UserError(f"no cell of {name} came out, so there is nothing to make a record of")
    environments: list[dict[str, Any]] = []
    rows = []
    for row in content["rows"]:
        result = results.get(row["run"]) if row["state"] == "done" else None
        if result is None:
            rows.append(row)
            continue
        if result["environment"] not in environments:
            environments.append(result["environment"])
        place = environments.index(result["environment"])
        rows.append({**row, "environment": place, "clocks": result["clocks"], "trained": result["epochs"]})
    described = next(iter(results.values()))["dataset"]
    last_s = max(row["trained"][-1]["clock"]["time"] for row in rows if "trained" in row)
    return {
        "kind": "sweep",
        "date": datetime.datetime.fromtimestamp(last_s, datetime.UTC).strftime("%Y-%m-%d"),
        **content,
        "dataset": {key: described[key] for key in DESCRIBES_DATA if key in described},
        "environments": environments,
        "rows": rows,
    }


def _result(folder: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    result = RunFolder(folder / row["run"]).read_result()
    if result is None:
        raise UserError(f"the run {folder / row['run']} has no result, though its cell is done")
    return result


def markdown(record: Mapping[str, Any]) -> str:
    """Return the table, what it was measured on, and the commands that make it again."""
    data = record["dataset"]
    machines = " and ".join(
        dict.fromkeys(
            f"{env['device_name']}, {env['threads']} of {env['cores']} cores, torch {env['torch']}"
            for env in record["environments"]
        )
    )
    images = f"{data['num_train']:,} training and {data['num_test']:,} test images"
    parts = [f"{caption(record)} One run a cell; {images}; {machines}; {record['date']}."]
    if record["commands"]:
        parts.append("Made by " + ", then ".join(f"`{command}`" for command in record["commands"]) + ".")
    return f"{markdown_rows(record)}\n{' '.join(parts)}\n"
