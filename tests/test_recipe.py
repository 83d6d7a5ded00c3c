"""Recipes: overrides, files of one's own, and one-line errors with the line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from fastresnet.bench.factors import FactorFile
from fastresnet.errors import UserError
from fastresnet.recipe import Recipe, load_recipe, recipe_names, recipe_text
from fastresnet.run import RunConfig
from fastresnet.sweep_spec import SweepSpec
from fastresnet.toml_model import EXPLAINED, requirement, tags_of

FAST = load_recipe("fast")


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
    plain = made.with_overrides({"augment.crop": "none", "augment.flip": "none", "tta": "None"})
    assert (plain.augment.crop, plain.augment.flip, plain.tta) == (None, "none", "none")
    assert load_recipe("fast") == FAST  # a recipe is not changed by overriding it


def test_another_optimizer_keeps_what_both_have() -> None:
    decayed = FAST.with_overrides({"optimizer.weight_decay": 5e-4, "optimizer.decay": "filters"})
    made = decayed.with_overrides(
        {"optimizer.eps": "1e-7", "optimizer.name": "adam", "optimizer.lr": "0.001"}
    )
    assert made.optimizer.model_dump() == {
        "name": "adam",
        "lr": 0.001,
        "weight_decay": 5e-4,
        "decay": "filters",
        "bn_bias_lr_scale": 1.0,
        "head_lr_scale": 1.0,
        "lookahead": None,
        "betas": (0.9, 0.999),
        "eps": 1e-7,
    }
    assert FAST.with_overrides({"schedule.name": "cosine"}).schedule.warmup == 0.15  # type: ignore[union-attr]
    assert FAST.with_overrides({}) is FAST


def test_arch_takes_the_recipes_activation() -> None:
    spec = FAST.with_overrides({"activation": "silu"}).arch_spec()
    assert spec.activation == "silu"
    assert FAST.arch_spec().activation == "gelu"
    assert FAST.with_overrides({"activation": "none"}).arch_spec().activation == "relu"  # the arch's own
    for own in ("leaky_relu", "gelu", "silu"):
        assert FAST.with_overrides({"arch": f"n2-b1-c4-{own}"}).arch_spec().activation == own


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
    (
        {"optimizer.momentm": "1"},
        r"unknown key 'optimizer.momentm'; did you mean 'optimizer.momentum'\? \(allowed: bn",
    ),
    ({"lr": "1"}, r"unknown key 'lr'; did you mean 'optimizer.lr'\?"),
    ({"label_smoothing": "0"}, r"unknown key 'label_smoothing'; did you mean 'loss.label_smoothing'\?"),
    ({"optimizer.k": "5"}, r"unknown key 'optimizer.k'; did you mean 'optimizer.lookahead.k'\?"),
    ({"optimizer.lr": "-1"}, r"optimizer.lr is -1; it must be above 0"),
    ({"optimizer.lr": "nan"}, r"optimizer.lr is nan; it must be"),
    (
        {"optimizer.name": "adm"},
        r"optimizer.name is 'adm'; did you mean 'adam'\? \(allowed: adadelta, .*muon\)",
    ),
    ({"epochs": "0"}, r"epochs is 0; it must be at least 1"),
    ({"epochs": "ten"}, r"epochs is 'ten'; it must be a whole number"),
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
    ({"mix.name": "mixup", "mix.block": "7"}, r"mix.block is 7, which does not divide batch_size 128"),
    ({"mix.alpha": "1"}, r"mix.name is missing"),
    ({"schedule": "{name = 'step'}"}, r"schedule.period is missing"),
    ({"schedule": "{period = 3}"}, r"schedule.name is missing \(allowed: constant, step"),
    ({"optimizer": "{name = 'sgdn', lr = 0.1, momentum = 0}"}, r"optimizer: momentum is 0"),
    ({"loss.keep": "0"}, r"loss.keep is 0; it must be above 0"),
    ({"init.whiten": "{num = 0}"}, r"init.whiten.num is 0; it must be at least 1"),
    ({"norm.momentum": "0"}, r"norm.momentum is 0; it must be above 0"),
    (
        {"norm.train_scale": "false", "init.zero_gamma": "true"},
        r"norm.train_scale is false, so the scales that init.zero_gamma .* set init.zero_gamma to false",
    ),
    (
        {"arch": "n3-b1-c8-plain", "init.zero_gamma": "true"},
        r"the blocks of n3-b1-c8-plain have no shortcuts, so with init.zero_gamma .* set it to false",
    ),
    (
        {"ema.lookahead": "true", "optimizer.lookahead": "{k = 5}"},
        r"ema.lookahead and optimizer.lookahead are two kinds of the same; leave one of them out",
    ),
    ({"name": "Fast Two"}, r"name is 'Fast Two'; it must be lower case letters, digits and hyphens$"),
    ({"mix": "cutmix"}, r"mix is 'cutmix'; it must be a table of keys, as in \{name = \"cutmix\"\}$"),
    ({"optimizer": "3"}, r"optimizer is 3; it must be a table of keys, as in \{name = \"adadelta\"\}$"),
    ({"augment.crop": "4"}, r"augment.crop is 4; it must be a table of keys \(allowed: mode, padding\)$"),
    (
        {"augment.ops": "[{name=cutout}]"},
        r"augment.ops is '\[\{name=cutout\}\]'; it must be a list, and .* not TOML: words in it stand in quotes$",
    ),
    (
        {"augment.ops": '[{name = "affine", scale = 1.2}]'},
        r"augment.ops.0.scale is 1.2; it must be a list$",
    ),
    ({"arch": "resnet25"}, r"^unknown architecture 'resnet25'; did you mean 'resnet24'\? `fastresnet archs`"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=[str(m[0]) for m in MISTAKES])
def test_a_wrong_override_is_explained(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        FAST.with_overrides(overrides)
    assert "\n" not in str(caught.value)


ODD = (
    None,
    True,
    -(10**9),
    0.5,
    10**30,
    float("nan"),
    "?\0",
    [],
    [1] * 9,
    {},
    {"name": "?"},
    {"?": 1},
    [[]],
    b"",
)


def parts_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models in an annotation, and in theirs."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from parts_of(field.annotation)
    for inner in get_args(annotation):
        yield from parts_of(inner)


@pytest.mark.parametrize("root", [Recipe, SweepSpec, RunConfig, FactorFile])
def test_every_requirement_is_in_our_own_words(root: type[BaseModel]) -> None:
    kinds = set()
    for part in dict.fromkeys(parts_of(root)):
        names = [{"name": tag} for tag in tags_of(part)] or [{}]
        for field, value, named in itertools.product(part.model_fields, ODD, names):
            try:
                part.model_validate({**named, field: value})
            except ValidationError as error:
                for found in error.errors():
                    kinds.add(found["type"])
                    if found["type"] not in EXPLAINED:
                        assert requirement(found).startswith("it must "), found
                        assert "nput" not in requirement(found) and "valid" not in requirement(found), found
    assert len(kinds) > 4


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
        ("lr = 0.1", "lrr = 0.1", 8, "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        ('name = "sgd"', 'name = "sdg"', 7, "optimizer.name is 'sdg'; did you mean 'sgd'?"),
        ("lr = 0.1\n", "", 6, "optimizer.lr is missing"),
        ("[schedule]", "[scedule]", 10, "unknown key 'scedule'; did you mean 'schedule'?"),
        ("degrees = 15", "degrees = -5", 16, "augment.ops.0.degrees is -5"),
        ("0.3, 3.3]", "3.3, 0.3]", 18, "augment.ops.1: ratio is [3.3, 0.3]"),
        ("0.3, 3.3]", "0.3, -3.3]", 19, "augment.ops.1.ratio.1 is -3.3"),
        ('"resnet8"', '"resnet25"', 2, "unknown architecture 'resnet25'; did you mean 'resnet24'?"),
        ('"constant"', '"constant"\n[mix]\nname = "mixup"\nblock = 7', 14, "mix.block is 7, which does not"),
        (
            '"constant"',
            '"constant"\n[norm]\ntrain_scale = false\n[init]\nzero_gamma = true',
            13,
            "norm.train_scale is false, so",
        ),
        (
            '"constant"',
            '"constant"\n[[resize]]\nsize = 16\nuntil = 0.3\n[[resize]]\nsize = 8\nuntil = 0.5',
            16,
            "resize: size is 16, 8; each must be above the last",
        ),
        ('"sgd"', '"sgdn"\nmomentum = 0.0', 8, "optimizer: momentum is 0"),
        ("# one more", '{ name = "normalise" }, { name = "normalise" },', 17, "'normalise' more than once"),
        ("epochs = 3", "epochs = ", 3, "not TOML: invalid value"),
        ("epochs = 3", "epochs = 3\nepochs = 4", 4, "not TOML: epochs is given twice, first in line 3"),
        (
            "lr = 0.1",
            "lr = 0.1\nbetas = [\n1]\nbetas = [\n2]",
            11,
            "optimizer.betas is given twice, first in line 9",
        ),
        ("[augment]", "[schedule]", 13, "not TOML: cannot declare schedule twice"),
        ("[augment]", "[epochs]", 13, "not TOML: the table [epochs] has the name of a value"),
        ("0.3, 3.3] },\n]", "0.3, 3.3] },\n", 19, "not TOML: "),
        ("degrees = 15", f"degrees = {2**70}", 16, "not TOML: an integer has 71 bits"),
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
    assert message in text
    assert "\n" not in text
    assert text.startswith(f"{path}:{line}: ")


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
