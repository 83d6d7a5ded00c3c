"""Every packaged recipe: that it is whole, what its report states, and the command that lists them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from fastresnet.augment import Augment
from fastresnet.cli.recipes import recipes
from fastresnet.errors import UserError
from fastresnet.losses import build_loss
from fastresnet.mix import Mix
from fastresnet.optim import build_optimizer
from fastresnet.recipe import Recipe, load_recipe, recipe_names, recipe_text
from fastresnet.schedule import build_schedule

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
    table = text.splitlines()[: 2 + len(recipe_names())]
    assert max(map(len, table)) <= 80  # the remarks below it are whole, as what reads a pipe may wrap them


def test_recipes_prints_one_with_its_comments_and_json() -> None:
    assert command("r1-joint").strip() == recipe_text("r1-joint").strip()
    assert Recipe.from_json_dict(json.loads(command("r1-joint", "--json"))) == load_recipe("r1-joint")
    listed = {row["name"]: row for row in json.loads(command("--json"))}
    assert set(listed) == set(recipe_names())
    assert listed["r3-resnet18-c42"]["printed_accuracy"] == 0.909545
    assert listed["r1-single"]["printed_params"] == listed["r1-single"]["true_params"] == 11_173_962
    with pytest.raises(UserError, match="unknown recipe"):
        command("r9")
