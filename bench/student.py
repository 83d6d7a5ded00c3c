"""The loop that a student would write: a textbook ResNet, a DataLoader with torchvision's transforms, float32.

And the same loop with one thing after another changed, as one speeds such a loop up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fastresnet.arch import ArchSpec
from fastresnet.assembly import Data
from fastresnet.bench.loop_process import Loop
from fastresnet.errors import UserError
from fastresnet.resnet import build_model
from fastresnet.torchvision_import import import_torchvision

NUM_WORKERS = 2


class TextbookBlock(nn.Module):
    """conv - BN - ReLU - conv - BN, plus the shortcut, ReLU (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class TextbookResNet(nn.Module):
    """The network of a spec with basic blocks of 3x3 convolutions; logits of images [B, 3, H, W].

    Raises:
        UserError: the spec has other blocks, kernels or activations.
    """

    def __init__(self, spec: ArchSpec, num_classes: int, image_size: int) -> None:
        super().__init__()
        plain = spec.replace(blocks=spec.blocks, kernels=(), shortcut_kernels=(), stem=3, stem_channels=None)
        if (
            plain != spec
            or (spec.down, spec.head_pool) != ("stride", "average")
            or spec.block != "basic"
            or spec.activation != "relu"
            or any(vars(spec.dropout).values())
        ):
            raise UserError(
                f"the student's network has basic blocks of 3x3 convolutions and ReLU alone, and {spec.slug} has "
                "not; choose one such as resnet24"
            )
        width = spec.channels[0]
        layers: list[nn.Module] = [
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        for stage, (blocks, channels) in enumerate(zip(spec.blocks, spec.channels, strict=True)):
            for block in range(blocks):
                layers.append(TextbookBlock(width, channels, 2 if stage and not block else 1))
                width = channels
        pool = spec.pool or spec.map_sizes(image_size)[-1]
        layers += [nn.AvgPool2d(pool), nn.Flatten()]
        layers.append(nn.Linear(width * spec.pooled_size(image_size) ** 2, num_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


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


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is changed of the student's loop; nothing by default.

    Attributes:
        channels_last: the network and its images in channels-last layout.
        amp_dtype: autocast to it, with a loss scale for float16; None is float32.
        compiled: the network through torch.compile.
        kernels: our network in place of the textbook one, its norms by this implementation.
    """

    channels_last: bool = False
    amp_dtype: torch.dtype | None = None
    compiled: bool = False
    kernels: str | None = None

    def describe(self) -> str:
        """Return the loop in words."""
        dtype = str(self.amp_dtype or torch.float32).removeprefix("torch.")
        parts = [
            f"DataLoader with {NUM_WORKERS} workers and torchvision transforms",
            "compiled" if self.compiled else "eager",
            dtype,
            "channels-last" if self.channels_last else "NCHW",
        ]
        if self.kernels is not None:
            parts.append(f"norms by {self.kernels}")
        return ", ".join(parts)


class Student:
    """The loop: network, optimizer and loss, with what is changed of it."""

    def __init__(self, data: Data, spec: ArchSpec, device: torch.device, changes: Changes) -> None:
        dataset = data.dataset
        sizes = dataset.num_classes, dataset.image_size
        model: nn.Module
        if changes.kernels is None:
            model = TextbookResNet(spec, *sizes)
        else:
            model = build_model(spec, *sizes, kernels=changes.kernels)
        model = model.to(device).train()
        if changes.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: Any = torch.compile(model) if changes.compiled else model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        self.criterion = nn.CrossEntropyLoss()
        self.scaler = torch.amp.GradScaler(device.type, enabled=changes.amp_dtype == torch.float16)
        self.device = device
        self.amp_dtype = changes.amp_dtype
        self.layout = torch.channels_last if changes.channels_last else torch.preserve_format

    def train(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[int]:
        """Train an epoch, and yield the images of each step."""
        train_loss, num_correct = 0.0, 0
        for images, labels in batches:
            inputs, targets = images.to(self.device, memory_format=self.layout), labels.to(self.device)
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
                outputs = self.model(inputs)
                loss = self.criterion(outputs, targets)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            train_loss += loss.item()
            num_correct += outputs.max(1)[1].eq(targets).sum().item()
            yield len(labels)


def student_loop(data: Data, spec: ArchSpec, batch_size: int, device_name: str, changes: Changes) -> Loop:
    """Return the loop, for a process of its own."""
    device = torch.device(device_name)
    student = Student(data, spec, device, changes)
    loader = DataLoader(
        StudentImages(data),
        batch_size=batch_size,
        shuffle=True,
        num_workers=NUM_WORKERS,
        multiprocessing_context="fork",  # Linux's default, which a spawned process does not inherit
        drop_last=True,
        pin_memory=device.type == "cuda",
    )

    def steps() -> Iterator[int]:
        while True:
            yield from student.train(loader)

    def steps_alone() -> Iterator[int]:
        images, labels = next(iter(loader))
        batch = images.to(device, memory_format=student.layout), labels.to(device)
        yield from student.train(itertools.repeat(batch))

    return Loop(steps=steps(), steps_alone=steps_alone(), what=changes.describe(), device=device)
