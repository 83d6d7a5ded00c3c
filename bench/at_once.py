"""Whether several trainings at once are faster a run than one after another: measured, and kept in the record."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from fastresnet.assembly import Data
from fastresnet.bench.ladder import our_loop
from fastresnet.bench.loop_process import LoopProcess, time_together
from fastresnet.engine.machine import resolve_threads
from fastresnet.engine.warmup import KEEP_RATIO
from fastresnet.errors import UserError
from fastresnet.recipe import Recipe
from fastresnet.run import RunConfig

ROUNDS = 3
ROUND_S = 1.0  # about how long a round's part lasts
LEAST_STEPS = 3


def shared(config: RunConfig, at_once: int) -> RunConfig:
    """Return the config of one of ``at_once`` trainings: its share of the CPU threads, at least 1."""
    return config.model_copy(update={"threads": max(1, resolve_threads(config.threads) // at_once)})


def decided(alone: Sequence[float], together: Sequence[float], asked: int) -> dict[str, Any]:
    """Return what a measurement says, as JSON types.

    Args:
        alone: images a second of one training, a round each.
        together: of ``asked`` trainings at once, summed, in the same rounds.

    ``at_once`` is ``asked`` where the median ratio shows less time a run by more than noise, else 1; ``ratio`` is the
    time a run takes at once over the time it takes alone.
    """
    ratio = statistics.median(one / all_ for one, all_ in zip(alone, together, strict=True))
    return {
        "asked": asked,
        "at_once": asked if ratio < KEEP_RATIO else 1,
        "ratio": ratio,
        "alone_images_per_s": list(alone),
        "together_images_per_s": list(together),
        "failed": None,
    }


def measure(recipe: Recipe, config: RunConfig, data: Data, asked: int) -> dict[str, Any]:
    """Train a few steps in one process and in ``asked`` at once, in turn, and return :func:`decided`.

    They are the steps of a training, its loader's batches included, warmed up and done in the way that it would find:
    the one alone has looked for it with nothing beside it, those at once beside each other. Where not all can be had at
    once, as for want of memory, ``failed`` says why.
    """
    few = shared(config, asked)
    processes: list[LoopProcess] = []

    def begin(name: str, config: RunConfig) -> LoopProcess:
        processes.append(LoopProcess(f"{recipe.arch}, {name}", our_loop, data, recipe, config))
        return processes[-1]

    try:
        single = begin("alone", config)
        found = single.await_ready()["options"]
        several: list[LoopProcess] = []
        if few.threads == resolve_threads(config.threads):  # a process alone is as one of several
            several, few = [single], few.model_copy(update=found)
        others = [begin(f"{number + 1} of {asked}", few) for number in range(len(several), asked)]
        for process in others:
            process.await_ready()
        several += others
        speed = single.time(LEAST_STEPS)
        steps = max(LEAST_STEPS, math.ceil(ROUND_S * speed / recipe.batch_size))
        alone, together = [], []
        for _ in range(ROUNDS):
            alone.append(single.time(steps))
            together.append(sum(time_together(several, steps)))
    except UserError as error:
        none: dict[str, Any] = {"ratio": None, "alone_images_per_s": [], "together_images_per_s": []}
        return {"asked": asked, "at_once": 1, "failed": str(error), **none}
    finally:
        for process in processes:
            process.close()
    return decided(alone, together, asked)


def found_in(record: dict[str, Any], arch: str, asked: int) -> dict[str, Any] | None:
    """Return what was measured of an arch for that many at once; None where nothing was."""
    found = (each for each in record.get("at_once", ()) if (each["arch"], each["asked"]) == (arch, asked))
    return next(found, None)


def settle(
    recipe: Recipe, config: RunConfig, data: Data, asked: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Return, as JSON types, what a measurement of that many trainings of the recipe at once says, and tell it."""
    tell(
        f"{recipe.arch}: measuring whether {asked} trainings at once are faster a run than one after another"
    )
    found = {"arch": recipe.arch, **measure(recipe, config, data, asked)}
    tell(in_words(found))
    return found


def in_words(found: dict[str, Any]) -> str:
    """Return a measurement with both figures and what came of it, in a sentence without its full stop."""
    asked = found["asked"]
    if found["failed"] is not None:
        return f"{found['arch']}: {asked} at once cannot be had ({found['failed']}), so one at a time"
    alone, together = (
        statistics.median(found[key]) for key in ("alone_images_per_s", "together_images_per_s")
    )
    return f"{found['arch']}: {alone:,.0f} img/s by one training, {together:,.0f} by {asked} at once, " + (
        f"so up to {asked} at once" if found["at_once"] > 1 else "which is not faster a run, so one at a time"
    )
