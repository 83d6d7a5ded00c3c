"""Parts that a machine may lack, and what a test does about it: ``need("triton")``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec

import pytest
from postgres_server import postgres_programs


def _importable(*modules: str) -> bool:
    """Return whether every one of ``modules``, parents before children, can be found."""
    return all(find_spec(module) is not None for module in modules)


def _has_torchrun() -> bool:
    import torch

    return torch.distributed.is_available() and torch.distributed.is_gloo_available()


PARTS: dict[str, Callable[[], bool]] = {
    "ffcv": lambda: _importable("ffcv"),
    "dali": lambda: _importable("nvidia", "nvidia.dali"),
    "triton": lambda: _importable("triton"),
    "torchrun": _has_torchrun,
    "onnx": lambda: all(_importable(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    "chromium": lambda: (
        all(shutil.which(name) for name in ("chromium", "chromedriver")) and _importable("selenium")
    ),
    "postgresql": lambda: (
        postgres_programs() is not None and _importable("optuna") and _importable("psycopg")
    ),
}


def need(part: str) -> None:
    """Go on where ``part`` is there; else skip the test, or the whole module when called at its top.

    A part that ``FASTRESNET_REQUIRE`` (names with commas between them) lists fails instead, so that CI cannot pass by
    skipping what it installs.
    """
    required = {name.strip() for name in os.environ.get("FASTRESNET_REQUIRE", "").split(",")} - {""}
    unknown = required - PARTS.keys()
    assert not unknown, f"FASTRESNET_REQUIRE names {sorted(unknown)}; it takes {', '.join(PARTS)}"
    if PARTS[part]():
        return
    if part in required:
        pytest.fail(f"{part} is missing, and FASTRESNET_REQUIRE asks for it", pytrace=False)
    pytest.skip(f"{part} is missing", allow_module_level=True)
