"""Exported networks: read by other programs' own means, they give the run's logits."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from family import CLASSES, Family, family, refused, typed
from optional_parts import need

import fastresnet
from fastresnet import export as export_module
from fastresnet.errors import UserError
from fastresnet.export import FORMATS, export
from fastresnet.inference import Network
from fastresnet.resnet import build_model

__all__ = ["family"]  # a fixture


@pytest.fixture
def network(family: Family) -> Network:
    return fastresnet.load(family.parent)


def images(size: int) -> torch.Tensor:
    return torch.rand(size, 3, 8, 8, generator=torch.Generator().manual_seed(100 + size))


def logits(network: Network, size: int) -> torch.Tensor:
    with torch.inference_mode():
        return network.module(images(size))


def test_safetensors_hold_the_weights_and_what_is_needed_to_use_them(
    network: Network, tmp_path: Path
) -> None:
    from safetensors import safe_open

    done = export(network, "safetensors", tmp_path / "net.safetensors")
    assert done.difference < 1e-6 and done.num_bytes == (tmp_path / "net.safetensors").stat().st_size
    with safe_open(done.path, framework="pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    model = build_model(network.spec, 3, 8).eval()
    model.load_state_dict(tensors)
    assert tuple(json.loads(about["class_names"])) == CLASSES
    assert (about["arch"], about["image_size"], about["run"]) == ("n2-b1-c4-gelu", "8", network.run)
    mean, std = (torch.tensor(json.loads(about[key])).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        found = model((images(5) - mean) / std)
    torch.testing.assert_close(found, logits(network, 5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 33])
def test_torch_export_takes_any_batch(network: Network, tmp_path: Path, size: int) -> None:
    export(network, "torch-export", tmp_path / "net.pt2")
    extra = {"fastresnet.json": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=extra)
    torch.testing.assert_close(program.module()(images(size)), logits(network, size), rtol=1e-4, atol=1e-5)
    assert json.loads(json.loads(extra["fastresnet.json"])["class_names"]) == list(CLASSES)


@pytest.mark.parametrize("size", [1, 33])
def test_onnx_runs_elsewhere(network: Network, tmp_path: Path, size: int) -> None:
    need("onnx")
    import onnxruntime

    export(network, "onnx", tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": images(size).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), logits(network, size), rtol=1e-4, atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == list(CLASSES) and about["arch"] == "n2-b1-c4-gelu"


def test_a_network_that_came_out_wrong_is_not_written(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "net.safetensors"
    export(network, "safetensors", out)
    before = out.read_bytes()
    right = FORMATS["safetensors"]
    for wrong in (lambda *given: right.run(*given) + 0.01, lambda *given: right.run(*given) * torch.nan):
        monkeypatch.setitem(FORMATS, "safetensors", dataclasses.replace(right, run=wrong))
        with pytest.raises(UserError, match="nothing was written"):
            export(network, "safetensors", out)
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("to", ["safetensors", "onnx", "torch-export"])
def test_an_earlier_export_is_replaced_and_nothing_else(
    to: str, network: Network, family: Family, tmp_path: Path
) -> None:
    if to == "onnx":
        need("onnx")
    out = tmp_path / "net"
    assert export(network, to, out).num_bytes == export(network, to, out).num_bytes
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a.txt", "text")
    (tmp_path / "text").write_text("what was there")
    (tmp_path / "empty").touch()
    shutil.copy(family.parent / "best.safetensors", tmp_path / "checkpoint")
    for name in ("zip", "text", "empty", "checkpoint"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(UserError, match=f"is no earlier export to {to}, and is left as it is"):
            export(network, to, tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    other = "torch-export" if to == "safetensors" else "safetensors"
    with pytest.raises(UserError, match=f"is no earlier export to {other}"):
        export(network, other, out)


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        export_module, "find_spec", lambda name: None if name != "onnx" else object(), raising=True
    )
    message = refused("export", "last", "--to", "onnx")
    assert "onnxscript and onnxruntime" in message
    assert message.endswith(" -m pip install -c constraints.txt -e '.[export]'")


def test_bad_formats_and_places_are_refused(family: Family, tmp_path: Path) -> None:
    run = family.parent
    assert "did you mean 'safetensors'" in refused("export", run, "--to", "safetensor")
    to = ("--to", "safetensors", "--out")
    assert "does not exist" in refused("export", run, *to, tmp_path / "no" / "net.safetensors")
    assert "is a folder" in refused("export", run, *to, tmp_path)
    assert "no run" in refused("export", "nothing", "--to", "safetensors", "--runs-dir", family.runs_dir)


def test_the_command_names_the_file_and_says_what_it_takes(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = typed("export", f"{family.parent}:best", "--to", "torch-export")
    name = f"n2-b1-c4-gelu-{family.parent.name.rsplit('-', 1)[-1]}.pt2"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]
    for part in (
        name,
        "best weights",
        "the same logits for 8 images",
        "float32 [B, 3, 8, 8]",
        "float32 [B, 3]",
    ):
        assert part in shown
    content = json.loads(typed("export", family.parent, "--to", "safetensors", "--out", "x", "--json"))
    assert content["path"] == "x" and content["num_images"] == 8
