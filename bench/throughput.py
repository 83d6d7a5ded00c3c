"""Training throughput: the loop a student would write against ours, interleaved in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fastresnet.assembly import Data, build_step, choose_machine, open_data, open_loaders
from fastresnet.bench.record import make_record
from fastresnet.engine.listener import Listener
from fastresnet.engine.warmup import synchronise
from fastresnet.loaders.protocol import Batch, Loader
from fastresnet.recipe import load_recipe
from fastresnet.resnet import build_model
from fastresnet.run import RunConfig
from fastresnet.torchvision_import import import_torchvision

WARM_STEPS = 2
STUDENT_WORKERS = 2

Progress = Callable[[str], None]


class StudentImages(TorchDataset[tuple[torch.Tensor, int]]):
    """A map-style data set as torchvision's CIFAR10 is: a PIL image, then its transforms, one at a time."""

    def __init__(self, data: Data) -> None:
        transforms = import_torchvision().transforms
        self.split = data.splits["train"]
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(data.dataset.image_size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.dataset.mean, data.dataset.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.split.members)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        index = self.split.members[place]
        return self.transform(Image.fromarray(self.split.images[index])), int(self.split.labels[index])


def student_loop(data: Data, arch: str, batch_size: int, device: torch.device) -> Iterator[int]:
    """Train as a student would, and yield the images of each step: DataLoader, eager, float32, NCHW."""
    model = build_model(
        load_recipe("fast").with_overrides({"arch": arch}).arch_spec(), data.dataset.num_classes
    )
    model = model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    criterion = torch.nn.CrossEntropyLoss()
    loader = DataLoader(
        StudentImages(data),
        batch_size=batch_size,
        shuffle=True,
        num_workers=STUDENT_WORKERS,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    while True:
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            loss.item()
            yield len(labels)


def our_loop(data: Data, arch: str, batch_size: int, config: RunConfig) -> Iterator[int]:
    """Train as ``fastresnet train`` does, and yield the images of each step."""
    recipe = load_recipe("fast").with_overrides({"arch": arch, "batch_size": batch_size})
    chosen = choose_machine(config)
    loaders = open_loaders(recipe, chosen.config, data, chosen.device)
    step = build_step(recipe, chosen, data, len(loaders.train))
    if config.compile == "on":
        step.compile()
    try:
        for batch in _epochs(loaders.train):
            step(batch)
            yield len(batch.labels)
    finally:
        loaders.close()


def _epochs(loader: Loader) -> Iterator[Batch]:
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        arch, batch_size: of both loops.
        rounds: in each, every loop is timed once, one after the other.
        steps: timed steps of a loop in a round.
    """

    arch: str
    batch_size: int
    rounds: int
    steps: int


def measure(plan: Plan, config: RunConfig, progress: Progress) -> dict[str, Any]:
    """Time the loops and return a record; a round's ratio compares neighbours in time, so that drift cancels."""
    recipe = load_recipe("fast").with_overrides({"batch_size": plan.batch_size})
    chosen = choose_machine(config)
    data = open_data(recipe, chosen.config, Listener())
    loops = {
        "student": student_loop(data, plan.arch, plan.batch_size, chosen.device),
        "fastresnet": our_loop(data, plan.arch, plan.batch_size, chosen.config),
    }
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    try:
        for loop in loops.values():
            _time(loop, WARM_STEPS, chosen.device)
        for done in range(plan.rounds):
            for name, loop in loops.items():
                speeds[name].append(_time(loop, plan.steps, chosen.device))
            ratio = speeds["fastresnet"][-1] / speeds["student"][-1]
            progress(f"round {done + 1}/{plan.rounds}: {ratio:.2f} times")
    finally:
        for loop in loops.values():
            loop.close()  # type: ignore[attr-defined]
    ratios = [ours / theirs for ours, theirs in zip(speeds["fastresnet"], speeds["student"], strict=True)]
    return make_record(
        "throughput",
        chosen.device_name,
        chosen.config.threads,
        dataset=data.dataset.name,
        arch=plan.arch,
        batch_size=plan.batch_size,
        steps_per_round=plan.steps,
        rows={
            "student": {
                "what": f"DataLoader with {STUDENT_WORKERS} workers and torchvision transforms, eager, float32, NCHW",
                "images_per_s": speeds["student"],
                "median": statistics.median(speeds["student"]),
            },
            "fastresnet": {
                "what": f"loader {chosen.config.loader}, amp {chosen.config.amp}, compile "
                f"{chosen.config.compile}, channels-last",
                "images_per_s": speeds["fastresnet"],
                "median": statistics.median(speeds["fastresnet"]),
            },
        },
        ratios=ratios,
        median_ratio=statistics.median(ratios),
    )


def _time(loop: Iterator[int], steps: int, device: torch.device) -> float:
    """Return the images a second of the next ``steps`` steps."""
    synchronise(device)
    start = time.perf_counter()
    images = sum(next(loop) for _ in range(steps))
    synchronise(device)
    return images / (time.perf_counter() - start)


def describe(record: dict[str, Any]) -> str:
    """Return a record as lines."""
    rows = record["rows"]
    lines = [
        f"{record['arch']}, batch {record['batch_size']}, {record['dataset']}, {record['environment']['device_name']}, "
        f"{len(record['ratios'])} rounds of {record['steps_per_round']} steps, interleaved"
    ]
    for name, row in rows.items():
        low, high = min(row["images_per_s"]), max(row["images_per_s"])
        lines.append(f"{name:<11}{row['median']:8.1f} img/s (median; {low:.1f} to {high:.1f})  {row['what']}")
    low, high = min(record["ratios"]), max(record["ratios"])
    lines.append(
        f"{'ratio':<11}{record['median_ratio']:8.2f} times (median of rounds; {low:.2f} to {high:.2f})"
    )
    return "\n".join(lines)


def default_record_path(kind: str) -> Path:
    """Return where a record of this kind is written unless told otherwise."""
    return Path("bench-results") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}.json"
