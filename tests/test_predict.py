"""A trained network, loaded: what it predicts, of what, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from family import CLASSES, Family, family, refused, typed
from PIL import Image
from typer.testing import CliRunner

import fastresnet
from fastresnet.cli.main import app
from fastresnet.errors import UserError
from fastresnet.evaluation import evaluate_run, evaluate_samples
from fastresnet.loaders.dataset import open_dataset
from fastresnet.loaders.sources.decode import decode

__all__ = ["family"]  # a fixture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of four images of different sizes and kinds, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, size in (
        ("b.png", (8, 8)),
        ("a.jpg", (57, 91)),
        ("deeper/c.JPEG", (300, 40)),
        ("d.png", (5, 3)),
    ):
        pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_predictions_are_those_that_are_evaluated(family: Family) -> None:
    network = fastresnet.load(family.parent.name, runs_dir=family.runs_dir)
    test = open_dataset(str(family.data)).test
    found = network.predict(np.asarray(test.images))
    labels = np.array([prediction.labels[0] for prediction in found])
    evaluation = evaluate_run(family.parent.name, runs_dir=family.runs_dir)
    assert (labels == test.labels).mean() == pytest.approx(evaluation.accuracy)
    outcomes = evaluate_samples(family.parent.name, runs_dir=family.runs_dir)
    assert outcomes.evaluation == evaluation
    assert (outcomes.predictions == labels).all() and (outcomes.labels == test.labels).all()
    assert outcomes.losses.mean() == pytest.approx(evaluation.loss, rel=1e-5)
    np.testing.assert_allclose(
        outcomes.probabilities.max(1), [prediction.probabilities[0] for prediction in found], atol=1e-6
    )


def test_what_is_loaded_is_described(family: Family) -> None:
    network = fastresnet.load(family.parent, weights="best")
    assert (network.run, network.weights) == (family.parent.name, "best")
    assert network.class_names == CLASSES and network.image_size == 8
    assert network.dataset == "tiny" and not network.is_builtin
    assert network.spec.slug == "n2-b1-c4-gelu"
    assert not network.module.training
    assert not any(weight.requires_grad for weight in network.module.parameters())


def test_last_and_best_weights_differ(family: Family) -> None:
    images = torch.rand(2, 3, 8, 8)
    logits = {
        which: fastresnet.load(f"{family.parent}", weights=which).module(images) for which in ("last", "best")
    }
    best = json.loads((family.parent / "result.json").read_text())["best"]["epoch"]
    assert torch.equal(logits["last"], logits["best"]) == (best == 3)
    with pytest.raises(UserError, match="must be last or best"):
        fastresnet.load(family.parent, weights="worst")  # type: ignore[arg-type]


def test_images_of_any_size_are_treated_as_when_packed(family: Family, photos: Path) -> None:
    network = fastresnet.load(family.parent)
    path = photos / "a.jpg"
    pixels = torch.from_numpy(decode(path, "a.jpg", 8).copy()).permute(2, 0, 1)[None].float() / 255
    expected = network.module(pixels).softmax(1)[0]
    (found,) = network.predict(path, top_k=3)
    assert found.probabilities == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-6)
    assert [CLASSES[label] for label in found.labels] == list(found.class_names)
    assert sum(found.probabilities) == pytest.approx(1, abs=1e-5)
    many = network.predict([path, photos / "d.png"], top_k=3)
    assert many[0].probabilities == pytest.approx(found.probabilities, abs=1e-6)


def test_arrays_are_scaled_too(family: Family) -> None:
    network = fastresnet.load(family.parent)
    flat = np.full((1, 64, 20, 3), 127, np.uint8)
    small = np.full((1, 8, 8, 3), 127, np.uint8)
    assert network.predict(flat) == network.predict(small)
    assert network.predict(small[:0]) == []
    for wrong in (small[0], small.astype(np.float32), small[..., :1]):
        with pytest.raises(UserError, match="uint8 array"):
            network.predict(wrong)


def test_the_command_ranks_the_classes_of_a_folder(family: Family, photos: Path) -> None:
    shown = typed("predict", family.parent, photos, "--top-k", 2)
    lines = shown.splitlines()
    assert lines[0].startswith(f"run {family.parent.name}, last weights, trained on tiny")
    names = [line.split("  ")[0].strip() for line in lines[1:]]
    assert names == [str(photos / name) for name in ("a.jpg", "b.png", "d.png", "deeper/c.JPEG")]
    assert all(sum(name in line for name in CLASSES) == 2 for line in lines[1:])


def test_json_says_the_same_as_python(family: Family, photos: Path) -> None:
    content = json.loads(typed("predict", f"{family.parent}:best", photos / "b.png", "--json"))
    assert (content["weights"], content["dataset"]) == ("best", "tiny")
    (one,) = content["predictions"]
    (expected,) = fastresnet.load(family.parent, weights="best").predict(photos / "b.png", top_k=3)
    assert one["image"] == str(photos / "b.png")
    assert tuple(entry["class_name"] for entry in one["top"]) == expected.class_names
    assert [entry["probability"] for entry in one["top"]] == pytest.approx(expected.probabilities)


@pytest.mark.parametrize("top_k", [0, -1, 4])
def test_top_k_out_of_range_is_refused(family: Family, photos: Path, top_k: int) -> None:
    assert f"--top-k is {top_k}; this network has 1 to 3 classes" in refused(
        "predict", family.parent, photos, "--top-k", top_k
    )


def test_what_is_no_image_is_named(family: Family, photos: Path, tmp_path: Path) -> None:
    assert "notes.txt is of another format (JPEG or PNG only)" in refused(
        "predict", family.parent, photos / "notes.txt"
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "x.gif")
    assert refused("predict", family.parent, tmp_path / "x.gif").endswith("only); convert it or leave it out")
    torn = photos / "torn.png"
    torn.write_bytes((photos / "b.png").read_bytes()[:60])
    assert "torn.png" in refused("predict", family.parent, torn)
    assert "no such image" in refused("predict", family.parent, tmp_path / "missing.png")
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refused("predict", family.parent, tmp_path / "empty")


def test_a_broken_file_in_a_folder_is_passed_over(family: Family, photos: Path) -> None:
    torn = photos / "c.png"
    torn.write_bytes((photos / "b.png").read_bytes()[:60])
    result = CliRunner().invoke(app, ["predict", str(family.parent), str(photos), "--json"])
    assert result.exit_code == 1
    assert (
        result.stderr.startswith(f"note: passed over: {torn} is not an image")
        and result.stderr.count("\n") == 1
    )
    found = json.loads(result.stdout)["predictions"]
    names = ("a.jpg", "b.png", "d.png", "deeper/c.JPEG")
    assert [entry["image"] for entry in found] == [str(photos / name) for name in names]
    (last,) = fastresnet.load(family.parent).predict(photos / names[-1], top_k=3)
    assert tuple(entry["class_name"] for entry in found[-1]["top"]) == last.class_names
    for name in names:
        (photos / name).unlink()
    assert "c.png is not an image" in refused("predict", family.parent, photos)


def test_a_run_that_is_not_there_is_named(family: Family, photos: Path) -> None:
    there = ("--runs-dir", family.runs_dir)
    assert "no run 'nothing'" in refused("predict", "nothing", photos, *there)
    assert "last or best" in refused("predict", f"{family.parent.name}:first", photos, *there)
    assert "sees no CUDA GPU" in refused("predict", family.parent, photos, "--device", "cuda") or (
        torch.cuda.is_available()
    )


def test_a_mistake_is_one_line_and_exit_2(family: Family) -> None:
    command = [sys.executable, "-m", "fastresnet", "predict", str(family.parent), "missing.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "fastresnet: error: no such image: missing.png\n"
