"""Every packaged recipe trains two epochs on a few images, resumes to the same bits, and gives a report page.

The images are made JPEGs of stripes, or where ``$FASTRESNET_IMAGES`` names CIFAR-10's, a few of those: see
``real_images``.
"""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from page_reader import read_page, table
from test_report import check_readable
from tiny_runs import StopAt, assert_same_science, only_run, tiny_config

from fastresnet.engine.fit import Interrupted
from fastresnet.loaders.dataset import Dataset
from fastresnet.recipe import Recipe, load_recipe, recipe_names
from fastresnet.report.page import write_report
from fastresnet.training import resume, train

NUM_TRAIN, NUM_VAL, NUM_TEST, BATCH = 80, 16, 40, 32


@pytest.fixture(scope="module")
def few(real_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images of ``real_dataset``, of every class."""
    arrays = {"class_names": np.array(real_dataset.class_names)}
    for name, split, count in (
        ("train", real_dataset.train, NUM_TRAIN),
        ("test", real_dataset.test, NUM_TEST),
    ):
        places = np.linspace(0, len(split.labels) - 1, count).round().astype(int)
        arrays |= {f"{name}_images": split.images[places], f"{name}_labels": split.labels[places]}
    out = tmp_path_factory.mktemp("few") / "few.npz"
    np.savez(out, **arrays)
    return out


def shortened(name: str) -> Recipe:
    """Two epochs of a recipe, on a narrow network with its stages, kind of block and activation."""
    recipe = load_recipe(name)
    spec = recipe.arch_spec()
    stages = spec.num_stages
    narrow = spec.replace(
        blocks=(1,) * stages, channels=tuple(4 << i for i in range(stages)), stem_channels=None
    )
    averaged = {"ema.every": 1} if recipe.ema else {}
    return recipe.with_overrides({"arch": narrow.slug, "epochs": 2, "batch_size": BATCH} | averaged)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_trains_resumes_and_has_a_page(name: str, few: Path, tmp_path: Path) -> None:
    recipe = shortened(name)
    config = tiny_config(few, val=NUM_VAL, compile="off")
    whole = train(recipe, config, runs_dir=tmp_path / "whole")
    assert [row["epoch"] for row in whole.epochs] == [1, 2]
    with pytest.raises(Interrupted):
        train(recipe, config, runs_dir=tmp_path / "cut", listener=StopAt(3, signal.SIGTERM))
    resumed = resume("last", runs_dir=tmp_path / "cut")
    assert resumed.test_accuracy == whole.test_accuracy
    assert_same_science(only_run(tmp_path / "cut"), only_run(tmp_path / "whole"))

    written = write_report(["last"], runs_dir=tmp_path / "cut")
    page = read_page(written.page)
    check_readable(page)
    assert written.notices == () and "on few" in page.one("h1").text
    assert "resumed" in next(page.all("svg")).text
    rows = {row[0]: row[2] for row in table(page, "Loss and accuracy on few").rows()}
    assert rows["test"] == f"{whole.test_accuracy:.2%}"
    if recipe.reported is not None:
        printed = recipe.reported.accuracy
        assert rows.get("printed by its source") == (None if printed is None else f"{printed:.2%}")
        assert "What was printed is of another setting" in page.text
        assert f"epochs 2, not {load_recipe(name).epochs}" in page.text
        assert (recipe.reported.erratum or "") in page.text
        assert all(choice.chosen in page.text for choice in recipe.open_choices)
