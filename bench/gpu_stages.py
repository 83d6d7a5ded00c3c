"""The pieces of ``make bench-gpu``, in order: what each runs, and the record that it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ("kernels", "time-to", "loaders", "throughput")
KERNEL_TESTS = (
    *("test_kernels.py", "test_kernel_ops.py", "test_norm_act.py", "test_draws_triton.py"),
    *("test_dispatch.py", "test_graphs_on_gpu.py"),
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A piece of the suite.

    Attributes:
        name: in ``suite.json``; starts over when its command changes.
        command: what is run; ``{minutes}`` in it is the time left, ``{out}`` the record's path.
        record: its record's name in the folder; None for a test.
    """

    name: str
    command: tuple[str, ...]
    record: str | None = None


def stages(python: str, data: str | None, target: float, *, everything: bool, rehearse: bool) -> list[Stage]:
    """Return the suite's stages in order; a rehearsal is of networks of a second, on the CPU."""
    named = () if data is None else ("--data", data)
    bench = (python, "-m", "fastresnet", "bench")
    resume = ("--minutes", "{minutes}", "--out", "{out}")
    device = ("--device", "cpu" if rehearse else "cuda")
    tiny = ("--batch-size", "16", "--rounds", "1", "--steps", "1", "--rows", "student,fastresnet")
    activations = ("--activation", "relu,gelu")  # the reports', and what `fast` has for it
    every = (
        "resnet10-1,resnet10-2,resnet12,resnet16,resnet20,resnet24,resnet32,resnet48,resnet86,resnet8,"
        "n3-b2-c85-p8,improved-resnet,resnet18-c42,fastresnet8"
    )
    if rehearse:
        sizes = {
            "kernels": ("--arch", "n1-b1-c4", "--batch-size", "2", "--rounds", "1"),
            "throughput": ("--arch", "n2-b1-c4", *tiny),
            "loaders": ("--quick", "--workers", "0", "--batch-size", "16"),
            "time-to": (
                *("--archs", "n2-b1-c4", "--epochs", "1", "--runs", "2", "--set", "batch_size=16"),
                *("--compile", "off", "--threads", "1"),
            ),
        }
    elif everything:
        sizes = {
            "kernels": ("--arch", every, *activations, "--batch-size", "512"),
            "throughput": ("--arch", every, "--batch-size", "128,512,1024"),
            "loaders": ("--quick",),  # the whole table cannot be gone on with after ten minutes
            "time-to": ("--runs", "10", "--search", "--epochs", "32"),
        }
    else:
        sizes = {
            "kernels": ("--arch", "resnet24", *activations, "--batch-size", "512"),
            "throughput": (
                "--arch",
                "resnet8,resnet24",
                "--batch-size",
                "512",
                "--rounds",
                "3",
                "--steps",
                "20",
            ),
            "loaders": ("--quick",),
            "time-to": ("--archs", "resnet8,resnet24,fastest", "--runs", "3"),
        }
    tests = ("test_kernels_geometry.py",) if rehearse else KERNEL_TESTS
    pytest = (python, "-m", "pytest", "-p", "no:cacheprovider")
    return [
        *(Stage(name=f"tests/{file}", command=(*pytest, str(ROOT / "tests" / file))) for file in tests),
        Stage(
            name="kernels", command=(*bench, "kernels", *sizes["kernels"], *device, *resume), record="kernels"
        ),
        Stage(
            name="time-to",
            command=(
                *(*bench, "time-to", *sizes["time-to"], *named, "--target", f"{target:g}"),
                *(*device, *resume),
            ),
            record="time-to",
        ),
        Stage(
            name="loaders",
            command=(*bench, "loaders", *sizes["loaders"], *named, *device, "--out", "{out}"),
            record="loaders",
        ),
        # last: what it keeps is an arch at a batch size, eight processes' work
        Stage(
            name="throughput",
            command=(*bench, "throughput", *sizes["throughput"], *named, *device, *resume),
            record="throughput",
        ),
    ]
