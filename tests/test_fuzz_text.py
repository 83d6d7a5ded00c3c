"""Fuzzers of what a user writes: slugs, recipes, sweeps, settings and the command line's values."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from fuzzing import examples, outcome
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fastresnet.arch import ArchSpec, get_arch
from fastresnet.cli import main as command
from fastresnet.errors import UserError
from fastresnet.recipe import Recipe, load_recipe, recipe_names, recipe_text
from fastresnet.run import RunConfig
from fastresnet.slug import format_slug, parse_slug
from fastresnet.sweep_spec import load_sweep

DEEP = 3000  # levels; more than Python's own stack takes

# ------------------------------------------------------------------------------------------------------------ slugs

numbers = st.integers(0, 12) | st.integers(0, 10**9)
values = st.lists(numbers, min_size=1, max_size=5).map(lambda found: ",".join(map(str, found)))
parts = st.one_of(
    st.tuples(st.sampled_from("nbcfkp"), values).map("".join),
    st.tuples(st.just("stem"), values, st.sampled_from(["", "x4", "x", "x0"])).map("".join),
    st.tuples(st.sampled_from(["dh", "db", "ds"]), st.sampled_from(["0", "0.5", ".1", "1", "9e9", "-1"])).map(
        "".join
    ),
    st.sampled_from(["bottleneck", "gelu", "silu", "relu", "", "n٣", "b²"]),
    st.text(max_size=8),
)


@examples(200)
@given(text=st.lists(parts, min_size=1, max_size=8).map("-".join) | st.text(max_size=30))
@example(text="n9-b999999-c999999")
def test_a_slug_is_a_network_or_one_line(text: str) -> None:
    found = outcome(get_arch, text)
    if isinstance(found, ArchSpec):
        assert parse_slug(format_slug(found)) == found
        outcome(found.num_params, 10, 32)
        outcome(found.num_multiply_adds, 10, 32)


# ---------------------------------------------------------------------------------------------------------- recipes

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.floats(),
    st.text(max_size=10),
    st.sampled_from(["sgdn", "adamw", "cosine", "flip", "none", "fast"]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, entry in items for found in leaves(entry, (*path, key)))]


@examples(120)
@given(name=st.sampled_from(recipe_names()), data=st.data())
def test_an_altered_recipe_is_a_recipe_or_one_line(name: str, data: st.DataObject) -> None:
    content = load_recipe(name).to_json_dict()
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from([path for path in leaves(content) if path]))
        at: Any = content
        for key in parents:
            at = at[key]
        kind = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if kind == "replace" or isinstance(at, list):
            at[last] = data.draw(anything)
        elif kind == "remove":
            del at[last]
        else:
            at[data.draw(st.text(max_size=8))] = data.draw(anything)
    found = outcome(Recipe.from_json_dict, content)
    if isinstance(found, Recipe):
        assert Recipe.from_json_dict(found.to_json_dict()) == found
        outcome(found.arch_spec)


@examples(100)
@given(name=st.sampled_from(recipe_names()), data=st.data())
def test_an_altered_recipe_file_is_a_recipe_or_one_line(
    name: str, data: st.DataObject, tmp_path: Path
) -> None:
    raw = bytearray(recipe_text(name).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        some = data.draw(
            st.binary(max_size=6) | st.sampled_from([b"[", b"[[", b"=", b'"', b"'''", b"{", b"\n", b"9" * 30])
        )
        raw[place : place + data.draw(st.integers(0, 6))] = some
    file = tmp_path / "altered.toml"
    file.write_bytes(raw)
    found = outcome(load_recipe, str(file))
    assert isinstance(found, Recipe) or "altered.toml" in str(found)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epochs = " + "[" * DEEP, "nested too deeply"),
        ("epochs = " + "{a=" * DEEP + "1" + "}" * DEEP, "nested too deeply"),
        ("epochs = " + "9" * 5000, "limit"),
        ("epochs = 0x" + "f" * 5000, "20000 bits"),
        ("epochs = 9223372036854775807", "epochs is 9223372036854775807"),
        ("a" + ".a" * 900 + " = 1", "unknown key 'a'"),
        ("epochs" + ".a" * 900 + " = 1", "epochs is {'a': {'a': {"),
    ],
)
def test_toml_that_is_deep_or_huge_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    """Each of these ended in a traceback, of too deep a recursion or of an integer too long to be written."""
    file = tmp_path / "odd.toml"
    file.write_text(recipe_text("fast").replace("epochs = ", f"{text}\n#", 1))
    for load in (load_recipe, load_sweep):
        found = outcome(load, str(file))
        assert isinstance(found, UserError) and str(found).startswith(str(file))
    assert says in str(outcome(load_recipe, str(file)))


@examples(250)
@given(
    key=st.sampled_from(
        [
            ".".join(map(str, path))
            for path in leaves(load_recipe("r2-improved-resnet").to_json_dict())
            if path
        ]
    )
    | st.text(st.sampled_from("abclr.0²9_-"), max_size=12),
    value=st.text(max_size=12)
    | st.sampled_from(["[" * DEEP, "9" * 5000, "nan", "inf", "{}", "[1]", "{a.b=1}", "none"]),
)
@example(key="augment.ops.²", value="1")
@example(key="epochs", value="{a" + ".a" * 500 + "=1}")
def test_a_setting_is_taken_or_one_line(key: str, value: str) -> None:
    outcome(load_recipe("r2-improved-resnet").with_overrides, {key: value})


@examples(150)
@given(
    options=st.dictionaries(st.sampled_from([*RunConfig.model_fields, "thread", ""]), anything, max_size=4)
)
@example(options={"save_every_s": float("inf")})
@example(options={"threads": 10**30})
@example(options={"workers": 10**30})
def test_a_config_can_be_written_or_is_one_line(options: dict[str, Any]) -> None:
    found = outcome(RunConfig.parse, **options)
    if isinstance(found, RunConfig):
        assert RunConfig.parse(**found.model_dump(mode="json")) == found
        assert "Infinity" not in found.model_dump_json() and found.threads < 10**5


# ----------------------------------------------------------------------------------------------------------- sweeps

SWEEP = 'name = "tiny"\nrecipe = "r1-single"\n'
axes = st.dictionaries(
    st.sampled_from(["N", "B", "C", "F", "K", "P", "stem", "recipe", "epochs", "optimizer.lr", "x", "C.x"]),
    st.lists(st.integers(-2, 70) | st.sampled_from([0.5, "1", "fast", "", "[", True]), max_size=4),
    max_size=3,
)


@examples(100)
@given(grid=axes)
def test_a_sweep_has_cells_or_one_line(grid: dict[str, list[Any]], tmp_path: Path) -> None:
    file = tmp_path / "odd.toml"
    file.write_text(
        SWEEP + "[grid]\n" + "".join(f'"{key}" = {json.dumps(found)}\n' for key, found in grid.items())
    )
    found = outcome(load_sweep, str(file))
    if not isinstance(found, UserError):
        outcome(found.all_cells)


def test_a_grid_of_too_many_cells_is_one_line(tmp_path: Path) -> None:
    """It was enumerated, for hours."""
    file = tmp_path / "odd.toml"
    file.write_text(SWEEP + "[grid]\n" + "".join(f"{key} = {list(range(1, 101))}\n" for key in "NBCF"))
    found = outcome(load_sweep, str(file))
    assert "its values make 100,000,000 cells; a sweep may have 10,000" in str(found)


# ------------------------------------------------------------------------------------------------- the command line

OPTIONS = {
    "train": "recipe arch epochs batch-size set seed data image-size val limit-train target resume init-from runs-dir "
    "save-every eval-every device loader workers amp compile kernels threads tta nonsense",
    "sweep": "cells epochs seed storage name heartbeat list",
    "archs": "budget stages blocks json",
    "eval": "runs-dir data device",
    "predict": "top-k runs-dir",
    "report": "sweep out",
    "export": "to out",
}
typed = st.text(max_size=8) | st.sampled_from(
    [
        "0",
        "-1",
        "1",
        "1e999",
        "nan",
        "9" * 30,
        "9" * 5000,
        "auto",
        "cuda:99",
        "n2-b1-c4",
        "optimizer.lr=1",
        "\0",
        "\udcff",
        "a/b",
    ]
)


@examples(40)
@given(data=st.data())
def test_a_command_line_ends_in_one_line(data: st.DataObject) -> None:
    """No data is there, so nothing is trained; and no value ends in anything else than exit status 0 or 2."""
    name = data.draw(st.sampled_from(sorted(OPTIONS)))
    words = [name, *data.draw(st.lists(st.sampled_from(["last", "tiny"]), max_size=1))]
    for _ in range(data.draw(st.integers(0, 3))):
        words += [f"--{data.draw(st.sampled_from(OPTIONS[name].split()))}", data.draw(typed)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if name == "train" and "--data" not in words:
            words += ["--data", "absent.npz"]
        if name == "sweep":
            words += ["--list"]
        done = CliRunner().invoke(command.app, words)
        assert not list(Path(folder).iterdir()), words
    shown = done.exception
    if shown is not None and not isinstance(shown, SystemExit):
        assert isinstance(shown, UserError), (words, shown)
        assert "\n" not in " ".join(str(shown).split())
