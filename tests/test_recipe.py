"""Recipes: every packaged one against what its report states, overrides, and one-line errors with the line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fastresnet.augment import Augment
from fastresnet.cli.recipes import recipes
from fastresnet.errors import UserError
from fastresnet.losses import build_loss
from fastresnet.mix import Mix
from fastresnet.optim import build_optimizer
from fastresnet.recipe import Recipe, load_recipe, recipe_names, recipe_text
from fastresnet.schedule import build_schedule
from fastresnet.toml_lines import line_numbers, nearest_line

FAST = load_recipe("fast")


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipe_is_whole(name: str) -> None:
    """It loads, names itself, survives JSON, and each of its parts can be built and takes a step."""
    recipe = load_recipe(name)
    assert recipe.name == name
    assert Recipe.from_json_dict(json.loads(json.dumps(recipe.to_json_dict()))) == recipe
    spec = recipe.arch_spec()
    spec.validate_for(32)
    if recipe.reported is not None and recipe.reported.params is not None:
        assert spec.num_params() == recipe.reported.params
    assert (name == "fast") == (recipe.reported is None)
    if recipe.reported is not None:
        assert recipe.reported.source
        assert recipe.reported.printed
        assert recipe.open_choices
    assert f"fastresnet train --recipe {name}" in recipe_text(name) or name == "fast"

    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(8)
    mean, std = (0.5,) * 3, (0.25,) * 3
    augment = Augment(recipe.augment, mean, std, 32)
    augment.begin_epoch(0, 0, labels.numpy(), "cpu")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 10, 32), torch.nn.Flatten())
    optimizer = build_optimizer(model, recipe.optimizer)
    schedule = build_schedule(recipe.schedule, recipe.epochs, 3)
    assert all(0 <= schedule.factor(step) <= 1 for step in range(3 * recipe.epochs))
    inputs = augment(images, labels, torch.float32, train=True)
    targets: Any = labels
    if recipe.mix is not None:
        inputs, targets = Mix(recipe.mix, seed=0, batch_size=recipe.batch_size).apply(inputs, labels, 0, 0)
    loss = build_loss(recipe.loss)(model(inputs), targets)
    loss.backward()
    before = model[0].weight.detach().clone()
    optimizer.step()
    assert loss.isfinite()
    assert not torch.equal(model[0].weight, before)


def science(name: str) -> dict[str, Any]:
    """The recipe flattened to dotted keys."""

    def walk(value: Any, key: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for part in value for k, v in walk(value[part], f"{key}.{part}").items()}
        return {key.removeprefix("."): value}

    return walk(load_recipe(name).model_dump(), "")


R0_MEAN, R0_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
R1_MEAN, R1_STD = (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)
ADADELTA = {"optimizer.name": "adadelta", "optimizer.lr": 0.1, "optimizer.rho": 0.9, "optimizer.eps": 1e-6}
R0 = {
    "arch": "resnet24",
    "batch_size": 128,
    "optimizer.weight_decay": 5e-4,
    "optimizer.decay": "all",
    "optimizer.decoupled": False,
    "normalise.mean": R0_MEAN,
    "normalise.std": R0_STD,
}
CROP_FLIP = {"augment.crop.padding": 4, "augment.crop.mode": "zero", "augment.flip": "random"}
MIXED = {"mix.name": "mixup", "mix.alpha": 1.0}
AS_RUN = {"schedule.name": "step", "schedule.after": 100, "schedule.period": 1}
R1 = {"batch_size": 64, "optimizer.name": "adam", "optimizer.weight_decay": 0.0, "normalise.mean": R1_MEAN}
STATED: dict[str, dict[str, Any]] = {
    "r0-resnet24-as-run": {
        **R0,
        **ADADELTA,
        **AS_RUN,
        **CROP_FLIP,
        **MIXED,
        "epochs": 200,
        "val.num": 5000,
        "val.seed": 43,
        "reported.accuracy": 0.9398,
    },
    "r0-resnet24-as-printed": {
        **R0,
        **ADADELTA,
        **MIXED,
        "schedule.name": "step",
        "schedule.period": 100,
        "schedule.after": 0,
        "reported.accuracy": 0.948,
    },
    "r0-plain": {**R0, **ADADELTA, **CROP_FLIP, "mix": None, "val": None, "epochs": 50},
    "r0-step": {**R0, **ADADELTA, **AS_RUN, **CROP_FLIP, "mix": None, "reported.accuracy": 0.9298},
    "r0-continue": {**R0, **ADADELTA, **AS_RUN, **MIXED, "epochs": 114, "reported.accuracy": 0.9459},
    "r0-transform2": {**R0, **ADADELTA, **MIXED, "augment.crop": None, "augment.flip": "none"},
    **{
        f"r0-optimizers-{name}": {
            **R0,
            **MIXED,
            "epochs": 60,
            "optimizer.name": name,
            "optimizer.lr": 0.001 if name == "adam" else 0.1,
            "reported.accuracy": accuracy,
            "schedule.name": "cosine",
            "schedule.t_max": 200,
        }
        | ({} if name != "adam" else {"optimizer.decoupled": ...})
        for name, accuracy in (
            ("adam", 0.8640),
            ("adadelta", 0.8906),
            ("adagrad", 0.8298),
            ("sgdn", 0.8328),
            ("sgd", 0.8265),
        )
    },
    "r1-joint": {
        **R1,
        **CROP_FLIP,
        "epochs": 50,
        "optimizer.lr": 0.001,
        "schedule.gamma": 0.9,
        "schedule.period": 5,
        "normalise.std": R1_STD,
        "reported.accuracy": 0.9104,
    },
    "r1-single": {**R1, "epochs": 10, "optimizer.lr": 0.001, "augment.crop": None, "augment.ops": ()},
    "r1-final-text": {**R1, **CROP_FLIP, "epochs": 500, "optimizer.lr": 0.001, "schedule.period": 10},
    "r1-final-notebook": {
        **R1,
        **CROP_FLIP,
        "arch": "n3-b2-c85-p8",
        "epochs": 500,
        "optimizer.lr": 0.01,
        "reported.accuracy": 0.9252,
    },
    "r2-improved-resnet": {
        **CROP_FLIP,
        "epochs": 400,
        "optimizer.name": "sgd",
        "optimizer.lr": 0.05,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 1e-4,
        "optimizer.lookahead.k": 5,
        "optimizer.lookahead.alpha": 0.5,
        "schedule.name": "cosine",
        "schedule.t_max": 400,
        "loss.label_smoothing": 0.1,
        "reported.accuracy": 0.86968,
        "reported.train_accuracy": 0.9867,
    },
    "r3-resnet18-c42": {
        **CROP_FLIP,
        "arch": "resnet18-c42",
        "epochs": 100,
        "batch_size": 32,
        "optimizer.name": "sgd",
        "optimizer.lr": 0.001,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 5e-4,
        "reported.accuracy": 0.909545,
        "reported.train_accuracy": 0.982726,
    },
}


@pytest.mark.parametrize("name", STATED)
def test_recipe_says_what_its_report_states(name: str) -> None:
    made = science(name)
    stated = {key: value for key, value in STATED[name].items() if value is not ...}
    assert {key: made.get(key, "absent") for key in stated} == stated


def test_every_report_recipe_is_checked() -> None:
    assert {*STATED, "fast"} == set(recipe_names())


def test_augmentations_come_in_the_reports_order() -> None:
    def listed(name: str) -> list[dict[str, Any]]:
        return [op.model_dump() for op in load_recipe(name).augment.ops]

    affine, rotation, jitter = listed("r1-final-text")
    assert (affine["degrees"], affine["shear"], affine["scale"]) == (0, 10, (0.8, 1.2))
    assert (rotation["name"], rotation["degrees"]) == ("rotation", 10)
    assert (jitter["brightness"], jitter["contrast"], jitter["saturation"], jitter["hue"]) == (
        0.2,
        0.2,
        0.2,
        0,
    )
    affine, normalise, erasing = listed("r0-transform2")
    assert (affine["degrees"], affine["translate"], affine["shear"]) == (30, (0.2, 0.2), 0.2)
    assert normalise["name"] == "normalise"
    assert erasing == {"name": "erasing", "p": 0.5, "scale": (0.02, 0.33), "ratio": (0.3, 3.3)}
    assert [op["name"] for op in listed("r2-improved-resnet")] == [
        "rotation",
        "color-jitter",
        "normalise",
        "erasing",
    ]
    assert listed("r2-improved-resnet")[1]["hue"] == 0.1
    assert listed("r3-resnet18-c42") == [{"name": "grayscale", "p": 0.5}]


def test_fast_is_what_its_description_says() -> None:
    made = science("fast")
    wanted = {
        "optimizer.name": "sgdn",
        "optimizer.decay": "filters",
        "schedule.name": "linear",
        "schedule.end": 0.0,
        "augment.crop.mode": "reflect",
        "augment.crop.padding": 4,
        "augment.flip": "alternating",
        "init.zero_gamma": True,
    }
    assert {key: made[key] for key in wanted} == wanted
    assert FAST.loss.label_smoothing > 0
    assert FAST.schedule.warmup > 0  # type: ignore[union-attr]
    assert FAST.ema is not None


# Overrides


def test_text_values_are_typed_as_toml() -> None:
    made = FAST.with_overrides(
        {
            "epochs": "3",
            "optimizer.lr": "1e-3",
            "augment.crop.mode": "zero",
            "arch": "n4-b3,3,2,3-c64,128,128,256-p4",
            "ema": "none",
            "dropout.head": "0.5",
            "normalise": "{mean = [0, 0, 0], std = [1, 1, 1]}",
            "augment.ops": '[{name = "rotation", degrees = 15}, {name = "grayscale"}]',
            "drop_last": "false",
        }
    )
    assert (made.epochs, made.optimizer.lr, made.ema, made.drop_last) == (3, 0.001, None, False)
    assert made.dropout is not None
    assert made.dropout.head == 0.5
    assert made.arch_spec().dropout.head == 0.5
    again = made.with_overrides({"augment.ops.0.degrees": "30", "augment.ops.1.p": 0.25})
    assert [op.model_dump() for op in again.augment.ops] == [
        {"name": "rotation", "degrees": 30.0, "interpolation": "nearest"},
        {"name": "grayscale", "p": 0.25},
    ]
    assert load_recipe("fast") == FAST  # a recipe is not changed by overriding it


def test_another_optimizer_keeps_what_both_have() -> None:
    made = FAST.with_overrides({"optimizer.eps": "1e-7", "optimizer.name": "adam", "optimizer.lr": "0.001"})
    assert made.optimizer.model_dump() == {
        "name": "adam",
        "lr": 0.001,
        "weight_decay": 5e-4,
        "decay": "filters",
        "bn_bias_lr_scale": 1.0,
        "lookahead": None,
        "betas": (0.9, 0.999),
        "eps": 1e-7,
    }
    assert FAST.with_overrides({"schedule.name": "cosine"}).schedule.warmup == 0.15  # type: ignore[union-attr]
    assert FAST.with_overrides({}) is FAST


def test_arch_takes_the_recipes_activation() -> None:
    spec = FAST.with_overrides({"activation": "gelu"}).arch_spec()
    assert spec.activation == "gelu"
    assert FAST.arch_spec().activation == "relu"


@given(
    st.dictionaries(
        st.sampled_from(["epochs", "batch_size", "optimizer.lr", "loss.label_smoothing", "ema.decay"]),
        st.one_of(
            st.integers(-3, 5000), st.floats(-1, 2), st.sampled_from(["x", "nan", "inf", "[]", "true"])
        ),
    )
)
def test_an_override_is_taken_or_named_in_the_error(overrides: dict[str, Any]) -> None:
    try:
        made = FAST.with_overrides(overrides)
    except UserError as error:
        assert any(key in str(error) for key in overrides)
        assert "\n" not in str(error)
    else:
        assert made.epochs >= 1
        assert made.batch_size >= 1
        assert made.optimizer.lr > 0


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"optimzer.lr": "1"}, r"unknown key 'optimzer'; did you mean 'optimizer'\? \(allowed: .*schedule"),
    ({"optimizer.momentm": "1"}, r"unknown key 'optimizer.momentm'; did you mean 'momentum'\? \(allowed: bn"),
    ({"lr": "1"}, r"unknown key 'lr'; did you mean 'optimizer.lr'\?"),
    ({"label_smoothing": "0"}, r"unknown key 'label_smoothing'; did you mean 'loss.label_smoothing'\?"),
    ({"optimizer.k": "5"}, r"unknown key 'optimizer.k'; did you mean 'optimizer.lookahead.k'\?"),
    ({"optimizer.lr": "-1"}, r"optimizer.lr is -1; it should be greater than 0"),
    ({"optimizer.lr": "nan"}, r"optimizer.lr is nan; it should be"),
    (
        {"optimizer.name": "adm"},
        r"optimizer.name is 'adm'; did you mean 'adam'\? \(allowed: adadelta, .*muon\)",
    ),
    ({"epochs": "0"}, r"epochs is 0; it should be greater than or equal to 1"),
    ({"epochs": "ten"}, r"epochs is 'ten'; it should be a valid integer"),
    ({"epochs.x": "1"}, r"epochs.x: epochs is a single value"),
    (
        {"augment.flip": "randm"},
        r"augment.flip is 'randm'; did you mean 'random'\? \(allowed: 'none', 'random'",
    ),
    ({"augment.ops": '[{name = "rotate"}]'}, r"augment.ops.0.name is 'rotate'; did you mean 'rotation'\?"),
    ({"augment.ops.2.p": "1"}, r"augment.ops has 0 elements"),
    ({"augment.ops": '[{name = "affine", scale = [2, 1]}]'}, r"augment.ops.0: scale is \[2.0, 1.0\]"),
    (
        {"augment.ops": '[{name = "normalise"}, {name = "grayscale"}]'},
        r"augment: ops lists 'grayscale' after",
    ),
    ({"mix.name": "mixup", "mix.block": "7"}, r"mix.block is 7, which does not divide batch_size 256"),
    ({"mix.alpha": "1"}, r"mix.name is missing"),
    ({"schedule": "{name = 'step'}"}, r"schedule.period is missing"),
    ({"schedule": "{period = 3}"}, r"schedule.name is missing \(allowed: constant, step"),
    ({"optimizer.momentum": "0"}, r"optimizer: momentum is 0"),
    ({"name": "Fast Two"}, r"name is 'Fast Two'"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=[str(m[0]) for m in MISTAKES])
def test_a_wrong_override_is_explained(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        FAST.with_overrides(overrides)
    assert "\n" not in str(caught.value)


# Files

FILE = """\
name = "mine"
arch = "resnet8"
epochs = 3
batch_size = 64

[optimizer]
name = "sgd"
lr = 0.1

[schedule]
name = "constant"

[augment]
flip = "random"
ops = [
    { name = "rotation", degrees = 15 },
    # one more
    { name = "erasing", p = 0.5, ratio = [
      0.3, 3.3] },
]
"""


def test_a_file_of_ones_own_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(FILE)
    assert load_recipe(str(path)).augment.ops[0].name == "rotation"
    for name in recipe_names():  # what `fastresnet recipes NAME` prints can be saved and trained
        path.write_text(recipe_text(name))
        assert load_recipe(str(path)) == load_recipe(name)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("epochs = 3", "epochs = 0", 3, "epochs is 0"),
        ("lr = 0.1", "lrr = 0.1", 8, "unknown key 'optimizer.lrr'; did you mean 'lr'?"),
        ('name = "sgd"', 'name = "sdg"', 7, "optimizer.name is 'sdg'; did you mean 'sgd'?"),
        ("lr = 0.1\n", "", 6, "optimizer.lr is missing"),
        ("[schedule]", "[scedule]", 10, "unknown key 'scedule'; did you mean 'schedule'?"),
        ("degrees = 15", "degrees = -5", 16, "augment.ops.0.degrees is -5"),
        ("0.3, 3.3]", "3.3, 0.3]", 18, "augment.ops.1: ratio is [3.3, 0.3]"),
        ("0.3, 3.3]", "0.3, -3.3]", 19, "augment.ops.1.ratio.1 is -3.3"),
        ("epochs = 3", "epochs = ", 3, "not TOML"),
        ("epochs = 3", "epochs = 3\nepochs = 4", 4, "not TOML"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    path = tmp_path / "mine.toml"
    assert FILE.count(old) == 1
    path.write_text(FILE.replace(old, new))
    with pytest.raises(UserError) as caught:
        load_recipe(str(path))
    text = str(caught.value)
    assert text.startswith(str(path))
    assert message in text
    assert "\n" not in text
    assert f"{path}:{line}:" in text or f"line {line}," in text


def test_unknown_names_and_unreadable_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown recipe 'fsat'; did you mean 'fast'"):
        load_recipe("fsat")
    with pytest.raises(UserError, match=r"cannot read recipe .*no\.toml: No such file"):
        load_recipe(str(tmp_path / "no.toml"))
    with pytest.raises(UserError, match=r"cannot read recipe .*Is a directory"):
        load_recipe(f"{tmp_path}/")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load_recipe(str(tmp_path / "bytes.toml"))


EVERY_SYNTAX = '''\
# a comment with [brackets] and = signs
plain = 1  # = [
"quoted key" = "a # no comment \\" ] }"
'literal'."dotted".key = 'x = "y"'
text = """
[not.a.table]
fake = 1 \\
"""  # after
raw = \'\'\'
also = "not"'\'\'\'
ends = """two quotes ""\"""
date = 1979-05-27T07:32:00Z
empty = []
nest = [ [1, 2], # one
  [ { a = 1, b.c = [
    3 ] }, "]" ],
]

[table . inner]
key = { x = { y = true }, z = "}" }
[[list]]
key = 1
[[list]]
[list.below]
key = 2
[[list.deep]]
key = 3
[[list.deep]]
key = 4
'''


def test_line_finder_knows_every_syntax() -> None:
    data = tomllib.loads(EVERY_SYNTAX)
    lines = line_numbers(EVERY_SYNTAX)

    def walk(value: Any, path: tuple[str | int, ...]) -> None:
        assert path in lines or not path, path
        children = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in children:
            walk(child, (*path, key)) if isinstance(child, (dict, list)) else None
            assert (*path, key) in lines

    walk(data, ())
    wanted: dict[tuple[str | int, ...], int] = {
        ("plain",): 2,
        ("quoted key",): 3,
        ("literal", "dotted", "key"): 4,
        ("text",): 5,
        ("raw",): 9,
        ("ends",): 11,
        ("empty",): 13,
        ("nest", 1): 15,
        ("nest", 1, 0, "b", "c", 0): 16,
        ("table", "inner", "key", "z"): 20,
        ("list", 1): 23,
        ("list", 1, "below", "key"): 25,
        ("list", 1, "deep", 1, "key"): 29,
    }
    assert {path: lines[path] for path in wanted} == wanted
    assert nearest_line(lines, ("list", 0, "absent", 3)) == 21
    assert nearest_line(lines, ("absent",)) == 1


# The command


def command(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(recipes)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_recipes_lists_printed_figures_and_marks_errata() -> None:
    text = command()
    rows = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert set(recipe_names()) <= set(rows)
    assert rows["r2-improved-resnet"].split()[1:] == ["improved-resnet", "400", "0.8697", "4,903,082"]
    assert rows["r0-resnet24-as-printed"].split()[-3:] == ["0.9480", "4,935,242", "erratum"]
    assert "94.59%" in text
    assert max(map(len, text.splitlines())) <= 80


def test_recipes_prints_one_with_its_comments_and_json() -> None:
    assert command("r1-joint").strip() == recipe_text("r1-joint").strip()
    assert Recipe.from_json_dict(json.loads(command("r1-joint", "--json"))) == load_recipe("r1-joint")
    listed = {row["name"]: row for row in json.loads(command("--json"))}
    assert set(listed) == set(recipe_names())
    assert listed["r3-resnet18-c42"]["printed_accuracy"] == 0.909545
    assert listed["r1-single"]["printed_params"] == listed["r1-single"]["true_params"] == 11_173_962
    with pytest.raises(UserError, match="unknown recipe"):
        command("r9")
