"""A trained network, from its run folder: its weights, and :func:`load` to use it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastresnet.arch import ArchSpec
from fastresnet.augment import Normalise, normalisation
from fastresnet.engine.checkpoint import BEST, load_best, load_saved
from fastresnet.engine.machine import resolve_device
from fastresnet.errors import RefusedValue, UserError
from fastresnet.folder import RunFolder, find_run
from fastresnet.loaders.sources.decode import decode, resize_all
from fastresnet.recipe import Recipe
from fastresnet.resnet import build_model

Which = Literal["last", "best"]
PREDICT_BATCH = 256  # images decoded and held at once

Images = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights a run is evaluated with: its average where it keeps one.

    Attributes:
        run: the run's name.
        which: ``last`` or ``best``.
        arch: its recipe's arch.
        activation: of its network.
        tensors: the model's state dict.
        sha256: of the checkpoint that held them.
    """

    run: str
    which: str
    arch: str
    activation: str
    tensors: dict[str, torch.Tensor]
    sha256: str

    def for_model(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return the tensors, having made sure that they fit ``model``.

        Raises:
            UserError: names, shapes or dtypes differ.
        """
        wanted = {name: _kind(tensor) for name, tensor in model.state_dict().items()}
        found = {name: _kind(tensor) for name, tensor in self.tensors.items()}
        if wanted != found:
            differing = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
            raise UserError(
                f"the weights of run {self.run} are of another network ({self.arch}): {differing[0][:200]!r} is "
                f"{found.get(differing[0], 'missing')} there and {wanted.get(differing[0], 'missing')} here; "
                "choose the same arch, classes and image size"
            )
        return self.tensors


def _kind(tensor: torch.Tensor) -> str:
    """Return shape and dtype as a message has them."""
    dtype = "" if tensor.dtype == torch.float32 else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{dtype}"


def split_reference(reference: str) -> tuple[str, Which]:
    """Return the run and the weights, ``last`` or ``best``, of ``RUN[:weights]``. Raises UserError for others.

    A path may have colons of its own.
    """
    run, colon, which = reference.rpartition(":")
    if not colon or os.sep in which or Path(reference).is_dir():
        return reference, "last"
    if which in ("", "last"):
        return run, "last"
    if which == "best":
        return run, "best"
    raise UserError(f"{reference!r}: after the colon stands {which!r}; it must be last or best")


def load_weights(reference: str, runs_dir: Path) -> Weights:
    """Return the weights of a run: a path, name, id or ``last``, then ``:best`` or ``:last`` (which is the default).

    Raises:
        UserError: no such run or weights, or damaged ones.
    """
    run, which = split_reference(reference)
    folder = RunFolder(find_run(run, runs_dir))
    content = folder.read_config()
    if which == "best":
        if not (folder.path / BEST).exists():
            raise UserError(f"run {folder.name} has no best checkpoint yet: no epoch of it was evaluated")
        checkpoint = load_best(folder.path)
        tensors: dict[str, Any] = checkpoint["model"]
    else:
        checkpoint, _ = load_saved(folder.path)
        state = checkpoint["state"]
        tensors = state["ema"]["model"] if state["ema"] else state["model"]
    recipe = Recipe.from_json_dict(content["recipe"])
    return Weights(
        run=folder.name,
        which=which,
        arch=recipe.arch,
        activation=recipe.arch_spec().activation,
        tensors=tensors,
        sha256=checkpoint["sha256"],
    )


class NormalisedResNet(nn.Module):
    """A network that normalises first: float images [B, 3, S, S] in [0, 1] to float logits [B, num_classes]."""

    def __init__(self, model: nn.Module, normalise: Normalise) -> None:
        super().__init__()
        self.normalise = normalise
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(self.normalise(images))


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of an image, likeliest first.

    Attributes:
        labels: their numbers.
        class_names: their names.
        probabilities: in [0, 1].
    """

    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A trained network.

    Attributes:
        run, weights: where it comes from: a run, and its ``last`` or ``best`` weights.
        spec: the architecture.
        class_names: a name per label.
        image_size: S, the side in pixels of the images it takes.
        mean, std: per channel of images in [0, 1], as ``module`` normalises them.
        dataset: what it was trained on; ``is_builtin`` marks drawn images.
        module: float32, in evaluation mode: images [B, 3, S, S] in [0, 1] to logits [B, num_classes].
        device: where ``module`` is.
    """

    run: str
    weights: str
    spec: ArchSpec
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset: str
    is_builtin: bool
    module: NormalisedResNet
    device: torch.device

    def predict(
        self, images: Images, top_k: int = 1, on_broken: Callable[[int, UserError], None] | None = None
    ) -> list[Prediction]:
        """Return the ``top_k`` likeliest classes of each image, in float32 and without TTA.

        Images of another size are scaled and cropped as when a data set is packed.

        Args:
            images: a path or several, or uint8 [B, H, W, 3].
            top_k: from 1 to the number of classes.
            on_broken: told the place, from 0, of each file that cannot be read, and why; it is then left out.

        Raises:
            UserError: an image that cannot be read, without ``on_broken``; an array of another kind; ``top_k`` out of
                range.
        """
        if not 1 <= top_k <= len(self.class_names):
            raise RefusedValue(
                f"top_k is {top_k}; this network has 1 to {len(self.class_names)} classes to rank", "top_k"
            )
        found = []
        for batch in self._batches(images, on_broken):
            probabilities, labels = self._probabilities(batch).topk(top_k)
            for values, order in zip(probabilities.tolist(), labels.tolist(), strict=True):
                names = tuple(self.class_names[label] for label in order)
                found.append(Prediction(labels=tuple(order), class_names=names, probabilities=tuple(values)))
        return found

    @torch.inference_mode()
    def _probabilities(self, images: NDArray[np.uint8]) -> torch.Tensor:
        batch = torch.tensor(images).to(self.device).permute(0, 3, 1, 2).float() / 255
        return self.module(batch).softmax(1)

    def _batches(
        self, images: Images, on_broken: Callable[[int, UserError], None] | None
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield uint8 [B, S, S, 3]."""
        if isinstance(images, np.ndarray):
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
                raise UserError(
                    f"images are {images.dtype} {list(images.shape)}; give paths, or a uint8 array [B, H, W, 3]"
                )
            for start in range(0, len(images), PREDICT_BATCH):
                yield resize_all(images[start : start + PREDICT_BATCH], self.image_size)
            return
        paths = [images] if isinstance(images, str | os.PathLike) else list(images)
        for start in range(0, len(paths), PREDICT_BATCH):
            decoded = []
            for place, path in enumerate(paths[start : start + PREDICT_BATCH], start):
                try:
                    decoded.append(decode(Path(path), str(path), self.image_size))
                except UserError as error:
                    if on_broken is None:
                        raise
                    on_broken(place, error)
            if decoded:
                yield np.stack(decoded)


def load(
    run: str | os.PathLike[str],
    *,
    runs_dir: Path | str = "runs",
    weights: Which = "last",
    device: str = "auto",
) -> Network:
    """Return a run's network, ready to use.

    Args:
        run: the run's path, name, id, or ``last``.
        runs_dir: where to look for it.
        weights: those of the last epoch, or of the best evaluation; the average where the run keeps one.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: no such run, weights or device, or a damaged run.
    """
    found = load_weights(f"{os.fspath(run)}:{weights}", Path(runs_dir))
    content = RunFolder(find_run(os.fspath(run), Path(runs_dir))).read_config()
    recipe, data = Recipe.from_json_dict(content["recipe"]), content["dataset"]
    chosen, spec = resolve_device(device), recipe.arch_spec()
    mean, std = normalisation(recipe, data["mean"], data["std"])
    model = build_model(spec, len(data["class_names"]), data["image_size"])
    model.load_state_dict(found.for_model(model))
    module = NormalisedResNet(model, Normalise(mean, std)).requires_grad_(False).eval()
    return Network(
        run=found.run,
        weights=found.which,
        spec=spec,
        class_names=tuple(data["class_names"]),
        image_size=data["image_size"],
        mean=tuple(mean),
        std=tuple(std),
        dataset=data["name"],
        is_builtin=data["is_builtin"],
        module=module.to(chosen, memory_format=torch.channels_last),  # type: ignore[call-overload]
        device=chosen,
    )
