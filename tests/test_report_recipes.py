"""Every packaged recipe: that it is whole, what its report states, and the command that lists them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from fastresnet.augment import Augment
from fastresnet.catalogue import BUDGET, entries_named
from fastresnet.cli.recipes import recipes
from fastresnet.errors import UserError
from fastresnet.losses import build_loss
from fastresnet.mix import Mix
from fastresnet.optim import build_optimizer
from fastresnet.recipe import Recipe, load_recipe, recipe_names, recipe_text
from fastresnet.schedule import build_schedule
from fastresnet.toml_model import parse_toml

FAST = load_recipe("fast")
OURS = ("fast", "fastest")


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
    assert (name in OURS) == (recipe.reported is None)
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


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Tables and lists of tables flattened to dotted keys; the rest as it stands, lists as tuples."""
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
        value = {str(place): part for place, part in enumerate(value)}
    if isinstance(value, dict):
        return {k: v for part in value for k, v in flat(value[part], f"{key}.{part}").items()}
    return {key.removeprefix("."): tuple(value) if isinstance(value, list) else value}


def science(name: str) -> dict[str, Any]:
    """The recipe flattened to dotted keys."""
    return flat(load_recipe(name).model_dump())


def ops(*listed: dict[str, Any]) -> dict[str, Any]:
    return flat(listed, "augment.ops")


R0_MEAN, R0_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
R1_MEAN, R1_STD = (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)
DECAY = {"optimizer.weight_decay": 5e-4, "optimizer.decay": "all"}  # coupled, so not adamw
R0 = {
    **DECAY,
    "arch": "resnet24",
    "batch_size": 128,
    "normalise.mean": R0_MEAN,
    "normalise.std": R0_STD,
    "reported.params": 4_935_242,
}
COUPLED = {"optimizer.decoupled": False}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"optimizer.name": "adam", "optimizer.lr": 0.001},
    "adadelta": {**COUPLED, "optimizer.name": "adadelta", "optimizer.rho": 0.9, "optimizer.eps": 1e-6},
    "adagrad": {**COUPLED, "optimizer.name": "adagrad"},
    "sgdn": {**COUPLED, "optimizer.name": "sgdn", "optimizer.momentum": 0.9},
    "sgd": {**COUPLED, "optimizer.name": "sgd", "optimizer.momentum": 0.9},
}
ADADELTA = {**OPTIMIZERS["adadelta"], "optimizer.lr": 0.1}
CROP_FLIP = {"augment.crop.padding": 4, "augment.crop.mode": "zero", "augment.flip": "random"}
MIXED = {"mix.name": "mixup", "mix.alpha": 1.0, "mix.block": 0}
HELD_OUT = {"val.num": 5000, "val.seed": 43}
AS_RUN = {"schedule.name": "step", "schedule.gamma": 0.1, "schedule.after": 100, "schedule.period": 1}
ERASING = {"name": "erasing", "p": 0.5, "scale": (0.02, 0.33), "ratio": (0.3, 3.3)}
R1 = {
    "batch_size": 64,
    "optimizer.name": "adam",
    "optimizer.weight_decay": 0.0,
    "normalise.mean": R1_MEAN,
    "normalise.std": R1_STD,
    "val": None,
}
R1_AUGMENTED = {
    **CROP_FLIP,
    **ops(
        {"name": "affine", "degrees": 0, "shear": 10, "scale": (0.8, 1.2)},
        {"name": "rotation", "degrees": 10},
        {"name": "color-jitter", "brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
    ),
}
R1_FINAL = {
    **R1,
    **R1_AUGMENTED,
    "arch": "n3-b2-c85-p8",
    "epochs": 500,
    "schedule.name": "exponential",
    "schedule.gamma": 0.9,
    "schedule.period": 10,
    "reported.accuracy": 0.9252,
    "reported.params": 4_895_755,
}
STATED: dict[str, dict[str, Any]] = {
    "r0-resnet24-as-run": {
        **R0,
        **ADADELTA,
        **AS_RUN,
        **CROP_FLIP,
        **MIXED,
        **HELD_OUT,
        "epochs": 200,
        "reported.accuracy": 0.9398,
    },
    "r0-resnet24-as-printed": {
        **R0,
        **ADADELTA,
        **CROP_FLIP,
        **MIXED,
        **HELD_OUT,
        "schedule.name": "step",
        "schedule.gamma": 0.1,
        "schedule.period": 100,
        "schedule.after": 0,
        "reported.accuracy": 0.948,
    },
    "r0-plain": {**R0, **ADADELTA, **CROP_FLIP, "mix": None, "epochs": 50, "reported.accuracy": 0.9109},
    "r0-step": {
        **R0,
        **ADADELTA,
        **AS_RUN,
        **CROP_FLIP,
        **HELD_OUT,
        "mix": None,
        "reported.accuracy": 0.9298,
    },
    "r0-continue": {
        **R0,
        **ADADELTA,
        **AS_RUN,
        **CROP_FLIP,
        **MIXED,
        **HELD_OUT,
        "reported.accuracy": 0.9459,
        "reported.began_from": "r0-resnet24-as-run",
    },
    "r0-transform2": {  # all but the transform as stated of the final run
        **R0,
        **ADADELTA,
        **AS_RUN,
        **MIXED,
        **HELD_OUT,
        **ops(
            {"name": "affine", "degrees": 30, "translate": (0.2, 0.2), "shear": 0.2},
            {"name": "normalise"},
            ERASING,
        ),
        "augment.crop": None,
        "augment.flip": "none",
        "epochs": 200,
        "reported.accuracy": None,
    },
    **{
        f"r0-optimizers-{name}": {
            **R0,
            **OPTIMIZERS[name],
            **CROP_FLIP,
            **MIXED,
            **HELD_OUT,
            "epochs": 60,
            "reported.accuracy": accuracy,
        }
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
        **R1_AUGMENTED,
        "arch": "n3-b2-c85",
        "epochs": 50,
        "optimizer.lr": 0.001,
        "schedule.name": "exponential",
        "schedule.gamma": 0.9,
        "schedule.period": 5,
        "reported.accuracy": 0.9104,
        "reported.params": 4_895_755,
    },
    "r1-single": {
        **R1,
        "arch": "n4-b2-c64",
        "epochs": 10,
        "optimizer.lr": 0.001,
        "augment.crop": None,
        "augment.flip": "none",
        "augment.ops": (),
        "reported.accuracy": 0.8292,
        "reported.params": 11_173_962,
    },
    "r1-final-text": {**R1_FINAL, "optimizer.lr": 0.001},
    "r1-final-notebook": {**R1_FINAL, "optimizer.lr": 0.01},
    "r2-improved-resnet": {
        **CROP_FLIP,
        **ops(
            {"name": "rotation", "degrees": 15},
            {"name": "color-jitter", "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1},
            {"name": "normalise"},
            ERASING,
        ),
        **COUPLED,
        "arch": "improved-resnet",
        "epochs": 400,
        "optimizer.name": "sgd",
        "optimizer.lr": 0.05,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 1e-4,
        "optimizer.decay": "all",
        "optimizer.lookahead.k": 5,
        "optimizer.lookahead.alpha": 0.5,
        "schedule.name": "cosine",
        "schedule.t_max": 400,
        "schedule.per": "epoch",
        "loss.label_smoothing": 0.1,
        "reported.accuracy": 0.86968,
        "reported.train_accuracy": 0.9867,
        "reported.params": 4_903_082,
    },
    "r3-resnet18-c42": {
        **CROP_FLIP,
        **COUPLED,
        **DECAY,
        **ops({"name": "grayscale", "p": 0.5}),
        "arch": "resnet18-c42",
        "epochs": 100,
        "batch_size": 32,
        "optimizer.name": "sgd",
        "optimizer.lr": 0.001,
        "optimizer.momentum": 0.9,
        "reported.accuracy": 0.909545,
        "reported.train_accuracy": 0.982726,
        "reported.params": 4_815_940,
    },
}

# What a report leaves open: by key, the open choice that says what was chosen.
BY_ALL = {"drop_last": "the last incomplete batch"}
COMPARED = {f"schedule.{key}": "schedule" for key in ("name", "t_max", "per")}
CHOSEN: dict[str, dict[str, str]] = {
    "r0-resnet24-as-run": {},
    "r0-resnet24-as-printed": {"epochs": "epochs"},
    "r0-plain": {"schedule.name": "schedule", "val": "whether images are held out"},
    "r0-step": {"epochs": "epochs"},
    "r0-continue": {"epochs": "epochs"},
    "r0-transform2": {},
    "r0-optimizers-adam": {**COMPARED, "optimizer.betas": "betas"},
    **{f"r0-optimizers-{name}": {**COMPARED, "optimizer.lr": "lr"} for name in OPTIMIZERS if name != "adam"},
    "r1-single": {"schedule.name": "schedule"},
    "r2-improved-resnet": {"batch_size": "batch size", "dropout.stage": "dropout after stages"},
    "r3-resnet18-c42": {"schedule.name": "schedule"},
}
# Words about a recipe, which change nothing of what is learned.
WORDS = {"name", "description", "open_choices", "source", "printed", "accuracy_of", "erratum"}


@pytest.mark.parametrize("name", STATED)
def test_recipe_says_what_its_report_states(name: str) -> None:
    made = science(name)
    stated = STATED[name]
    assert {key: made.get(key, "absent") for key in stated} == stated


@pytest.mark.parametrize("name", STATED)
def test_every_key_is_stated_or_chosen(name: str) -> None:
    """What is written in a report's recipe is held above, or is an open choice that tells its value."""
    table = {key: value for key, value in parse_toml(recipe_text(name)).items() if key not in WORDS}
    written = {key for key in flat(table) if key.removeprefix("reported.") not in WORDS}
    chosen = BY_ALL | CHOSEN.get(name, {})
    assert written - STATED[name].keys() - chosen.keys() == set()
    assert STATED[name].keys().isdisjoint(chosen)

    made = science(name)
    choices = {choice.what: choice.chosen for choice in load_recipe(name).open_choices}
    for key, what in chosen.items():
        for value in made[key] if isinstance(made[key], tuple) else (made[key],):
            assert {"None": "none", "False": "kept"}.get(str(value), str(value)) in choices[what], key


@pytest.mark.parametrize(
    "name", [*(f"r0-optimizers-{name}" for name in OPTIMIZERS), "r1-joint", "r2-improved-resnet"]
)
def test_what_no_key_shows_is_told_too(name: str) -> None:
    """Which epoch's accuracy is taken for the printed one, and that a split which is optional is used."""
    recipe = load_recipe(name)
    choices = {choice.what: choice.chosen for choice in recipe.open_choices}
    assert choices["which epoch's accuracy is printed"] == "the last epoch's"
    held_out = "5,000, by seed 43" if recipe.val else None
    assert choices.get("whether images are held out") == held_out


# Figures and words without which an erratum does not say what is wrong.
ERRATA = {
    "r0-resnet24-as-run": ("r0-plain (91.09%)", "50 epochs", "no schedule", "on test", "r0-step, 92.98%"),
    "r0-resnet24-as-printed": ("94.8% test", "validation accuracy (94.84%)", "94.59%"),
    "r0-plain": ("93.98%", "mixup", "a quarter of the epochs", "no schedule"),
    "r0-continue": ("94.8% test", "validation accuracy (94.84%)", "94.59%"),
    "r1-joint": ("seven rows", "not the widest under 5M", "six feasible rows"),
    "r1-single": ("P=3", "global pooling"),
    "r1-final-text": ("notebook", ".01", "r1-final-notebook"),
    "r1-final-notebook": ("text", ".001", "r1-final-text"),
    "r3-resnet18-c42": ("mean of per-batch accuracies", "64 and 80", "11,173,962 and 17,454,170"),
}


def test_errata_say_what_is_wrong() -> None:
    printed = {name: load_recipe(name).reported for name in STATED}
    told = {name: reported.erratum for name, reported in printed.items() if reported and reported.erratum}
    assert told.keys() == ERRATA.keys()
    assert {name: [word for word in words if word not in told[name]] for name, words in ERRATA.items()} == {
        name: [] for name in ERRATA
    }
    plain, step, mixed = (load_recipe(name) for name in ("r0-plain", "r0-step", "r0-resnet24-as-run"))
    assert mixed.epochs == 4 * plain.epochs and plain.schedule.name == "constant"
    parts = step.model_dump(include={"epochs", "optimizer", "schedule", "augment", "val"})
    assert parts == mixed.model_dump(include=set(parts))  # like for like: mixup alone differs


def test_every_report_recipe_is_checked() -> None:
    assert {*STATED, *OURS} == set(recipe_names())


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
        "optimizer.name": "muon",
        "schedule.name": "linear",
        "schedule.end": 0.0,
        "augment.crop.mode": "reflect",
        "augment.crop.padding": 2,
        "augment.flip": "alternating",
        "init.dirac": True,
    }
    assert {key: made[key] for key in wanted} == wanted
    assert FAST.loss.label_smoothing > 0 and FAST.optimizer.weight_decay == 0
    assert FAST.schedule.warmup > 0  # type: ignore[union-attr]
    assert FAST.ema is not None


def test_fastest_brings_a_network_of_our_own_within_the_reports_budget() -> None:
    fastest = load_recipe("fastest")
    assert [entry.table for entry in entries_named(fastest.arch)] == ["ours"]
    assert fastest.arch_spec().num_params() < BUDGET
    assert fastest.image_sizes(32) == (24,) * 7 + (32,) * 7 and fastest.tta == "flip-shift"
    assert fastest.init.whiten is not None and fastest.init.whiten.frozen


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
