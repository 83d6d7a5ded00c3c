"""The packaged sweeps against what the reports print; sweeps of one's own, and what is wrong in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastresnet.arch import get_arch
from fastresnet.errors import UserError
from fastresnet.recipe import load_recipe
from fastresnet.sweep_cells import Cell, science_of
from fastresnet.sweep_filter import CellFilter, select, select_steps
from fastresnet.sweep_spec import load_sweep, sweep_names

CONDITIONS = {"dataset": "0" * 64, "seed": 0}


def cells_of(name: str) -> list[Cell]:
    return [cell for _, cells in load_sweep(name).all_cells() for cell in cells]


# As the reports print them.
PRINTED = {
    "r1-n": ("N", [2, 3, 4, 5, 6], [0.8154, 0.8352, 0.8292, 0.8136, 0.8174]),
    "r1-b": (
        "B",
        list(range(1, 11)),
        [0.8016, 0.8258, 0.8338, 0.8333, 0.8366, 0.8371, 0.8481, 0.8418, 0.8340, 0.8333],
    ),
    "r1-c": (
        "C",
        [2, 4, 8, 16, 32, 64, 128, 256],
        [0.4722, 0.5843, 0.6928, 0.7407, 0.7918, 0.8292, 0.8363, 0.8426],
    ),
    "r1-f": ("F", [1, 3, 5], [0.3128, 0.8292, 0.8197]),
    "r1-p": ("P", [1, 2, 3, 4], [0.8244, 0.8250, 0.8272, 0.8255]),
    "r1-k": ("K", [1, 3, 5], [0.8255, 0.8292, 0.8197]),
}


@pytest.mark.parametrize("name", PRINTED)
def test_single_parameter_sweeps_are_as_printed(name: str) -> None:
    letter, values, accuracies = PRINTED[name]
    cells = cells_of(name)
    assert [cell.settings[letter] for cell in cells] == values
    assert [cell.printed_accuracy for cell in cells] == accuracies
    assert all(cell.params == cell.printed_params for cell in cells)
    assert all((cell.recipe.epochs, cell.recipe.batch_size) == (10, 64) for cell in cells)
    assert all(cell.recipe.optimizer == load_recipe("r1-single").optimizer for cell in cells)
    assert all(cell.recipe.arch_spec() == cell.spec for cell in cells)


def test_the_joint_grid_has_28_cells_of_which_22_are_printed() -> None:
    cells = cells_of("r1-joint")
    assert [(cell.settings["N"], cell.settings["B"]) for cell in cells] == [
        (n, b) for n in (2, 3, 4, 5) for b in range(1, 8)
    ]
    printed = [cell for cell in cells if cell.printed_accuracy is not None]
    assert (len(cells), len(printed)) == (28, 22)
    assert not any(cell.over_budget for cell in cells)
    one_wider = [
        get_arch(f"n{c.settings['N']}-b{c.settings['B']}-c{int(c.settings['C']) + 1}") for c in cells
    ]
    assert all(spec.num_params() > 5_000_000 for spec in one_wider)
    best = max(printed, key=lambda cell: cell.printed_accuracy or 0)
    assert (best.label, best.printed_accuracy, best.params) == ("N=3 B=2 C=85", 0.9104, 4_895_755)
    narrower = {cell.settings["C"]: cell.note for cell in printed if "printed for" in cell.note}
    assert set(narrower) == {259, 174, 107, 97, 129, 59, 21}
    assert narrower[259].startswith("printed for C=256;")
    absent = {cell.spec.slug for cell in cells if cell.printed_accuracy is None}
    assert absent == {"n3-b6-c47", "n3-b7-c44", "n4-b6-c23", "n4-b7-c21", "n5-b6-c11", "n5-b7-c10"}


def test_optimizers_are_printed_for_resnet24_alone() -> None:
    cells = cells_of("r0-optimizers")
    assert len(cells) == 45 and {cell.recipe.epochs for cell in cells} == {60}
    printed = {cell.recipe.optimizer.name: cell.printed_accuracy for cell in cells if cell.printed_accuracy}
    assert printed == {"adam": 0.8640, "adadelta": 0.8906, "adagrad": 0.8298, "sgdn": 0.8328, "sgd": 0.8265}
    assert {cell.settings["arch"] for cell in cells if cell.printed_accuracy} == {"resnet24"}
    notes = {cell.recipe.optimizer.name: cell.note for cell in cells if cell.settings["arch"] == "resnet8"}
    assert notes["adam"] == "printed for resnet24: 0.8640" and len(set(notes.values())) == 5
    assert {cell.note for cell in cells_of("r0-lr") if cell.printed_accuracy is None} == {""}
    lrs = {(c.recipe.optimizer.name, c.recipe.optimizer.lr): c.printed_accuracy for c in cells_of("r0-lr")}
    assert len(lrs) == 10 and {lr for _, lr in lrs} == {0.1, 0.001}
    assert lrs["adam", 0.001] == 0.8640 and lrs["adam", 0.1] is None and lrs["sgd", 0.1] == 0.8265


def test_the_sequence_sets_what_was_chosen_before() -> None:
    sweep = load_sweep("r3-sequential")
    assert sweep.steps == ("lr", "batch", "channels")
    by_step = dict(sweep.all_cells())
    accuracies = {step: [cell.printed_accuracy for cell in cells] for step, cells in by_step.items()}
    assert accuracies == {
        "lr": [0.8755, 0.8836, 0.8865],
        "batch": [0.8965, 0.8909, 0.8766],
        "channels": [0.9057, 0.8947, 0.9016],
    }
    # What later steps were printed at.
    assert {cell.recipe.optimizer.lr for cell in by_step["batch"] + by_step["channels"]} == {0.001}
    assert {cell.recipe.batch_size for cell in by_step["channels"]} == {32}
    (cell, *_) = sweep.cells("channels", {"optimizer.lr": 0.005, "batch_size": 64})
    assert cell.label == "optimizer.lr=0.005 batch_size=64 C=42"
    assert (cell.recipe.optimizer.lr, cell.recipe.batch_size) == (0.005, 64)
    assert cell.spec == get_arch("resnet18-c42")
    assert [c.params for c in by_step["channels"]] == [4_815_940, 11_173_962, 17_454_170]


def test_every_packaged_sweep_is_named_as_its_file() -> None:
    assert len(sweep_names()) == 10
    for name in sweep_names():
        assert load_sweep(name).spec.name == name and load_sweep(name).spec.title


def test_a_cells_key_follows_what_is_learned_and_nothing_else(tmp_path: Path) -> None:
    one, other = cells_of("r1-c")[:2]
    assert one.key(CONDITIONS) != other.key(CONDITIONS)
    assert one.key(CONDITIONS) != one.key({**CONDITIONS, "seed": 1})
    described = load_recipe("r1-single").with_overrides({"description": "else", "name": "else"})
    renamed = Cell(
        **{**vars(one), "recipe": described.with_overrides({"arch": one.spec.slug}), "note": "else"}
    )
    assert renamed.key(CONDITIONS) == one.key(CONDITIONS)
    longer = Cell(**{**vars(one), "recipe": one.recipe.with_overrides({"epochs": 11})})
    assert longer.key(CONDITIONS) != one.key(CONDITIONS)


def test_what_is_as_by_default_is_no_part_of_the_science() -> None:
    """So a key that recipes are given later leaves what was recorded before where it was."""
    recipe = load_recipe("fast")
    written = science_of(recipe)
    assert "mix" not in written and "norm" not in written
    assert written["optimizer"]["name"] == "muon" and "lookahead" not in written["optimizer"]
    for key, value in {"norm.momentum": 0.2, "mix": {"name": "mixup"}, "optimizer.momentum": 0.8}.items():
        assert science_of(recipe.with_overrides({key: value})) != written, key
    for key, value in {"norm.momentum": 0.1, "mix": "none", "optimizer.momentum": 0.6}.items():
        assert science_of(recipe.with_overrides({key: value})) == written, key


FILE = """\
name = "mine"
recipe = "fast"
budget = 2_000_000

[set]
epochs = 2
N = 3
B = 1

[grid]
C = [4, 8]
"optimizer.lr" = [
  0.1,
  0.2,
]
"""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_a_sweep_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        'name = "base"\narch = "resnet8"\nepochs = 3\nbatch_size = 8\n'
        '[optimizer]\nname = "sgd"\nlr = 0.1\n[schedule]\nname = "constant"\n'
    )
    sweep = load_sweep(written(tmp_path, FILE.replace('"fast"', '"base.toml"')))
    cells = sweep.cells()
    assert [cell.label for cell in cells][:2] == ["C=4 optimizer.lr=0.1", "C=4 optimizer.lr=0.2"]
    assert [cell.spec.slug for cell in cells] == ["n3-b1-c4-p4"] * 2 + ["n3-b1-c8-p4"] * 2
    assert (
        cells[1].recipe.optimizer.lr == 0.2 and cells[1].recipe.epochs == 2 and cells[1].recipe.name == "base"
    )
    over = load_sweep(written(tmp_path, FILE.replace("[4, 8]", "[4, 256]"))).cells()
    assert [cell.over_budget for cell in over] == [False, False, True, True]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("recipe =", "recipee =", 2, "unknown key 'recipee'; did you mean 'recipe'?"),
        ('"fast"', '"fsat"', 2, "unknown recipe 'fsat'; did you mean 'fast'?"),
        ("budget = 2_000_000", "budget = 0", 3, "budget is 0; it must be at least 1"),
        (
            "budget = 2_000_000",
            "budget = 1000",
            3,
            "every cell breaks it: the smallest, C=4 optimizer.lr=0.1, has 5,694",
        ),
        ("epochs = 2", "epochs = 0", 6, "epochs is 0; it must be at least 1"),
        ("epochs = 2", "epoch = 2", 6, "unknown key 'epoch'; did you mean 'epochs'?"),
        ("N = 3", "N = 0", 7, "N is 0: it must be a whole number from 1"),
        ("N = 3", "N = 9", 7, "image size 32 is too small for 9 stages"),
        ("C = [4, 8]", "C = [4, 8.5]", 11, "C is 8.5: it must be a whole number from 1 or 'widest'"),
        ("C = [4, 8]", "C = []", 11, "C has no values"),
        ("C = [4, 8]", "C = 4", 11, "grid.C is 4; it must be a list"),
        ('"optimizer.lr"', "optimizer.lr", 12, 'optimizer is a table; write "optimizer.lr" with the quotes'),
        ("N = 3", "ema.decay = 0.9", 7, 'ema is a table; write "ema.decay" with the quotes'),
        ('"mine"', '"My Sweep"', 1, "name is 'My Sweep'; it must be lower case letters, digits and hyphens"),
        ("C = [4, 8]", "C = [4, 4]", 11, "the cell C=4 optimizer.lr=0.1 is listed twice"),
        ("C = [4, 8]", "F = [3, 4]", 11, "F is 4: kernels[0] is 4; it must be an odd number from 1 to 31"),
        ("C = [4, 8]", "P = [4, 16]", 11, "pool (P) is 16 and the last map of 32x32 images is 8x8"),
        ("C = [4, 8]", "C = [[4], 8]", 11, "grid.C.0 is [4]; it must be a number, text, true or false"),
        ("  0.2,", "  -0.2,", 14, "optimizer.lr is -0.2; it must be above 0"),
        ('"optimizer.lr"', '"optimizer.lrr"', 12, "unknown key 'optimizer.lrr'"),
        ("C = [4, 8]", "seed = [0, 1]", 11, "unknown key 'seed': --seed sets it, for every cell alike"),
        ("epochs = 2", "limit_train = 2", 6, "unknown key 'limit_train': --limit-train sets it"),
        ('"optimizer.lr"', '"optimiser.lr"', 12, "unknown key 'optimiser.lr'"),
        ("[grid]", 'printed_table = "r1-z"\n[grid]', 10, "unknown key 'printed_table'"),
        ("[set]", 'printed_table = "r1-z"\n[set]', 5, "no table 'r1-z'; did you mean"),
        ("[set]", "cells = [{ set = { C = 4 } }]\n[set]", 5, "give one of a grid, cells and a sequence"),
        ("[grid]", "[grdi]", 10, "unknown key 'grdi'; did you mean 'grid'?"),
        ("budget = 2_000_000", "budget = ", 3, "not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    assert old in FILE
    path = written(tmp_path, FILE.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load_sweep(path).all_cells()
    text = str(caught.value)
    assert message in text and "\n" not in text
    assert text.startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    ("new", "line", "message"),
    [
        ('recipe = "r0-plain"\n[grid]\nN = [2, 3]', 4, "the base's stages differ in blocks"),
        ('recipe = "fast"\n[grid]\nC = ["widest"]', 4, "the widest that fits needs a budget"),
        ('recipe = "fast"\n[[cells]]\nset = { C = 4 }\n[[cells]]\nset = { C = 0 }', 6, "C is 0"),
        ('recipe = "fast"\n[[cells]]\nsett = { C = 4 }', 4, "unknown key 'cells.0.sett'; did you mean 'cells.0.set'?"),
        ('recipe = "fast"\n[[cells]]\nset = { C = 4 }\nprinted_accuracy = 84', 5, "cells.0.printed_accuracy is 84"),
        ('recipe = "fast"\n[[sequence]]\nname = "a"', 3, "sequence.0: give either a grid or cells"),
        ('recipe = "fast"\n[[sequence]]\nname = "a"\ngrid.batch_size = [32]\n[[sequence]]\nname = "b"\n'
         "grid.epochs = [0]", 8, "epochs is 0"),
        ('recipe = "fast"\n[[sequence]]\nname = "a"\ngrid.C = [4]\n[[sequence]]\nname = "a"\ngrid.C = [8]', 7,
         "two steps of the sequence have the name 'a'"),
        ('recipe = "fast"', 1, "give one of a grid, cells and a sequence"),
        ('recipe = "none.toml"\n[grid]\nC = [4]', 2, "cannot read recipe"),
    ],
)  # fmt: skip
def test_other_mistakes_are_named_with_their_line(tmp_path: Path, new: str, line: int, message: str) -> None:
    path = written(tmp_path, f'name = "mine"\n{new}\n')
    with pytest.raises(UserError) as caught:
        load_sweep(path).all_cells()
    assert str(caught.value).startswith(f"{path}:{line}:") and message in str(caught.value)


def test_unknown_sweeps_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown sweep 'r1-jiont'; did you mean 'r1-joint'"):
        load_sweep("r1-jiont")
    with pytest.raises(UserError, match=r"cannot read sweep .*no\.toml: No such file"):
        load_sweep(str(tmp_path / "no.toml"))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["C=2..64"], [2, 4, 8, 16, 32, 64]),
        (["C = 64..64"], [64]),
        (["C=4, 16"], [4, 16]),
        (["C=2..64", "C=8,128"], [8]),
    ],
)
def test_filters_choose_cells(texts: list[str], expected: list[int]) -> None:
    chosen = select(cells_of("r1-c"), [CellFilter.parse(text) for text in texts])
    assert [cell.settings["C"] for cell in chosen] == expected


def test_filters_choose_by_text() -> None:
    cells = cells_of("r0-optimizers")
    filters = [
        CellFilter.parse("arch=resnet8"),
        CellFilter.parse("recipe=r0-optimizers-adam,r0-optimizers-sgd"),
    ]
    assert [cell.recipe.optimizer.name for cell in select(cells, filters)] == ["adam", "sgd"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("C", "is not KEY=VALUES"),
        ("C=", "is not KEY=VALUES"),
        ("C=a..b", "a range is LOW..HIGH"),
        ("B=2", "no cell has 'B' (allowed: C)"),
        ("C=3", "names no cell; in this sweep C is 2, 4, 8, 16, 32, 64, 128, 256"),
        ("C=300..", "names no cell"),
    ],
)
def test_a_wrong_filter_is_explained(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        select(cells_of("r1-c"), [CellFilter.parse(text)])
    assert message in str(caught.value)


def test_a_sequence_takes_no_filter() -> None:
    with pytest.raises(UserError, match="--cells is for sweeps of one step"):
        select_steps(load_sweep("r3-sequential").all_cells(), [CellFilter.parse("C=42")])


@pytest.mark.parametrize(
    ("setting", "slug"),
    [
        ("F = 5", "n3-b2-c{}-f5"),
        ("F = 1", "n3-b2-c{}-f1"),
        ("P = 1", "n3-b2-c{}-p1"),
        ("stem = 7", "n3-b2-c{}-stem7"),
        ('arch = "n3-b2-c8-bottleneck"', "n3-b2-c{}-bottleneck"),
        ('arch = "n3-b0,2,1-c8-maxpool"', "n3-b0,2,1-c{}-maxpool"),
    ],
)
def test_the_widest_is_that_of_the_cells_own_network(tmp_path: Path, setting: str, slug: str) -> None:
    arch = "" if setting.startswith("arch") else 'arch = "n3-b2-c8"\n'
    given = 'name = "mine"\nrecipe = "r1-joint"\nbudget = 5_000_000\nprinted_table = "r1-table8"\n'
    text = f'{given}[set]\n{arch}{setting}\n[grid]\nC = ["widest"]\n'
    (cell,) = load_sweep(written(tmp_path, text)).cells()
    width = cell.spec.channels[0]
    assert cell.settings == {"C": width} and cell.spec == get_arch(slug.format(width))
    assert cell.params <= 5_000_000 < get_arch(slug.format(width + 1)).num_params()
    assert cell.recipe.arch_spec() == cell.spec
    assert cell.printed_accuracy is None  # the table's networks are others


def test_a_pool_beyond_the_last_map_is_blamed_on_p(tmp_path: Path) -> None:
    text = 'name = "mine"\nrecipe = "r1-joint"\nbudget = 5_000_000\n[grid]\nC = ["widest"]\nP = [99]\n'
    with pytest.raises(UserError, match=r"mine\.toml:6: pool \(P\) is 99"):
        load_sweep(written(tmp_path, text)).cells()
