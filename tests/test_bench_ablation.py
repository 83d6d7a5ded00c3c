"""``fastresnet bench ablation``: factors of a file, paired runs, and what their differences say."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from family import refused
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import ARCH
from typer.testing import CliRunner, Result

from fastresnet.bench import continued
from fastresnet.bench.ablation import BASE, Entry, Factor, Factors, tables, verdict_of, write_told
from fastresnet.bench.ablation_page import to_markdown
from fastresnet.bench.board_folder import own_runs_dir
from fastresnet.cli.main import app
from fastresnet.recipe import load_recipe
from fastresnet.sweep_cells import science_of

FACTORS = """
[[factor]]
name = "lr-double"
group = "learning rate"
set = { "optimizer.lr" = 0.1 }
why = "it may be too low"

[[factor]]
name = "no-ema"
group = "averaging"
set = { "ema" = "none" }
why = "it may not pay"
"""

# What judging needs to know of a data set.
IMAGES: Any = SimpleNamespace(dataset=SimpleNamespace(image_size=32, num_classes=10))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def factors(tmp_path: Path) -> Path:
    (path := tmp_path / "own.toml").write_text(FACTORS)
    return path


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", "ablation", *map(str, arguments)])


def tiny(factors: Path, data: Path, out: Path) -> list[str | Path]:
    base = ["--archs", ARCH, "--set", "batch_size=16", "--set", "optimizer.lr=0.05"]
    machine = ["--device", "cpu", "--threads", "1", "--compile", "off"]
    return [factors, *base, *machine, "--data", data, "--out", out]


def test_an_ablation_killed_and_gone_on_with(factors: Path, data: Path, tmp_path: Path) -> None:
    out, docs = tmp_path / "a.json", tmp_path / "docs.md"
    docs.write_text(f"<!-- bench ablation {out.stem}: begin --><!-- bench ablation {out.stem}: end -->")
    own = [*tiny(factors, data, out), "--epochs", "2"]
    first = bench(*own, "--runs", "1", "--only", "no-ema")
    assert first.exit_code == 0, first.output
    assert "| one pair |" in first.stdout and "of 0 factors judged here about 0.0" in first.stdout
    before = json.loads(out.read_text())["runs"]
    done = bench(*own, "--runs", "2", "--insert", docs)
    assert done.exit_code == 0, done.output
    record = json.loads(out.read_text())
    assert record["runs"][:2] == before and record["not_measured"] == []
    names = [f"{ARCH}, {name}" for name in (BASE, "lr-double", "no-ema")]
    # what lacked the first seed comes first; then the rows take turns
    assert [(run["row"]["name"], run["seed"]) for run in record["runs"]] == [
        *((names[0], 0), (names[2], 0)),
        *((names[1], 0), (names[0], 1), (names[1], 1), (names[2], 1)),
    ]
    for run in record["runs"]:
        assert run["row"]["tta"] == "flip" and 0 <= run["accuracy_without_tta"] <= 1
        assert len(run["curve"]) == 1  # evaluated after the last epoch alone
    (table,) = tables(record)
    assert [line.name for line in table.lines] == [BASE, "lr-double", "no-ema"]
    assert table.judged == 2
    line = table.lines[2]
    by_name = [
        [run["accuracy_without_tta"] for run in record["runs"] if run["row"]["name"] == name]
        for name in names
    ]
    assert line.difference == pytest.approx(sum(by_name[2]) / 2 - sum(by_name[0]) / 2)
    page = out.with_suffix(".md").read_text()
    assert page in done.stdout and bench("--show", out).stdout == page
    assert "of 2 factors judged here about 0.1 would be said to help or hurt" in page
    assert "The base is `fast` with `batch_size` 16, `optimizer.lr` 0.05." in page
    assert (
        "| lr-double | learning rate | `optimizer.lr` 0.1 | 2 |" in page
        and page.partition("\n\n")[2] in docs.read_text()
    )

    # Another base or machine would be another ablation.
    assert "epochs was 2 and is 3" in refused("bench", "ablation", *own[:-1], "3")
    assert "set was {'batch_size': '16'" in refused("bench", "ablation", *own, "--set", "augment.flip=none")
    assert "loader was auto and is torch" in refused("bench", "ablation", *own, "--loader", "torch")


def test_a_record_that_another_process_fills_is_left_to_it(
    factors: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had added meanwhile was overwritten with what had been read before."""
    out = tmp_path / "a.json"
    own = ["bench", "ablation", *tiny(factors, data, out), "--epochs", "1", "--runs", "1", "--minutes", "0"]
    with own_runs_dir(out):
        elsewhere = tmp_path / "of another job"
        elsewhere.mkdir()
        with monkeypatch.context() as patch:  # as a batch system gives each of its jobs
            patch.setattr(tempfile, "tempdir", str(elsewhere))
            assert f"another process fills the board {out}" in refused(*own)
        assert f"another process fills the board {out}" in refused(*own)
    assert not out.exists()
    assert CliRunner().invoke(app, [str(part) for part in own]).exit_code == 0
    assert sorted(each.name for each in tmp_path.glob("*a.json*")) == ["a.json"]  # no lock is left
    record = json.loads(out.read_text())

    read = continued.earlier_record

    def read_and_overtaken(*given: Any) -> Any:
        found = read(*given)
        out.write_text(json.dumps(record | {"runs": [{"by": "another"}]}))
        return found

    monkeypatch.setattr(continued, "earlier_record", read_and_overtaken)
    assert f"another process has just added to {out}; give the command again" in refused(*own)
    assert json.loads(out.read_text())["runs"] == [{"by": "another"}]


def test_a_factor_that_a_network_cannot_take_is_left_out_and_named(
    factors: Path, data: Path, tmp_path: Path
) -> None:
    """A pool that is not the whole map has no place for smaller images."""
    resized = '[[factor]]\nname = "small"\ngroup = "g"\nset = { "resize" = [{ size = 6, until = 0.5 }] }\nwhy = "w"\n'
    factors.write_text(factors.read_text() + resized)
    out = tmp_path / "a.json"
    own = [str(part) for part in tiny(factors, data, out)]
    own[own.index("--archs") + 1] = "n2-b1-c4-p2"
    done = CliRunner().invoke(
        app, ["bench", "ablation", *own, "--epochs", "2", "--runs", "1", "--minutes", "0"]
    )
    assert done.exit_code == 0, done.output
    assert "note: left out: n2-b1-c4-p2, small: " in done.stderr
    assert "Left out: n2-b1-c4-p2, small (" in done.stdout and "| small |" not in done.stdout
    assert [each["name"] for each in json.loads(out.read_text())["factors"]] == [
        "base",
        "lr-double",
        "no-ema",
    ]


def test_a_factor_that_the_base_has_already_is_left_out_and_others_are_judged(
    factors: Path, data: Path, tmp_path: Path
) -> None:
    """So a list serves a base that took up one of its factors, or that has no place for one that is not asked for."""
    own = [*tiny(factors, data, tmp_path / "a.json"), "--epochs", "1", "--runs", "1", "--minutes", "0"]
    taken = bench(*own, "--set", "ema=none")
    assert taken.exit_code == 0, taken.output
    assert f"note: left out: {ARCH}, no-ema: it changes nothing: the base has these" in taken.stderr
    factors.write_text(FACTORS.replace('"ema" =', '"optimizer.other_lrr" ='))
    out = tmp_path / "b.json"
    assert bench(*own[:-8], "--out", out, *own[-6:], "--only", "lr-double").exit_code == 0


@pytest.mark.parametrize("arch", ["resnet8", "resnet24", "n3-b1-c32", "fastresnet8"])
def test_the_packaged_factors_each_change_the_recipe_in_their_own_way(arch: str) -> None:
    """Where a network has no place for a factor, that is left out and the others are judged."""
    base = load_recipe("fast").with_overrides({"tta": "flip"})
    factors = Factors.load("fast", base)
    entries = factors.entries([arch], IMAGES)
    assert [entry.name for entry in entries] == [
        f"{arch}, {name}" for name in (BASE, *(factor.name for factor in factors.factors))
    ]
    judged = [entry.recipe for entry in entries if not entry.obstacle]
    sciences = [json.dumps(science_of(recipe)) for recipe in judged]
    assert len(set(sciences)) == len(sciences)
    obstacles = {entry.name.removeprefix(f"{arch}, "): entry.obstacle for entry in entries if entry.obstacle}
    assert set(obstacles) == {
        "resnet8": {"resize-24", "resize-24-28"},  # its head is for maps of one size
        "fastresnet8": {"zero-gamma", "gelu"},
    }.get(arch, set())
    if arch == "fastresnet8":
        assert "changes nothing" in obstacles["gelu"]


def test_the_packaged_factors_are_what_their_names_say_of_the_recipe_as_it_is() -> None:
    base = load_recipe("fast")
    recipes = {factor.name: base.with_overrides(factor.set) for factor in Factors.load("fast", base).factors}

    def of(name: str, key: str) -> Any:
        value = recipes[name] if name else base
        for part in key.split("."):
            value = getattr(value, part)
        return value

    for key, name in (("optimizer.lr", "lr"), ("optimizer.other_lr", "other-lr")):
        assert of(f"{name}-half", key) == pytest.approx(of("", key) / 2)
        assert of(f"{name}-double", key) == pytest.approx(of("", key) * 2)
    for name in ("batch-64", "batch-256"):
        times = of(name, "batch_size") / base.batch_size
        assert of(name, "optimizer.lr") == pytest.approx(of("", "optimizer.lr") * times**0.5, rel=0.02)
        assert of(name, "optimizer.other_lr") == pytest.approx(of("", "optimizer.other_lr") * times)
        assert of(name, "ema.decay") == pytest.approx(of("", "ema.decay") ** times, rel=1e-3)
    assert of("decay-x4", "optimizer.weight_decay") == pytest.approx(4 * of("", "optimizer.weight_decay"))
    assert of("sgd-0.6", "optimizer.lr") == 2 * of("sgd-0.3", "optimizer.lr")


def test_what_is_left_out_is_told_of_the_last_command() -> None:
    base = load_recipe("fast").with_overrides({"batch_size": 16, "arch": ARCH})

    def entries(why: str, settings: dict[str, Any]) -> list[Entry]:
        factor = Factor(name="f", group="g", set=settings, why=why)
        return Factors(base=base, factors=(factor,)).entries([ARCH], IMAGES)

    record: dict[str, Any] = {"factors": []}
    write_told(record, entries("at first", {"batch_size": 16}), IMAGES)
    assert list(record["left_out"]) == [f"{ARCH}, f"]
    write_told(record, entries("then", {"batch_size": 8}), IMAGES)
    write_told(record, entries("at last", {"batch_size": 8}), IMAGES)
    assert record["left_out"] == {}
    assert [(each["name"], each["why"]) for each in record["factors"]] == [(BASE, ""), ("f", "at last")]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("0.1 }", "-1 }", ":5: lr-double: optimizer.lr is -1; it must be above 0"),
        (
            '"optimizer.lr"',
            '"optimizer.lrr"',
            ":5: lr-double: unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?",
        ),
        ('"ema" =', '"emma" =', ":11: no-ema: unknown key 'emma'; did you mean 'ema'?"),
        (
            '"optimizer.lr" = 0.1',
            '"arch" = "resnet20"',
            ":5: lr-double: arch is no factor: networks are named",
        ),
        ('"optimizer.lr" = 0.1', '"tta" = "none"', ":5: lr-double: tta is no factor: every run is tested"),
        ("no-ema", "lr-double", ":9: lr-double is listed twice"),
        ("no-ema", "base", ":9: factor.1.name: 'base' is what factors are compared with"),
        ('"optimizer.lr" = 0.1', "", ":5: factor.0.set is {}; it"),
        ('why = "it may not pay"', "", ":8: factor.1.why is missing"),
        ('why = "it may not pay"', "wy = 1", ":12: unknown key 'factor.1.wy'; did you mean 'factor.1.why'?"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(
    before: str, after: str, told: str, factors: Path, data: Path, tmp_path: Path
) -> None:
    assert before in FACTORS
    factors.write_text(FACTORS.replace(before, after))
    message = refused("bench", "ablation", *tiny(factors, data, tmp_path / "a.json"))
    assert message.startswith(f"{factors}{told}"), message


@pytest.mark.parametrize(
    ("text", "told"), [("", "factor is missing"), ("factor = []", "factor is []; it must be")]
)
def test_a_file_of_no_factors_is_named(
    text: str, told: str, factors: Path, data: Path, tmp_path: Path
) -> None:
    factors.write_text(text)
    message = refused("bench", "ablation", *tiny(factors, data, tmp_path / "a.json"))
    assert message.startswith(f"{factors}:1: {told}"), message


def test_mistakes_on_the_command_line(factors: Path, data: Path, tmp_path: Path) -> None:
    own = tiny(factors, data, tmp_path / "a.json")
    assert "unknown factor 'fats'; did you mean 'fast'? (allowed: fast;" in refused(
        "bench", "ablation", "fats"
    )
    told = refused("bench", "ablation", *own, "--only", "no-ena")
    assert told.endswith("lists no factor 'no-ena'; did you mean 'no-ema'? (it lists lr-double, no-ema)")
    assert "unknown architecture 'resnet25'" in refused("bench", "ablation", *own, "--archs", "resnet25")
    assert "--only names no factor; give one or more" in refused("bench", "ablation", *own, "--only", "")
    assert "--archs names no network" in refused("bench", "ablation", *own, "--archs", ",")
    assert "name it there" in refused("bench", "ablation", *own, "--set", "arch=resnet8")
    assert "--epochs and --set epochs both set" in refused("bench", "ablation", *own, "--set", "epochs=1")
    assert "--set tta is of no use" in refused("bench", "ablation", *own, "--set", "tta=none")


def record_of(runs: dict[str, dict[int, float]], at_once: dict[str, int] | None = None) -> dict[str, Any]:
    """Return a record of resnet8's runs: accuracy by seed, by row; training takes 10 s, of factors 11."""
    rows = {
        name: {
            **{"name": f"resnet8, {name}", "recipe": "fast", "science": name, "num_params": 5},
            **{"epochs": 4, "tta": "flip", "at_once": (at_once or {}).get(name, 1)},
        }
        for name in runs
    }
    factor = {"arch": "resnet8", "group": "g", "why": "w"}
    plain: dict[str, Any] = {"role": "figure", "git": "abc"}
    return {
        "environment": {"device_name": "some CPU", "torch": "2", "threads": 1, "cuda": None},
        "settings": {"recipe": "fast", "epochs": 4, "set": {}, "dataset": "CIFAR-10"},
        "command": "x",
        "factors": [
            {
                **factor,
                "name": name,
                "science": name,
                "base": BASE,
                "set": {} if name == BASE else {"ema": "none"},
            }
            for name in runs
        ],
        "rows": list(rows.values()),
        "runs": [
            {
                **plain,
                **{"row": rows[name], "seed": seed, "accuracy": value, "accuracy_without_tta": value},
                **{"clocks": {"eval_s": 2.0}, "seconds": 12.0 if name == BASE else 13.0},
                "machine": {"kernels": "llvm", "convs": "direct"},
            }
            for name, values in runs.items()
            for seed, value in values.items()
        ],
        "not_measured": [],
    }


def test_a_factor_is_compared_where_the_base_has_the_seed() -> None:
    record = record_of(
        {
            "good": {0: 0.83, 1: 0.80, 2: 0.99},
            BASE: {0: 0.82, 1: 0.79},
            "none": {},
            "other": {0: 0.81, 1: 0.80},
            "bad": {0: 0.72, 1: 0.691},
            "lone": {1: 0.79},
        }
    )
    (table,) = tables(record)
    assert [(line.name, line.runs, line.verdict) for line in table.lines] == [
        *((BASE, 2, ""), ("good", 2, "helps"), ("none", 0, "unmeasured")),
        *(("other", 2, "undecided"), ("bad", 2, "hurts"), ("lone", 1, "one pair")),
    ]
    good = table.lines[1]
    assert good.difference == pytest.approx(0.01) and good.time_ratios == pytest.approx([1.1, 1.1])
    assert table.judged == 3
    page = to_markdown(record)
    assert (
        "| good | g | `ema` none | 2 | 0.8150 | +1.00 ± 0.00 | 0.8150 | +10.0% (+10.0% to +10.0%) | helps | w |"
        in page
    )
    # 12.706 * sd(0.82, 0.79) / sqrt(2)
    assert "| base | g |  | 2 | 0.8050 ± 0.1906 |  | 0.8050 |  |  | w |" in page


def test_a_factor_is_compared_with_the_base_of_its_own_form() -> None:
    """As where a network of ours was changed between two commands."""
    record = record_of({"good": {0: 0.83, 1: 0.80}, BASE: {0: 0.82, 1: 0.79}})
    then = record_of({"good": {0: 0.73, 1: 0.70}, BASE: {0: 0.71, 1: 0.68}})
    for each in (*then["factors"], *then["rows"]):  # whose dicts the runs share
        each["science"] += " then"
    for each in then["factors"]:
        each["base"] += " then"
    for part in ("factors", "rows", "runs"):
        record[part] += then[part]
    (table,) = tables(record)
    found = {round(line.difference, 3) for line in table.lines if line.difference is not None}
    assert found == {0.01, 0.02}


def test_on_a_cpu_trainings_are_compared_by_cpu_seconds() -> None:
    """What runs beside them, or stops them for a while, is none of their cost."""
    record = record_of({BASE: {0: 0.8}, "slow": {0: 0.8}})
    assert tables(record)[0].lines[1].time_ratios == pytest.approx([1.1])
    for run, cpu_s in zip(record["runs"], (20.0, 30.0), strict=True):
        run["cpu_s"] = cpu_s
    assert tables(record)[0].lines[1].time_ratios == pytest.approx([1.1])  # it was a GPU
    assert "on the clock before the final evaluation" in to_markdown(record)
    record["environment"]["cpu"] = record["environment"]["device_name"]
    assert tables(record)[0].lines[1].time_ratios == pytest.approx([1.5])
    assert "the median ratio to the base's of CPU seconds" in to_markdown(record)
    del record["runs"][0]["cpu_s"]  # of an early record
    assert tables(record)[0].lines[1].time_ratios == pytest.approx([1.1])


def test_times_are_compared_of_one_commit_and_one_way_alone() -> None:
    """An lr that costs nothing was said to save time, as its row had found quicker convolutions than the base."""
    record = record_of({BASE: {0: 0.8, 1: 0.8, 2: 0.8}, "f": {0: 0.82, 1: 0.82, 2: 0.83}})
    one, other, third = record["runs"][3:]
    other["machine"] = other["machine"] | {"convs": "amx"}
    third["git"], third["machine"] = "def", other["machine"]
    line = tables(record)[0].lines[1]
    assert (line.verdict, line.runs, line.of_two_commits) == ("helps", 3, 1)
    assert line.time_ratios == pytest.approx([1.1]) and line.ways == ["--convs amx"]
    page = to_markdown(record)
    assert "Of 3 pairs 1 are of two commits" in page and "not compared: f (--convs amx)." in page
    one["machine"] = other["machine"]
    assert tables(record)[0].lines[1].time_ratios == []
    for run in (other, third):
        run["git"], run["machine"] = one["git"], record["runs"][0]["machine"]
    one["machine"] = record["runs"][0]["machine"]
    page = to_markdown(record)
    assert "two commits" not in page and "another way" not in page


def test_runs_at_once_are_compared_with_runs_at_once_alone() -> None:
    record = record_of({BASE: {0: 0.8, 1: 0.8}, "packed": {0: 0.9, 1: 0.9}}, {"packed": 2})
    apart = tables(record)
    assert [(table.at_once, [line.verdict for line in table.lines]) for table in apart] == [
        *((1, [""]), (2, ["unmeasured"]))
    ]
    page = to_markdown(record)
    assert "up to 2 trainings at once:" in page and "throughput, not latency" in page


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(-0.1, 0.1)), min_size=2, max_size=8),
    st.lists(st.floats(-1, 1), min_size=8, max_size=8),
)
def test_what_a_seed_does_to_both_changes_nothing(
    pairs: list[tuple[float, float]], luck: list[float]
) -> None:
    base = {seed: value for seed, (value, _) in enumerate(pairs)}
    factor = {seed: value + change for seed, (value, change) in enumerate(pairs)}
    shifted = [{seed: value + luck[seed] for seed, value in each.items()} for each in (base, factor)]
    plain, lucky = (
        tables(record_of({BASE: one, "f": other}))[0].lines[1] for one, other in ((base, factor), shifted)
    )
    assert plain.difference == pytest.approx(lucky.difference, abs=1e-12)
    assert plain.difference_half == pytest.approx(lucky.difference_half, abs=1e-7)


def test_the_interval_decides() -> None:
    assert verdict_of([0.01, 0.02, 0.03]) == "undecided"  # 0.02 - 4.303 * 0.01 / sqrt(3) is below 0
    assert verdict_of([0.015, 0.02, 0.025]) == "helps" and verdict_of([-0.015, -0.02, -0.025]) == "hurts"
    assert verdict_of([0.5]) == "one pair" and verdict_of([]) == "unmeasured"
