"""The one place that imports torchvision: a wheel built for CUDA beside a CPU-only torch needs a hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_declared: list[object] = []  # keeps the library alive: torch forgets its operators with it


def import_torchvision() -> ModuleType:
    """Return torchvision, with ``transforms.v2`` imported.

    Where its extension cannot be loaded, its import would fail on the missing operators; declared without an
    implementation, they let ``datasets`` and ``transforms.v2`` work (not ``io.decode_jpeg`` and ``ops.nms``).

    Raises:
        ImportError: torchvision is not installed.
    """
    if "torchvision" not in sys.modules and not _extension_loads() and not _declared:
        import torch

        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
    import torchvision
    import torchvision.transforms.v2

    return torchvision


def _extension_loads() -> bool:
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # the import will say what is missing
    try:
        for extension in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(extension))
    except OSError:
        return False
    return True
