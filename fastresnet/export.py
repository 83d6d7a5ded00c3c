"""Write a trained network to a file that other programs read, having checked that it gives the same logits."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from fastresnet.arch import get_arch
from fastresnet.atomic import write_atomic
from fastresnet.augment import Normalise
from fastresnet.errors import UserError, did_you_mean
from fastresnet.inference import Network, NormalisedResNet
from fastresnet.installing import install_extra
from fastresnet.resnet import build_model

CHECK_BATCHES = (1, 7)  # two sizes, so that a graph frozen to one is found out
INPUT, OUTPUT = "images", "logits"
EXTRA_FILE = "fastresnet.json"  # of torch-export


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format: how a network is written, and how what was written computes logits.

    Attributes:
        suffix: of the file's name, with its dot.
        needs: the libraries of the ``export`` extra that it takes.
        encode: the file's contents.
        run: logits, float32 [B, num_classes], from the contents and images, float32 [B, 3, S, S].
        described: the metadata in the contents; contents of something else may raise anything.
        tolerance: greatest difference of a logit that passes, over the largest logit or 1.
    """

    suffix: str
    needs: tuple[str, ...] = ()
    encode: Callable[[Network], bytes]
    run: Callable[[bytes, torch.Tensor], torch.Tensor]
    described: Callable[[bytes], dict[str, str]]
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written.

    Attributes:
        path, num_bytes: where, and its size.
        difference: the greatest of any logit from the network's, over ``num_images`` images of noise.
        num_images: how many were compared.
    """

    path: str
    num_bytes: int
    difference: float
    num_images: int


def export(network: Network, to: str, out: Path | str) -> Exported:
    """Write ``network`` to ``out`` as ``safetensors``, ``onnx`` or ``torch-export``: a whole, checked file or none.

    An earlier export in the same format is replaced.

    The graphs (ONNX, torch-export) take float32 ``images`` [B, 3, S, S] in [0, 1] for any B, normalise them, and
    give float32 ``logits`` [B, num_classes]. The safetensors file holds the weights under their modules' names,
    for normalised images. Arch, class names, S, mean and standard deviation are in the metadata of all three:
    of ONNX as properties, of torch-export as the extra file ``fastresnet.json``.

    Raises:
        UserError: an unknown format, a missing library, a file that cannot be written or is something else already, or
            logits that differ.
    """
    chosen = find_format(to)
    out = Path(out)
    if out.is_dir() or not out.parent.is_dir():
        what = "is a folder" if out.is_dir() else "would lie in a folder that does not exist"
        raise UserError(f"{out} {what}; name a file in a folder that exists")
    if out.exists() and not _is_export(chosen, out.read_bytes()):
        raise UserError(f"{out} is no earlier export to {to}, and is left as it is; name another file")
    contents = chosen.encode(network)
    difference = 0.0
    for size in CHECK_BATCHES:
        images = _noise(size, network.image_size)
        with torch.inference_mode():
            wanted = network.module(images.to(network.device)).cpu()
        found = float((chosen.run(contents, images) - wanted).abs().max())
        if not found <= chosen.tolerance * max(1.0, float(wanted.abs().max())):
            raise UserError(
                f"the exported network's logits differ by up to {found:.2g} from the run's, so nothing was written; "
                f"try another format than {to}"
            )
        difference = max(difference, found)
    write_atomic(out, lambda file: file.write(contents) and None)
    return Exported(
        path=str(out), num_bytes=len(contents), difference=difference, num_images=sum(CHECK_BATCHES)
    )


def find_format(to: str) -> Format:
    """Return the format called ``to``. Raises UserError for an unknown one, or one whose libraries are missing."""
    if to not in FORMATS:
        raise UserError(f"unknown format {to!r}{did_you_mean(to, FORMATS) or ';'} give {', '.join(FORMATS)}")
    missing = [name for name in FORMATS[to].needs if find_spec(name) is None]
    if missing:
        raise UserError(
            f"export to {to} needs {' and '.join(missing)}, not installed here: {install_extra('export')}"
        )
    return FORMATS[to]


def _is_export(form: Format, contents: bytes) -> bool:
    try:
        return form.described(contents).keys() >= {"run", "arch", "class_names"}
    except Exception:  # each library has its own for what it cannot read
        return False


def _noise(size: int, side: int) -> torch.Tensor:
    return torch.rand(size, 3, side, side, generator=torch.Generator().manual_seed(size))


def _metadata(network: Network) -> dict[str, str]:
    values = {
        "run": network.run,
        "weights": network.weights,
        "dataset": network.dataset,
        "arch": network.spec.slug,
        "class_names": network.class_names,
        "image_size": network.image_size,
        "mean": network.mean,
        "std": network.std,
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def _to_safetensors(network: Network) -> bytes:
    from safetensors.torch import save

    tensors = {name: t.cpu().contiguous() for name, t in network.module.model.state_dict().items()}
    return save(tensors, _metadata(network))


def _described_safetensors(contents: bytes) -> dict[str, str]:
    return dict(json.loads(contents[8 : 8 + int.from_bytes(contents[:8], "little")])["__metadata__"])


def _run_safetensors(contents: bytes, images: torch.Tensor) -> torch.Tensor:
    from safetensors.torch import load

    header = _described_safetensors(contents)
    num_classes = len(json.loads(header["class_names"]))
    model = build_model(get_arch(header["arch"]), num_classes, int(header["image_size"]))
    model.load_state_dict(load(contents))
    normalise = Normalise(json.loads(header["mean"]), json.loads(header["std"]))
    with torch.inference_mode():
        return NormalisedResNet(model, normalise).eval()(images)


def _traceable(network: Network) -> tuple[NormalisedResNet, tuple[torch.Tensor]]:
    """Return a copy of the module on the CPU, and an input to trace it with."""
    module = copy.deepcopy(network.module)
    module.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return module, (_noise(2, network.image_size),)


def _to_torch_export(network: Network) -> bytes:
    module, example = _traceable(network)
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.export.export(module, example, dynamic_shapes={INPUT: {0: batch}})
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={EXTRA_FILE: json.dumps(_metadata(network))})
    return file.getvalue()


def _described_torch_export(contents: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(contents)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(f"/{EXTRA_FILE}"))
        return dict(json.loads(archive.read(name)))


def _run_torch_export(contents: bytes, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.export.load(io.BytesIO(contents)).module()(images)


def _to_onnx(network: Network) -> bytes:
    module, example = _traceable(network)
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: batch}},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for key, value in _metadata(network).items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def _described_onnx(contents: bytes) -> dict[str, str]:
    import onnx

    return {entry.key: entry.value for entry in onnx.load_model_from_string(contents).metadata_props}


def _run_onnx(contents: bytes, images: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks about their own insides off the terminal."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


# The first computes with the same operations. The others may fuse or reorder them: float32's last digits.
FORMATS = {
    "safetensors": Format(
        suffix=".safetensors",
        encode=_to_safetensors,
        run=_run_safetensors,
        described=_described_safetensors,
        tolerance=1e-5,
    ),
    "onnx": Format(
        suffix=".onnx",
        needs=("onnx", "onnxscript", "onnxruntime"),
        encode=_to_onnx,
        run=_run_onnx,
        described=_described_onnx,
        tolerance=1e-4,
    ),
    "torch-export": Format(
        suffix=".pt2",
        encode=_to_torch_export,
        run=_run_torch_export,
        described=_described_torch_export,
        tolerance=1e-4,
    ),
}
