"""docs/reports.md: its tables are whole, its commands and tests exist, and nothing of the reports is missing."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import typer

from fastresnet.arch import get_arch
from fastresnet.assembly import train_loader_spec
from fastresnet.augment import build_augment
from fastresnet.bench.sweep_record import markdown
from fastresnet.catalogue import CATALOGUE
from fastresnet.cli.main import app
from fastresnet.cli.typed import assigned
from fastresnet.errors import UserError
from fastresnet.loaders.protocol import LoaderSpec
from fastresnet.recipe import Recipe, load_recipe, recipe_names
from fastresnet.resnet import build_model
from fastresnet.run import RunConfig
from fastresnet.sweep_filter import CellFilter, select_steps
from fastresnet.sweep_spec import load_sweep, sweep_names

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "reports.md").read_text("utf-8")
HEADINGS = ("what", "command", "test")


class Row(NamedTuple):
    """A line of a table: what it is about, commands, tests."""

    what: str
    commands: tuple[str, ...]
    tests: tuple[str, ...]


def rows() -> Iterator[Row]:
    for line in PAGE.split("## Ours beside")[0].splitlines():
        if line.startswith("|") and not set(line) <= set("|- "):
            what, commands, tests = (cell.strip() for cell in line.strip("|").split(" | "))
            if (what.strip(), commands, tests) != HEADINGS:
                quoted = (tuple(re.findall(r"`([^`]*)`", cell)) for cell in (commands, tests))
                yield Row(what, *quoted)


ROWS = list(rows())


def parsed(command: str) -> tuple[str, dict[str, Any]]:
    """Return a command's name and its options as the command line understands them; nothing is run."""
    name, *arguments = shlex.split(command)
    assert name == "fastresnet"
    at: Any = typer.main.get_command(app)
    context = at.make_context(name, arguments)
    path = []
    while hasattr(at, "resolve_command"):
        word, at, arguments = at.resolve_command(context, context._protected_args + context.args)
        path.append(word)
        context = at.make_context(word, arguments, parent=context)
    return " ".join(path), context.params


def recipe_of(given: dict[str, Any]) -> Recipe:
    """Return the recipe that ``train`` would follow."""
    overrides = {key: given[key] for key in ("arch", "epochs", "batch_size") if given[key] is not None}
    recipe = load_recipe(given["recipe"] or "fast")
    return recipe.with_overrides(overrides | assigned(given["set_"], overrides))


def recipes_of(what: str) -> list[Recipe]:
    """Return the recipes that the commands of the row about ``what`` train."""
    (row,) = (row for row in ROWS if row.what.startswith(what))
    return [recipe_of(parsed(command)[1]) for command in row.commands]


def check(command: str) -> None:
    """Assert that a command and the names in it would be taken."""
    name, given = parsed(command)
    if name == "train":
        recipe_of(given).arch_spec().validate_for(32)
    elif name == "recipes":
        load_recipe(given["name"])
    elif name == "archs" and given["name"]:
        get_arch(given["name"])
    elif name == "sweep":
        filters = [CellFilter.parse(text) for text in given["cells"] or ()]
        assert select_steps(load_sweep(given["name"]).all_cells(), filters)
    elif name == "report" and given["sweep"]:
        load_sweep(given["sweep"])


def test_no_row_is_empty() -> None:
    assert len(ROWS) > 120
    for row in ROWS:
        assert row.what and row.commands and row.tests, row
    assert len({row.what for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("command", sorted({command for row in ROWS for command in row.commands}))
def test_every_command_is_one(command: str) -> None:
    check(command)


def test_every_named_test_is_there() -> None:
    defined = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert {name for row in ROWS for name in row.tests} - defined == set()


def test_nothing_of_the_reports_is_missing() -> None:
    words = {word for row in ROWS for command in row.commands for word in shlex.split(command)}
    assert set(recipe_names()) - {"fast", "fastest"} <= words
    assert set(sweep_names()) <= words
    named = {
        entry.name for entry in CATALOGUE if entry.table in ("r0-table1", "r0-logs", "r1-final", "r2", "r3")
    }
    assert named <= words


def shown(recipe: Recipe) -> tuple[LoaderSpec, bool]:
    """How the loader crops and flips, and whether training's own images differ from evaluation's."""
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    augment = build_augment(recipe, (0.5,) * 3, (0.25,) * 3, 32)
    augment.begin_epoch(0, 0, np.arange(8), "cpu")
    made, plain = (augment(images, torch.arange(8), torch.float32, train=train) for train in (True, False))
    return train_loader_spec(recipe, RunConfig(data="unused")), not torch.equal(made, plain)


def test_r1_is_with_augmentation_or_without() -> None:
    for words, augmented in (("with", True), ("without", False)):
        recipes = recipes_of(f"R1, 20 and 40 epochs {words} augmentation")
        assert [recipe.epochs for recipe in recipes] == [20, 40]
        for recipe in recipes:
            loader, changed = shown(recipe)
            assert (loader.padding, loader.flip) == ((4, "random") if augmented else (0, "none"))
            assert changed == augmented
            unchanged = {"epochs", "augment"}
            assert recipe.model_dump(exclude=unchanged) == load_recipe("r1-joint").model_dump(
                exclude=unchanged
            )


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("R1, a joint run (Table 8, row 9)", {}),
        ("R1, dropout before the head", {"dropout": 0.5}),
        (
            "R1, dropout inside blocks",
            {f"stages.{i}.blocks.{j}.dropout": 0.2 for i in range(3) for j in (0, 1)},
        ),
        ("R2, ImprovedResNet: SGD", {f"stages.{i}.dropout": 0.2 for i in range(3)}),
        ("R2, other dropout after stages", {f"stages.{i}.dropout": 0.5 for i in range(3)}),
    ],
)
def test_dropout_stands_where_a_row_says(what: str, wanted: dict[str, float]) -> None:
    (recipe,) = recipes_of(what)
    with torch.device("meta"):
        model = build_model(recipe.arch_spec())
    made = {name: layer.p for name, layer in model.named_modules() if isinstance(layer, torch.nn.Dropout)}
    assert made == wanted


def test_cosine_has_the_reports_lengths() -> None:
    schedules = [recipe.schedule.model_dump() for recipe in recipes_of("R0 and R2, cosine annealing")]
    stated = ("name", "t_max", "per", "min_factor", "warmup")
    assert [tuple(each[key] for key in stated) for each in schedules] == [
        ("cosine", t_max, "epoch", 0, 0) for t_max in (200, 400)
    ]


def test_a_wrong_name_in_a_command_would_be_found() -> None:
    for command in (
        "fastresnet train --recipe r9",
        "fastresnet train --set optimizer.name=adan",
        "fastresnet train --set schedule.name=one-cycle --set schedule.warmup=0.1",
        "fastresnet archs resnet25",
        "fastresnet sweep r1-c --cells D=2",
    ):
        with pytest.raises(UserError):
            check(command)
    with pytest.raises(Exception, match="No such option"):
        check("fastresnet bench loaders --fast")


@pytest.mark.parametrize("name", re.findall(r"<!-- bench sweep (\S+): begin -->", PAGE))
def test_tables_are_their_records(name: str) -> None:
    """What stands between a table's marks is what its committed record gives; nothing, as long as there is none."""
    found = re.search(
        rf"<!-- bench sweep {name}: begin -->\n(.*?)<!-- bench sweep {name}: end -->", PAGE, re.DOTALL
    )
    assert found is not None
    shown = found[1].strip()
    records = [json.loads(path.read_text()) for path in (ROOT / "bench" / "records").glob("*.json")]
    texts = [
        markdown(each).strip() for each in records if each.get("kind") == "sweep" and each["name"] == name
    ]
    assert texts == ([shown] if shown else [])
