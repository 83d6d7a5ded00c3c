"""The fused norms against eager PyTorch and Inductor, by shape and direction, and against the bytes they must move.

On the clock: the calls alone, replayed from CUDA graphs on a GPU, taking several sets of inputs in turn so that none
is in the cache. Off it: building, compiling, capture and warm-up. The implementations take turns, so that a clock that
drifts slows all alike. Inductor and Triton's kernels are timed inside compiled graphs, eager and LLVM's as they are,
each with the running statistics' update.

A shape's floor is what two passes over memory must move (on a GPU one pass, where a slab of channels fits a program's
registers): inputs read, outputs written, nothing twice that need not be. The share is the floor's bytes over the time,
as a part of the speed of a large copy on the same device; where the tensors fit the L2 cache it can exceed 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch._functorch import config as functorch_config

from fastresnet.arch import ArchSpec
from fastresnet.bench.ceilings import copy_speed
from fastresnet.bench.continued import go_on
from fastresnet.bench.record import make_record
from fastresnet.engine.compiler import compiler_missing
from fastresnet.engine.machine import device_name, resolve_device, resolve_threads
from fastresnet.kernels.dispatch import triton_obstacle
from fastresnet.kernels.fusion import Activation, Added, Fusion
from fastresnet.kernels.geometry import plan_one_pass
from fastresnet.kernels.llvm_norms import llvm_obstacle, takes
from fastresnet.kernels.norm_act import INTERPRETED, BatchNormAct2d
from fastresnet.kernels.timing import Run, captured, sets_beyond_cache, time_interleaved

Direction = Literal["forward", "backward", "both"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward", "both")

# tensors of the activation's size that are read or written, by passes and what is added
FORWARD = {1: {"none": 2, "plain": 3}, 2: {"none": 3, "plain": 4, "norm": 5}}
BACKWARD = {1: {"none": 3, "plain": 4}, 2: {"none": 5, "plain": 6, "norm": 8}}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One norm of a network: ``act(bn(x))``, with a residual added, or with a residual that has a norm of its own."""

    batch_size: int
    channels: int
    side: int
    added: Added
    activation: Activation
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Say what is fused, and over what shape."""
        kind = {"none": "bn", "plain": "bn+add", "norm": "bn+bn"}[self.added]
        return f"{kind}+{self.activation} {self.batch_size}x{self.channels}x{self.side}x{self.side}"

    @property
    def num_elements(self) -> int:
        """Elements of one activation."""
        return self.batch_size * self.channels * self.side**2

    def num_passes(self, device_type: str) -> int:
        """Return how many passes over memory our kernels take: Triton's on a GPU, LLVM's on a CPU."""
        on_chip = device_type != "cpu" and self.added != "norm"
        return 1 if on_chip and plan_one_pass(self.batch_size * self.side**2, self.channels) else 2

    def floor_bytes(self, direction: Direction, device_type: str) -> float:
        """Return the fewest bytes that this many passes move, what is saved for the backward pass included."""
        fusion, num_passes = Fusion(self.activation, self.added), self.num_passes(device_type)
        # LLVM's see an activation's sign in its output, which is kept in any case.
        bits = self.num_elements / 8 if fusion.saves_bits and device_type != "cpu" else 0
        again = self.num_elements * self.dtype.itemsize if fusion.saves_residual else 0
        activation = self.num_elements * self.dtype.itemsize
        floor = {
            "forward": FORWARD[num_passes][self.added] * activation + bits,
            "backward": BACKWARD[num_passes][self.added] * activation + bits + again,
        }
        return floor[direction] if direction != "both" else floor["forward"] + floor["backward"]


def cases_of(spec: ArchSpec, batch_size: int, dtype: torch.dtype, image_size: int = 32) -> list[Case]:
    """Return the kinds of norm that ``spec`` has, each once, the largest map first; a shortcut's is its block's."""
    norms = [layer for layer in spec.layers(image_size=image_size) if layer.kind == "norm"]
    shortcut = ".shortcut.norm"
    projected = {layer.name.removesuffix(shortcut) for layer in norms if layer.name.endswith(shortcut)}
    cases = []
    for layer in norms:
        if layer.name.endswith(shortcut):
            continue
        added: Added = "none"
        if layer.detail.startswith("add"):
            added = "norm" if layer.name.rpartition(".")[0] in projected else "plain"
        channels, side, _ = layer.shape
        cases.append(
            Case(
                batch_size=batch_size,
                channels=channels,
                side=side,
                added=added,
                activation=spec.activation,
                dtype=dtype,
            )
        )
    kinds = list(FORWARD[2])
    return sorted(dict.fromkeys(cases), key=lambda case: (-case.side, case.channels, kinds.index(case.added)))


class Subject:
    """One implementation of one case, with inputs of its own."""

    def __init__(self, case: Case, kernels: str, device: torch.device) -> None:
        def norm(activation: Activation) -> BatchNormAct2d:
            return BatchNormAct2d(case.channels, activation, kernels=kernels).to(device)

        def tensor() -> torch.Tensor:
            size = (case.batch_size, case.channels, case.side, case.side)
            values = torch.randn(size, dtype=case.dtype, device=device)
            return values.contiguous(memory_format=torch.channels_last)

        self.norm = norm(case.activation)
        self.shortcut_norm = norm("identity") if case.added == "norm" else None
        self.x, self.dy = tensor().requires_grad_(), tensor()
        self.residual = None if case.added == "none" else tensor().requires_grad_()
        self.inputs = [self.x, *self.norm.parameters()]
        if self.residual is not None:
            self.inputs.append(self.residual)
        if self.shortcut_norm is not None:
            self.inputs += self.shortcut_norm.parameters()
        compiled = kernels not in ("eager", "llvm")
        self.module: Any = torch.compile(self.norm, fullgraph=True) if compiled else self.norm

    def forward(self) -> torch.Tensor:
        """Return what the norm returns, ready for a backward pass."""
        return self.module(self.x, self.residual, self.shortcut_norm)

    def both(self) -> None:
        """Run the forward pass, then the backward pass."""
        torch.autograd.grad(self.forward(), self.inputs, self.dy)

    def prepare(self, direction: Direction) -> Run:
        """Return what is timed; the forward pass that a backward pass needs is run here."""
        if direction == "backward":
            return partial(torch.autograd.grad, self.forward(), self.inputs, self.dy, retain_graph=True)
        return self.forward if direction == "forward" else self.both

    def saved_bytes(self) -> int:
        """Return the bytes kept for the backward pass beside the inputs, the weights and the output itself."""
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = self.forward()
        for known in (y, *self.inputs, *self.norm.buffers()):
            kept.pop(known.untyped_storage().data_ptr(), None)
        return sum(kept.values())


def measure_case(
    case: Case,
    implementations: Sequence[str],
    device: torch.device,
    copy_bytes_per_s: float,
    *,
    rounds: int,
    calls: int,
) -> list[dict[str, Any]]:
    """Return a row for every direction and implementation of one case; none of ``llvm`` where it does not take it."""
    rows = []
    if "llvm" in implementations and not takes(Subject(case, "eager", device).x):
        implementations = [name for name in implementations if name != "llvm"]
    num_sets = sets_beyond_cache(3 * case.num_elements * case.dtype.itemsize, device)
    # a compiled backward pass that is to run again may not take the buffers of its graph for itself
    with functorch_config.patch(donated_buffer=False):
        saved = {name: Subject(case, name, device).saved_bytes() for name in implementations}
        for direction in DIRECTIONS:
            runs = {
                name: [
                    captured(partial(Subject(case, name, device).prepare, direction), device)
                    for _ in range(num_sets)
                ]
                for name in implementations
            }
            floor = case.floor_bytes(direction, device.type)
            for name, times in time_interleaved(runs, device, rounds=rounds, calls=calls).items():
                rows.append(
                    {
                        "case": case.name,
                        **asdict(case),
                        "dtype": str(case.dtype).removeprefix("torch."),
                        "direction": direction,
                        "implementation": name,
                        **times._asdict(),
                        "passes": case.num_passes(device.type),
                        "floor_bytes": floor,
                        "share_of_copy": floor / times.p50_s / copy_bytes_per_s,
                        "saved_bytes": saved[name],
                    }
                )
    torch._dynamo.reset()  # these graphs are of no more use, and count against the recompile limit
    return rows


def bench_kernels(
    cases: Sequence[Case],
    *,
    device_wanted: str = "auto",
    kernels: Sequence[str] = ("triton",),
    rounds: int = 5,
    calls: int = 20,
    earlier: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] = lambda record: None,
    progress: Callable[[str], None] = lambda line: None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Measure ``cases`` and return a record; the module's docstring says what is on the clock.

    Args:
        cases: what to measure, in this order.
        device_wanted: auto, cpu, cuda or cuda:N.
        kernels: which of ``norm_act.TRITON_KERNELS`` to measure beside eager and Inductor, where Triton runs; on a CPU
            ``llvm`` is too.
        rounds, calls: each implementation is called ``rounds * calls`` times, ``calls`` in a row.
        earlier: a record to go on with; the cases in it are kept as they are.
        save: given the record after each case.
        progress: told a line for each case.
        out_of_time: asked before each case; once true, the rest is named under ``not_measured``.

    Raises:
        UserError: ``earlier`` is of another machine, version or setting.
    """
    device = resolve_device(device_wanted)
    threads = resolve_threads(0)
    torch.set_num_threads(threads)
    obstacle = triton_obstacle(device)
    no_compiler = compiler_missing(device)
    implementations = ["eager"] if no_compiler else ["eager", "inductor"]
    implementations += kernels if obstacle is None else ()
    no_llvm = llvm_obstacle(device.type)
    implementations += ["llvm"] if no_llvm is None else []
    record = make_record(
        "kernels",
        device_name(device),
        threads,
        settings={
            "implementations": implementations,
            "dtypes": sorted({str(case.dtype).removeprefix("torch.") for case in cases}),
            "rounds": rounds,
            "calls": calls,
        },
        triton=obstacle or ("interpreted" if INTERPRETED else "compiled"),
        inductor=no_compiler or "compiled",
        llvm=no_llvm or "compiled",
        cuda_graphs=device.type == "cuda",
        rounds=rounds,
        calls=calls,
        copy_bytes_per_s=0.0,
        rows=[],
        not_measured=[],
    )
    if earlier is not None:
        record = go_on(earlier, record)
    record["copy_bytes_per_s"] = record["copy_bytes_per_s"] or copy_speed(device)
    speed = record["copy_bytes_per_s"]
    progress(f"{device_name(device)}: a copy moves {speed / 1e9:.1f} GB/s")
    for name, missing in (("Triton", obstacle), ("Inductor", no_compiler)):
        if missing is not None:
            progress(f"{name} is left out: {missing}")
    measured = {row["case"] for row in record["rows"]}
    left = [case for case in cases if case.name not in measured]
    record["not_measured"] = [case.name for case in left]
    while left and not out_of_time():
        case = left.pop(0)
        new = measure_case(case, implementations, device, speed, rounds=rounds, calls=calls)
        whole = [row for row in new if row["direction"] == "both"]
        told = ", ".join(f"{row['implementation']} {1e6 * row['p50_s']:.1f} us" for row in whole)
        progress(f"{case.name}: {told}")
        record["rows"] += new
        record["not_measured"] = [case.name for case in left]
        save(record)
    return record
