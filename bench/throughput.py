"""Training throughput: the loop a student would write, ours, and every step between, in turn.

Each row is a loop in a process of its own, which rests while another is timed; a round times every row once, so that
a ratio compares neighbours in time and a clock that drifts cancels. On the clock: whole steps, the loader's waiting and
the copy to the device included; ``step_images_per_s`` is the same step on one batch that stays on the device. Off it:
starting, compiling and warming up, recorded as ``start_s``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastresnet.assembly import open_data
from fastresnet.bench.ceilings import Ceilings, measure_ceilings, step_floor, step_flops
from fastresnet.bench.continued import go_on
from fastresnet.bench.ladder import OURS, ROWS, STUDENT, Rung, ladder
from fastresnet.bench.loop_process import LoopProcess
from fastresnet.bench.record import make_record
from fastresnet.engine.listener import Listener
from fastresnet.engine.machine import AMP_DTYPES, device_name, resolve_amp, resolve_device, resolve_threads
from fastresnet.errors import UserError, did_you_mean
from fastresnet.recipe import load_recipe
from fastresnet.run import RunConfig

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        archs, batch_sizes: of every loop; each pair is a cell of the table.
        rounds: in each, every loop is timed once, one after the other.
        steps: timed steps of a loop in a round.
        rows: which of the ladder's.
    """

    archs: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    rounds: int
    steps: int
    rows: tuple[str, ...] = ROWS

    def __post_init__(self) -> None:
        for row in self.rows:
            if row not in ROWS:
                raise UserError(
                    f"there is no row {row!r}{did_you_mean(row, ROWS) or ';'} the rows are {', '.join(ROWS)}"
                )


def measure(
    plan: Plan,
    config: RunConfig,
    progress: Progress,
    *,
    earlier: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] = lambda record: None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Time every cell and return the record.

    Args:
        earlier: a record to go on with; the cells in it are kept as they are.
        save: given the record after each cell.
        progress: told a line a row and cell.
        out_of_time: asked before each cell; once true, the rest is named under ``not_measured``.

    Raises:
        UserError: an arch that the student's network cannot be, data that cannot be opened, or ``earlier`` of another
            machine, version or setting.
    """
    device = resolve_device(config.device)
    dtype = AMP_DTYPES[resolve_amp(config.amp, device)]
    own = {"activation": "none", "resize": []}  # the student trains the arch as it is
    recipes = {
        (arch, size): load_recipe("fast").with_overrides({"arch": arch, "batch_size": size, **own})
        for arch in plan.archs
        for size in plan.batch_sizes
    }
    data = open_data(next(iter(recipes.values())), config, Listener())
    record = make_record(
        "throughput",
        device_name(device),
        resolve_threads(config.threads),
        settings={
            "dataset": data.dataset.name,
            "rounds": plan.rounds,
            "steps": plan.steps,
            "rows": list(plan.rows),
            **{
                name: getattr(config, name)
                for name in ("amp", "compile", "kernels", "convs", "graphs", "loader")
            },
        },
        ceilings=None,
        cells=[],
        not_measured=[],
    )
    if earlier is not None:
        record = go_on(earlier, record)
    ceilings = Ceilings(**record["ceilings"]) if record["ceilings"] else measure_ceilings(device, dtype)
    record["ceilings"] = ceilings.to_json()
    progress(
        f"{record['environment']['device_name']}: {ceilings.matrix_flops_per_s / 1e12:.3g} TFLOP/s in a "
        f"{ceilings.dtype} product, {ceilings.copy_bytes_per_s / 1e9:.1f} GB/s in a copy"
    )
    done = {(cell["arch"], cell["batch_size"]) for cell in record["cells"]}
    left = [cell for cell in recipes if cell not in done]
    record["not_measured"] = [f"{arch} at {size}" for arch, size in left]
    while left and not out_of_time():
        arch, size = left.pop(0)
        recipe = recipes[arch, size]
        spec, dataset = recipe.arch_spec(), data.dataset
        progress(f"{arch}, batch {size}")
        rows = _measure_cell(ladder(recipe, config, data, device, plan.rows), plan, progress)
        flops = step_flops(spec, dataset.num_classes, dataset.image_size)
        floor = step_floor(spec, dataset.num_classes, dataset.image_size, dtype, ceilings)
        record["cells"].append(_cell(arch, size, rows, flops, floor, ceilings))
        record["not_measured"] = [f"{arch} at {size}" for arch, size in left]
        save(record)
    return record


def _measure_cell(rungs: list[Rung], plan: Plan, progress: Progress) -> dict[str, dict[str, Any]]:
    """Return what each row gave: its speeds a round, or why it has none."""
    rows: dict[str, dict[str, Any]] = {rung.name: {"left_out": rung.left_out} for rung in rungs}
    processes: dict[str, LoopProcess] = {}

    def await_ready(names: list[str]) -> None:
        for name in names:
            try:
                rows[name] |= processes[name].await_ready()
                rows[name] |= {"images_per_s": [], "step_images_per_s": []}
            except UserError as error:
                rows[name] = {"left_out": str(error)}
                processes.pop(name).close()

    try:
        starts = {rung.name: rung.start for rung in rungs if rung.start is not None}
        if OURS in starts:  # alone: it measures which way is the fastest
            processes[OURS] = starts.pop(OURS)({})
            await_ready([OURS])
        found = rows.get(OURS, {}).get("options", {})
        for name, start in starts.items():  # all at once: those that compile do so beside each other
            processes[name] = start(found)
        await_ready(list(starts))
        processes = {name: processes[name] for name in rows if name in processes}
        for name, row in rows.items():
            progress(f"  {name}: {row['left_out'] or row['what']}")
        for done in range(plan.rounds):
            for key, alone in (("images_per_s", False), ("step_images_per_s", True)):
                for name, process in list(processes.items()):
                    try:
                        rows[name][key].append(process.time(plan.steps, alone=alone))
                    except UserError as error:
                        rows[name] = {"left_out": str(error)}
                        processes.pop(name).close()
            told = ", ".join(f"{name} {rows[name]['images_per_s'][-1]:,.1f}" for name in processes)
            progress(f"  round {done + 1}/{plan.rounds}, img/s: {told}")
    finally:
        for process in processes.values():
            process.close()
    return rows


def _cell(
    arch: str,
    batch_size: int,
    rows: dict[str, dict[str, Any]],
    flops: int,
    floor: dict[str, float],
    ceilings: Ceilings,
) -> dict[str, Any]:
    """Return a cell of the record: the rows with what follows from their speeds, and the floor."""
    before: dict[str, Any] | None = None
    for row in rows.values():
        if row["left_out"] is not None:
            continue
        row["median"] = statistics.median(row["images_per_s"])
        row["step_median"] = statistics.median(row["step_images_per_s"])
        row["share_of_matrix"] = row["median"] * flops / ceilings.matrix_flops_per_s
        row["step_share_of_matrix"] = row["step_median"] * flops / ceilings.matrix_flops_per_s
        row["times_floor"] = floor["images_per_s"] / row["median"]
        for kind, key in (("ratio", "images_per_s"), ("step_ratio", "step_images_per_s")):
            row[kind] = statistics.median(_ratios(row, before, key)) if before else None
        before = row
    ratios = []
    if all(rows.get(name, {"left_out": ""})["left_out"] is None for name in (STUDENT, OURS)):
        ratios = _ratios(rows[OURS], rows[STUDENT], "images_per_s")
    return {
        "arch": arch,
        "batch_size": batch_size,
        "flops_per_image": flops,
        "floor": floor,
        "rows": rows,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios) if ratios else None,
    }


def _ratios(row: dict[str, Any], before: dict[str, Any], key: str) -> list[float]:
    return [new / old for new, old in zip(row[key], before[key], strict=True)]
