"""``fastresnet bench ablation``: factors of a file, and paired runs of them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from family import refused
from tiny_runs import ARCH
from typer.testing import CliRunner, Result

from fastresnet.bench import continued
from fastresnet.bench.ablation import tables
from fastresnet.bench.board_folder import own_runs_dir
from fastresnet.bench.factors import BASE, Entry, Factor, Factors, write_told
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


def test_what_was_chosen_is_confirmed_by_fresh_seeds(factors: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "fresh.json"
    own = [*tiny(factors, data, out), "--epochs", "1", "--only", "no-ema", "--first-seed", "7"]
    first = bench(*own, "--runs", "2")
    assert first.exit_code == 0, first.output
    assert [run["seed"] for run in json.loads(out.read_text())["runs"]] == [7, 7, 8, 8]
    assert "was changed once some had been seen" not in first.stdout
    more = bench(*own, "--runs", "3")  # until it helps
    assert more.exit_code == 0, more.output
    assert [run["seed"] for run in json.loads(out.read_text())["runs"]][4:] == [9, 9]
    assert "was changed once some had been seen" in more.stdout
    assert more.stdout.count("(2 planned, changed after 2)") == 2


def test_what_confirms_is_by_itself_no_part_of_what_chose(
    factors: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = [*tiny(factors, data, Path("x"))[:-2], "--epochs", "1", "--only", "no-ema", "--runs", "1"]
    for fresh in ((), ("--first-seed", "4")):
        done = bench(*own, *fresh)
        assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (tmp_path / "bench-results").glob("*.json"))
    assert [name.partition("-fast-")[2] for name in names] == ["1-from-seed-4.json", "1.json"]


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
        "fastresnet8": {"zero-gamma"},
    }.get(arch, set())


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
    for name in ("decay-5e-4", "decay-2e-3"):
        assert of(name, "optimizer.weight_decay") == float(name.removeprefix("decay-"))
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
