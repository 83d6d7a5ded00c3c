"""docs/fast.md against the recipe that it describes."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path

import pytest

from fastresnet.bench.ablation import tables
from fastresnet.recipe import load_recipe
from fastresnet.recipe_parts import Muon
from fastresnet.schedule import build_schedule

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "fast.md").read_text()
RECORDS = ROOT / "bench" / "records"
ROWS = re.findall(r"^\| (\d+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+)% \|$", PAGE, re.MULTILINE)
NUM_TRAIN = 50_000


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} epochs")
def test_the_arithmetic_is_the_recipes(row: tuple[str, ...]) -> None:
    epochs, steps, warmup, share = (float(cell.replace(",", "")) for cell in row)
    recipe = load_recipe("fast").with_overrides({"epochs": int(epochs)})
    schedule = build_schedule(recipe.schedule, recipe.epochs, NUM_TRAIN // recipe.batch_size)
    assert (schedule.num_steps, schedule.warmup_steps) == (steps, warmup)
    assert recipe.ema is not None
    assert 100 / (1 - recipe.ema.decay) / steps == pytest.approx(share, rel=0.05)


def test_what_the_page_says_in_words() -> None:
    recipe = load_recipe("fast")
    assert len(ROWS) == 6
    assert (recipe.batch_size, recipe.drop_last, recipe.schedule.name) == (128, True, "linear")
    optimizer = recipe.optimizer
    assert isinstance(optimizer, Muon) and optimizer.normalise_filters
    assert (optimizer.lr, optimizer.other_lr, optimizer.weight_decay) == (0.06, 0.3, 0.0)
    assert math.degrees(math.atan(optimizer.lr)) == pytest.approx(3.4, abs=0.05)
    assert recipe.ema is not None and (recipe.ema.decay, recipe.ema.every, recipe.ema.ramp) == (0.99, 5, True)


def test_what_the_page_says_of_the_ablation() -> None:
    """Differences that the text gives with an interval are those of the records."""

    def found(epochs: int, name: str) -> str:
        record = json.loads((RECORDS / f"ablation-fast-{epochs}-resnet8-j75-cpu.json").read_bytes())
        (table,) = tables(record)
        (line,) = (each for each in table.lines if each.name == name)
        assert line.difference is not None and line.difference_half is not None
        return f"{100 * abs(line.difference):.2f} ± {100 * line.difference_half:.2f}"

    text = " ".join(PAGE.split())
    assert f"helps by {found(4, 'gelu')} and {found(10, 'gelu')}" in text
    assert f"cost {found(10, 'without-extras')} at 10 epochs" in text
    assert f"+{found(4, 'no-decay')} at 4 epochs and {found(10, 'no-decay')} at 10" in text
    assert f"the head helps by {found(4, 'other-lr-double')} at 4 epochs" in text
    for quoted, (epochs, name) in {
        "costs 2.2": (4, "sgd-0.3"),
        "and 1.7.": (4, "sgd-0.6"),
        "decay cost 6.3": (4, "decay-x4"),
        "lr** costs 1.0": (4, "lr-half"),
        "and 0.7.": (4, "lr-double"),
    }.items():
        number = float(found(epochs, name).split()[0])
        assert quoted in text and f"{number:.1f}" in quoted


def test_what_the_texts_say_that_resnet8_reaches() -> None:
    record = json.loads((RECORDS / "ablation-fast-10-resnet8-j75-cpu.json").read_bytes())
    runs = {
        name: [run for run in record["runs"] if run["row"]["name"] == f"resnet8, {name}"]
        for name in ("no-decay", "base")
    }
    plain = {name: [run["accuracy_without_tta"] for run in each] for name, each in runs.items()}
    assert len(plain["no-decay"]) == 4
    mean, spread = statistics.fmean(plain["no-decay"]), statistics.stdev(plain["no-decay"])
    views = statistics.fmean(run["accuracy"] for run in runs["no-decay"])
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"reaches {mean:.4f} (standard deviation {spread:.4f}) in 10 epochs" in readme
    assert f"and {views:.4f} averaged over flips: four runs" in readme
    text = " ".join(PAGE.split())
    assert f"resnet8 by it: {mean:.4f} after 10 epochs" in text and f"deviation {spread:.4f}" in text
    assert f"it was {statistics.fmean(plain['base']):.4f} after 10" in text
