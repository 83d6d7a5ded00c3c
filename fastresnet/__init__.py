"""The fastest honest way to train a small-image residual network, and to prove it."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastresnet.inference import Network, load
    from fastresnet.run import RunConfig, RunResult
    from fastresnet.training import resume, train

__all__ = ["Network", "RunConfig", "RunResult", "__version__", "load", "resume", "train"]

_HOMES = {
    "train": "fastresnet.training",
    "resume": "fastresnet.training",
    "load": "fastresnet.inference",
    "Network": "fastresnet.inference",
    "RunConfig": "fastresnet.run",
    "RunResult": "fastresnet.run",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: ``fastresnet --help`` answers without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fastresnet' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
