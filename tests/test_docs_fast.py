"""docs/fast.md against the recipe that it describes."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from fastresnet.recipe import load_recipe
from fastresnet.recipe_parts import Muon
from fastresnet.schedule import build_schedule

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "fast.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+)% \| ([\d.]+) \|$", PAGE, re.MULTILINE)
NUM_TRAIN = 50_000


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} epochs")
def test_the_arithmetic_is_the_recipes(row: tuple[str, ...]) -> None:
    epochs, steps, warmup, share, left = (float(cell.replace(",", "")) for cell in row)
    recipe = load_recipe("fast").with_overrides({"epochs": int(epochs)})
    schedule = build_schedule(recipe.schedule, recipe.epochs, NUM_TRAIN // recipe.batch_size)
    assert (schedule.num_steps, schedule.warmup_steps) == (steps, warmup)
    assert recipe.ema is not None
    assert 100 / (1 - recipe.ema.decay) / steps == pytest.approx(share, rel=0.05)
    assert isinstance(recipe.optimizer, Muon)
    lr = recipe.optimizer.other_lr * sum(map(schedule.factor, range(schedule.num_steps)))
    assert math.exp(-lr * recipe.optimizer.weight_decay) == pytest.approx(left, rel=0.05)


def test_what_the_page_says_in_words() -> None:
    recipe = load_recipe("fast")
    assert len(ROWS) == 6
    assert (recipe.batch_size, recipe.drop_last, recipe.schedule.name) == (128, True, "linear")
    optimizer = recipe.optimizer
    assert isinstance(optimizer, Muon) and optimizer.normalise_filters
    assert (optimizer.lr, optimizer.other_lr, optimizer.weight_decay) == (0.06, 0.3, 0.0005)
    assert math.degrees(math.atan(optimizer.lr)) == pytest.approx(3.4, abs=0.05)
    assert recipe.ema is not None and (recipe.ema.decay, recipe.ema.every, recipe.ema.ramp) == (0.99, 5, True)
