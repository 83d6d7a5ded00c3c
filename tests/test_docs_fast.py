"""docs/fast.md against the recipe that it describes."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path

import pytest

from fastresnet.bench.ablation import tables
from fastresnet.bench.asked import changed
from fastresnet.bench.board import standings
from fastresnet.bench.comparison import compare
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
    assert recipe.activation == "gelu-for-relu"
    assert math.degrees(math.atan(optimizer.lr)) == pytest.approx(3.4, abs=0.05)
    assert recipe.ema is not None and (recipe.ema.decay, recipe.ema.every, recipe.ema.ramp) == (0.99, 5, True)


def test_what_the_page_says_of_the_ablation() -> None:
    """Differences that the text gives with an interval are those of the records."""

    def found(epochs: int, name: str, of: str = "fast") -> str:
        record = json.loads((RECORDS / f"ablation-{of}-{epochs}-resnet8-j75-cpu.json").read_bytes())
        (table,) = tables(record)
        (line,) = (each for each in table.lines if each.name == name)
        assert line.difference is not None and line.difference_half is not None
        return f"{100 * abs(line.difference):.2f} ± {100 * line.difference_half:.2f}"

    text = " ".join(PAGE.split())
    assert f"helps by {found(4, 'gelu')} at 4 epochs and {found(10, 'gelu')} at 10" in text
    assert f"SGD costs {found(4, 'sgd-0.6', 'sgd')} at an lr of 0.6" in text
    assert f"and {found(10, 'without-extras')} beside the recipe with decay and ReLU (three)" in text
    assert f"undecided at 4 epochs, +{found(4, 'no-decay')}, and at 10" in text
    assert f"when those had been seen, +{found(10, 'no-decay')}." in text
    assert f"At 10 epochs of fresh seeds it costs {found(10, 'sgd-0.6', 'fresh')} (three pairs)" in text
    assert f"a decay of 5e-4 costs {found(10, 'decay-5e-4', 'fresh')} (four pairs)" in text
    assert f"all at once they cost {found(10, 'without-extras', 'fresh')} at 10 epochs of fresh seeds" in text
    assert f"the head helps by {found(4, 'other-lr-double')} at 4 epochs" in text
    for quoted, row in {
        "2.2 at 0.3": (4, "sgd-0.3"),
        "cost 1.7 at 0.6": (4, "sgd-0.6"),
        "3.3 at 1.2": (4, "sgd-1.2", "sgd"),
        "7.4 at 2.4": (4, "sgd-2.4", "sgd"),
        "decay cost 6.3": (4, "decay-x4"),
        "lr** costs 1.0": (4, "lr-half"),
        "and 0.7.": (4, "lr-double"),
    }.items():
        number = float(found(*row).split()[0])
        assert quoted in text and f"{number:.1f}" in quoted


def test_what_the_page_says_of_the_three_pairs_without_decay_that_were_planned() -> None:
    record = json.loads((RECORDS / "ablation-fast-10-resnet8-j75-cpu.json").read_bytes())
    record["runs"] = [run for run in record["runs"] if run["seed"] < 3]
    (table,) = tables(record)
    (line,) = (each for each in table.lines if each.name == "no-decay")
    assert line.difference is not None and line.difference_half is not None and line.verdict == "undecided"
    said = f"+{100 * line.difference:.2f} ± {100 * line.difference_half:.2f}"
    assert f"by the three pairs that were planned, {said};" in " ".join(PAGE.split())


def test_fresh_seeds_bear_out_what_fast_is() -> None:
    """Each thing taken back costs, by as many pairs as were planned, of seeds that had chosen nothing."""
    record = json.loads((RECORDS / "ablation-fresh-10-resnet8-j75-cpu.json").read_bytes())
    assert not changed(record)
    (table,) = tables(record)
    told = {line.name: (line.runs, line.verdict) for line in table.lines if line.name != "base"}
    assert told == {"decay-5e-4": (4, "hurts"), "without-extras": (4, "hurts"), "sgd-0.6": (3, "hurts")}
    others = [path for path in RECORDS.glob("*resnet8-j75-cpu.json") if "fresh" not in path.name]
    chose = {run["seed"] for path in others for run in json.loads(path.read_bytes()).get("runs", ())}
    assert chose and chose.isdisjoint(run["seed"] for run in record["runs"])
    base = [run["accuracy_without_tta"] for run in record["runs"] if run["row"]["name"] == "resnet8, base"]
    mean, deviation = f"{statistics.fmean(base):.4f}", f"{statistics.stdev(base):.4f}"
    text = " ".join(PAGE.split())
    assert len(base) == 4
    assert f"{mean} by four other seeds on another machine (standard deviation {deviation}" in text
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"reached {mean} ({deviation};" in readme


def test_what_the_page_says_of_smaller_images_first() -> None:
    record = json.loads((RECORDS / "ablation-fast-4-n3-b1-c32-j75-cpu.json").read_bytes())
    (table,) = tables(record)
    text = " ".join(PAGE.split())
    for name in ("resize-24", "resize-24-28"):
        (line,) = (each for each in table.lines if each.name == name)
        assert line.difference is not None and line.difference_half is not None and line.runs == 4
        assert line.verdict == "undecided"
        assert f"{100 * line.difference:+.2f} ± {100 * line.difference_half:.2f}" in text
        assert f"{100 * (1 - statistics.median(line.time_ratios)):.1f}% fewer" in text


def test_what_the_page_says_of_gelu_beside_relu() -> None:
    record = json.loads((RECORDS / "time-to-gelu-relu-resnet8-j75-cpu.json").read_bytes())
    relu, gelu = sorted(standings(record), key=lambda line: line.row.changes)
    assert (relu.row.changes, relu.row.epochs, gelu.row.changes, gelu.row.epochs) == (
        *("", 11),
        *("activation=gelu", 10),
    )
    (found,) = compare(record, relu.row)
    assert found.difference is not None and found.difference_half is not None
    text = " ".join(PAGE.split())
    assert f"GELU for 10 epochs reached {gelu.accuracy:.4f} in {gelu.cpu_s:.0f} CPU seconds" in text
    assert f"ReLU for 11 epochs {relu.accuracy:.4f} in {relu.cpu_s:.0f}" in text
    assert f"+{100 * found.difference:.2f} ± {100 * found.difference_half:.2f}" in text


def test_what_the_texts_say_that_resnet8_reaches() -> None:
    board = json.loads((RECORDS / "time-to-gelu-relu-resnet8-j75-cpu.json").read_bytes())
    (line,) = (each for each in standings(board) if each.row.changes == "activation=gelu")
    assert (line.runs, line.row.tta) == (4, "none")
    said = f"reaches {line.accuracy:.4f} (standard deviation {line.accuracy_sd:.4f})"
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert said in readme and "In 10 epochs resnet8 (312,490 parameters)" in readme
    text = " ".join(PAGE.split())
    assert f"resnet8 by it: {line.accuracy:.4f} after 10 epochs" in text
    assert f"deviation {line.accuracy_sd:.4f}" in text
    for epochs in (10, 4):
        record = json.loads((RECORDS / f"ablation-fast-{epochs}-resnet8-j75-cpu.json").read_bytes())
        base = [run for run in record["runs"] if run["row"]["name"] == "resnet8, base"]
        assert f"{statistics.fmean(run['accuracy_without_tta'] for run in base):.4f} after {epochs}" in text


def test_what_the_page_says_of_r0s_own_recipe() -> None:
    record = json.loads((RECORDS / "time-to-fast-15-r0-30-resnet8-j75-cpu.json").read_bytes())
    ours, theirs = sorted(standings(record), key=lambda line: line.row.recipe or "")
    assert (ours.row.recipe, ours.row.epochs, theirs.row.epochs) == ("fast", 15, 30)
    assert theirs.row.recipe == "r0-resnet24-as-run" and theirs.runs >= 3
    (found,) = compare(record, theirs.row)
    assert found.difference is not None and found.difference_half is not None
    assert found.difference > found.difference_half
    text = " ".join(PAGE.split())
    assert f"and {ours.accuracy:.4f} after 15" in text
    assert f"brings resnet8 to {theirs.accuracy:.4f} in 30 epochs" in text
    assert f"end {100 * found.difference:.2f} ± {100 * found.difference_half:.2f} points above" in text
    fresh = json.loads((RECORDS / "time-to-fast-15-r0-30-fresh-resnet8-j75-cpu.json").read_bytes())
    ours, theirs = sorted(standings(fresh), key=lambda line: line.row.recipe or "")
    (found,) = compare(fresh, theirs.row)
    assert found.difference_half is not None and found.difference > found.difference_half
    assert (ours.runs, theirs.runs) == (3, 3) and min(run["seed"] for run in fresh["runs"]) == 20
    assert (
        f"ends at {ours.accuracy:.4f} ({ours.accuracy_sd:.4f}) and R0's own recipe at {theirs.accuracy:.4f} "
        f"({theirs.accuracy_sd:.4f}), {100 * found.difference:.2f} ± {100 * found.difference_half:.2f} points apart"
    ) in text


def test_what_is_said_of_both_protocols() -> None:
    record = json.loads((RECORDS / "time-to-0.86-fast-10-resnet8-j75-cpu.json").read_bytes())
    (line,) = standings(record)
    assert line.verdict == "reaches" and line.crossed == line.runs and record["settings"]["target"] == 0.86
    text = " ".join((ROOT / "docs" / "bench.md").read_text().split())
    assert f"mean {line.accuracy:.4f}, lower bound {line.accuracy_low:.4f}) in {line.seconds:.0f} s" in text
    assert f"first crosses it after {line.crossing_s:.0f} (" in text
