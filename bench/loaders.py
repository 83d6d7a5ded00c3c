"""What each way of loading images costs on this machine: the reports' worker table, done properly.

Every row is measured in a process of its own, forked from one that has the libraries imported and the data mapped.
On the clock of ``five_epochs_s``: making the loader, starting its workers, and every batch of five epochs, the last
one's shutdown included; nothing is done with the batches. Images a second are of the epochs after the first, a
figure an epoch. Imports are off the clock; what a library compiles at each start is on it. Rows take turns: each
repeat measures all of them, the order reversed every other time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from fastresnet.arch import get_arch
from fastresnet.assembly import Data
from fastresnet.bench.isolated import FailedError, run_isolated
from fastresnet.bench.loader_rows import (
    CHECKED_EPOCH,
    EPOCHS,
    QUICK_BATCHES,
    Plan,
    Row,
    Weigh,
    all_rows,
    digest_of,
    loader_spec,
    measure_copy,
    measure_row,
)
from fastresnet.bench.record import make_record
from fastresnet.engine.machine import device_name, resolve_device, resolve_threads
from fastresnet.errors import UserError
from fastresnet.loaders.dataset import Dataset, open_dataset
from fastresnet.loaders.encoded import open_encoded
from fastresnet.loaders.protocol import Split
from fastresnet.loaders.registry import open_loader
from fastresnet.loaders.sources import Progress
from fastresnet.torchvision_import import import_torchvision

ROW_LIMIT_S = 1800.0


def resolve_in_child(wanted: str, weigh: Weigh) -> tuple[str, str]:
    """Return the device and its name; in a process of its own, as asking may start CUDA, which a fork cannot share."""
    device = resolve_device(wanted)
    return str(device), device_name(device)


def measure(
    plan: Plan,
    data: str | None,
    progress: Progress,
    tell: Callable[[str], None],
    stops: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
) -> dict[str, Any]:
    """Measure every row and return the record.

    Args:
        data: as ``--data``.
        progress: told of packing.
        tell: told of each row as it is done.
        stops: what ends it early, with what is done by then; the record's ``interrupted`` names the signal.
    """
    if plan.arch is not None:
        get_arch(plan.arch)  # refused before anything is measured
    try:
        device, machine = run_isolated(resolve_in_child, plan.device, limit_s=120).value
    except FailedError as error:
        raise UserError(str(error)) from error
    dataset = open_dataset(data, progress=progress)
    encoded = None if plan.quick else open_encoded(data, progress=progress)
    inputs = Data(dataset=dataset, splits={"train": dataset.train, "test": dataset.test})
    files = encoded.train if encoded else None
    _preload(dataset)
    expected = _expected_digest(dataset, plan)
    rows = all_rows(plan.workers, has_files=files is not None)
    results: dict[Row, dict[str, Any]] = {row: {"runs": [], "error": None} for row in rows}
    copies: list[float] = []
    waits: dict[Row, list[dict[str, float]]] = {}
    interrupted = None
    try:
        for repeat in range(plan.repeats):
            copies.append(run_isolated(measure_copy, limit_s=120).value)
            for row in rows if repeat % 2 == 0 else rows[::-1]:
                if results[row]["error"] is not None:
                    continue
                tell(_attempt(results[row], row, inputs, files, plan, device, f"{repeat + 1}/{plan.repeats}"))
        if plan.arch is not None:
            _measure_waits(waits, results, inputs, files, plan, device, tell)
    except stops as stop:
        interrupted = str(getattr(stop, "name", "SIGINT"))
    cores = len(os.sched_getaffinity(0))
    return make_record(
        "loaders",
        machine,
        resolve_threads(0),
        dataset=dataset.name,
        num_images=len(dataset.train.members),
        image_bytes=int(dataset.train.images[0].nbytes),
        device=device,
        batch_size=plan.batch_size,
        epochs=None if plan.quick else EPOCHS,
        repeats=plan.repeats,
        quick=plan.quick,
        arch=plan.arch,
        interrupted=interrupted,
        copy_bytes_per_s=copies,
        rows=[
            {
                "name": row.name,
                "kind": row.kind,
                "backend": row.backend,
                "workers": row.workers,
                "beyond_cores": row.workers > cores,
                "error": result["error"],
                "runs": [
                    {**run, "bits_match": _match(run.pop("digest"), expected)} for run in result["runs"]
                ],
                "waits": waits.get(row, []),
            }
            for row, result in results.items()
        ],
    )


def _match(digest: str | None, expected: str) -> bool | None:
    return None if digest is None else digest == expected


def _preload(dataset: Dataset) -> None:
    """Import what rows share and touch the pack's pages, so that no row pays for either."""
    import_torchvision()
    import fastresnet.loaders.gather
    import fastresnet.loaders.torch_backend  # noqa: F401

    int(dataset.train.images[:, 0, 0, 0].sum())


def _expected_digest(dataset: Dataset, plan: Plan) -> str:
    """Return what every row's digest should be, from the torch backend in this process, without workers."""
    loader = open_loader("torch", dataset.train, loader_spec(plan.batch_size), "cpu")
    try:
        return digest_of(loader, CHECKED_EPOCH, QUICK_BATCHES if plan.quick else None)
    finally:
        loader.close()


def _attempt(
    result: dict[str, Any], row: Row, data: Data, files: Split | None, plan: Plan, device: str, turn: str
) -> str:
    try:
        outcome = run_isolated(measure_row, row, data, files, plan, device, limit_s=ROW_LIMIT_S)
    except FailedError as error:
        result["error"] = str(error)
        return f"{turn}  {row.name}: failed: {error}"
    run = {**outcome.value, "peak_added_bytes": outcome.peak_added_bytes}
    result["runs"].append(run)
    return f"{turn}  {row.name}: {np.median(run['images_per_s']):,.0f} img/s"


def _measure_waits(
    waits: dict[Row, list[dict[str, float]]],
    results: dict[Row, dict[str, Any]],
    data: Data,
    files: Split | None,
    plan: Plan,
    device: str,
    tell: Callable[[str], None],
) -> None:
    from fastresnet.bench.loader_waits import measure_wait, worth_waiting_for

    for repeat in range(plan.repeats):
        for row in worth_waiting_for(results):
            try:
                outcome = run_isolated(measure_wait, row, data, files, plan, device, limit_s=ROW_LIMIT_S)
            except FailedError as error:
                tell(f"{repeat + 1}/{plan.repeats}  {row.name} under {plan.arch}: failed: {error}")
                continue
            waits.setdefault(row, []).append(outcome.value)
            tell(
                f"{repeat + 1}/{plan.repeats}  {row.name} under {plan.arch}: waits "
                f"{outcome.value['share']:.2%} of a step"
            )
