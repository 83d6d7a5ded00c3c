"""Checkpoints: tensors and JSON in one safetensors file with a hash of both; no pickle (contract 3)."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from fastresnet.atomic import explain_os_error, sync_folder, write_atomic
from fastresnet.engine.state import TrainState
from fastresnet.errors import UserError
from fastresnet.folder import RunFolder
from fastresnet.recorded import Best, Count, EventsMark, Final, Recorded, RunName, check_recorded, holds
from fastresnet.run import Clocks

LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"
NEXT = "next.safetensors"  # a whole checkpoint that is about to become the last
FORMAT = "1"
_MAX_SPREAD = 16  # elements of memory an element of a tensor; a forged file's strides could ask for any


class _Tensors(Recorded):
    model_config = ConfigDict(arbitrary_types_allowed=True)


class SavedAverage(_Tensors):
    """``EmaModel.state_dict``."""

    model: dict[str, torch.Tensor]
    updates: Count


class SavedState(_Tensors):
    """``TrainState.state_dict``, as far as it can be told without the run's own: see ``TrainState.misfit``."""

    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    ema: SavedAverage | None
    scaler: dict[str, Any] | None
    sums: torch.Tensor
    epoch: Count
    epoch_step: Count
    step: Count
    best: Annotated[dict[str, Any], holds(Best, or_nothing=True)]
    final: Final | None
    clocks: Clocks
    segment: Count


class SavedRun(Recorded):
    """What :func:`save_state` writes."""

    run: RunName
    state: SavedState
    events: EventsMark


class SavedBest(_Tensors):
    """What the loop writes of the best evaluation."""

    model: dict[str, torch.Tensor]
    best: Best


def _encode(value: Any, tensors: dict[str, torch.Tensor], path: str) -> Any:
    """Return ``value`` as JSON types, its tensors moved to ``tensors`` under their path."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous()
        return {"$tensor": path, "strides": list(value.stride())}
    if isinstance(value, dict):
        items = [[key, _encode(entry, tensors, f"{path}/{key}")] for key, entry in value.items()]
        return {"$dict": items}
    if isinstance(value, list | tuple):
        entries = [_encode(entry, tensors, f"{path}/{i}") for i, entry in enumerate(value)]
        return {"$tuple": entries} if isinstance(value, tuple) else entries
    assert value is None or isinstance(value, bool | int | float | str), f"{path}: {type(value)}"
    return value


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        # The strides are kept, since the order of a kernel's loop can decide its last bit. Copied, since the file's
        # tensors are views of its map.
        stored, strides = tensors[value["$tensor"]], value["strides"]
        reach = sum((size - 1) * stride for size, stride in zip(stored.shape, strides, strict=True))
        if stored.numel() and not (min(strides, default=0) >= 0 and reach <= _MAX_SPREAD * stored.numel()):
            raise ValueError(f"{value['$tensor']} has strides {strides}")
        return torch.empty_strided(stored.shape, strides, dtype=stored.dtype).copy_(stored)
    if "$tuple" in value:
        return tuple(_decode(entry, tensors) for entry in value["$tuple"])
    return {key: _decode(entry, tensors) for key, entry in value["$dict"]}


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    """Return the sha256 of a checkpoint's JSON and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pack_checkpoint(content: dict[str, Any]) -> tuple[bytes, str]:
    """Return nested dicts, lists and tuples of tensors and JSON types as a checkpoint's bytes, and its sha256."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_encode(content, tensors, ""), allow_nan=False)
    sha256 = _digest(text, tensors)
    return save(tensors, {"fastresnet": FORMAT, "content": text, "sha256": sha256}), sha256


def write_checkpoint(path: Path, content: dict[str, Any]) -> str:
    """Write ``content`` as :func:`pack_checkpoint` packs it; return the checkpoint's sha256.

    Raises:
        UserError: it cannot be written; the file that was there still is.
    """
    raw, sha256 = pack_checkpoint(content)
    write_atomic(path, lambda file: file.write(raw))
    return sha256


def unpack_checkpoint(raw: bytes) -> dict[str, Any]:
    """Return what :func:`pack_checkpoint` packed in this process or another rank."""
    size = int.from_bytes(raw[:8], "little")  # of safetensors' header
    content = _decode(json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["content"]), load(raw))
    assert isinstance(content, dict)
    return content


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what :func:`write_checkpoint` wrote, with its ``sha256`` under that key.

    Raises:
        UserError: the file is missing, torn, altered or not ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except OSError as error:
        raise explain_os_error(error, f"cannot read {path}") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{path} is torn or was altered: {str(error).splitlines()[0]}") from None
    if metadata.get("fastresnet") != FORMAT:
        raise UserError(f"{path} is not a fastresnet checkpoint of format {FORMAT}")
    text = metadata.get("content", "")
    if _digest(text, tensors) != metadata.get("sha256"):
        raise UserError(f"{path} is torn or was altered: its contents do not match its sha256")
    try:
        return {**_decode(json.loads(text), tensors), "sha256": metadata["sha256"]}
    except (ValueError, TypeError, KeyError, RuntimeError) as error:  # whole, but not as we write it
        raise UserError(
            f"{path} is not a fastresnet checkpoint of format {FORMAT}: {str(error)[:200]}"
        ) from None


def save_last(folder: Path, content: dict[str, Any]) -> None:
    """Make ``content`` the run's last checkpoint, and the one before it the previous."""
    write_checkpoint(folder / NEXT, content)
    try:
        if (folder / LAST).exists():
            os.replace(folder / LAST, folder / PREVIOUS)
        os.replace(folder / NEXT, folder / LAST)
        sync_folder(folder)
    except OSError as error:
        raise explain_os_error(error, f"cannot write {folder / LAST}") from error


def save_state(folder: RunFolder, state: TrainState) -> None:
    """Make ``state`` and the event rows so far the run's last checkpoint."""
    content = {"run": folder.run, "state": state.state_dict(), "events": folder.events_mark()}
    save_last(folder.path, content)


def load_last(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the run's newest checkpoint that is whole, and a line for each damaged one passed over.

    Raises:
        UserError: none is whole.
    """
    _, content, passed_over = _newest(folder)
    return content, passed_over


def load_saved(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what :func:`load_last` does, as :func:`save_state` wrote it.

    Raises:
        UserError: none is whole, or the newest that is holds something else.
    """
    path, content, passed_over = _newest(folder)
    check_recorded(SavedRun, content, path)
    return content, passed_over


def load_best(folder: Path) -> dict[str, Any]:
    """Return the run's best checkpoint: ``model``, ``best`` and ``sha256``.

    Raises:
        UserError: it is missing, damaged, or holds something else.
    """
    content = read_checkpoint(folder / BEST)
    check_recorded(SavedBest, content, folder / BEST)
    return content


def _newest(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    passed_over: list[str] = []
    # A process killed inside save_last leaves the next one, and perhaps no last one.
    for path in (folder / NEXT, folder / LAST, folder / PREVIOUS):
        if path.exists():
            try:
                return path, read_checkpoint(path), passed_over
            except UserError as error:
                passed_over.append(str(error))
    reasons = "; ".join(passed_over) or f"it has no {LAST}"
    raise UserError(f"{folder} has no whole checkpoint: {reasons}")
