"""The loop that a student would write: a textbook ResNet, a DataLoader with torchvision's transforms, float32."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fastresnet.arch import ArchSpec
from fastresnet.assembly import Data
from fastresnet.engine.warmup import synchronise
from fastresnet.errors import UserError
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


class StudentProcess:
    """The loop in a process of its own, idle but while it is timed: nothing of ours is in it.

    Its settings (threads, allocator) are torch's defaults, and its loading workers rest when their queue is full.
    """

    def __init__(self, data: Data, spec: ArchSpec, batch_size: int, device: torch.device) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, data, spec, batch_size, str(device))
        self._process = context.Process(target=_serve, args=arguments, name="student")
        self._process.start()
        theirs.close()

    def time(self, steps: int) -> float:
        """Train ``steps`` steps and return the images a second."""
        self._pipe.send(steps)
        try:
            return float(self._pipe.recv())
        except EOFError:
            raise UserError("the student's process ended early; its error stands above") from None

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, data: Data, spec: ArchSpec, batch_size: int, device: str) -> None:
    """Answer each number of steps with images a second, until the other end closes."""
    loop = student_loop(data, spec, batch_size, torch.device(device))
    while True:
        try:
            steps = pipe.recv()
        except EOFError:
            return
        pipe.send(time_steps(loop, steps, torch.device(device)))


def time_steps(loop: Iterator[int], steps: int, device: torch.device) -> float:
    """Return the images a second of the loop's next ``steps`` steps."""
    synchronise(device)
    start = time.perf_counter()
    images = sum(next(loop) for _ in range(steps))
    synchronise(device)
    return images / (time.perf_counter() - start)


def student_loop(data: Data, spec: ArchSpec, batch_size: int, device: torch.device) -> Iterator[int]:
    """Train without end, and yield the images of each step."""
    model = TextbookResNet(spec, data.dataset.num_classes, data.dataset.image_size).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(
        StudentImages(data),
        batch_size=batch_size,
        shuffle=True,
        num_workers=NUM_WORKERS,
        multiprocessing_context="fork",  # Linux's default, which a spawned process does not inherit
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    train_loss, num_correct = 0.0, 0
    while True:
        for images, labels in loader:
            inputs, targets = images.to(device), labels.to(device)
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = criterion(outputs, targets)
            loss.backward()
            optimizer.step()
            train_loss += loss.item()
            num_correct += outputs.max(1)[1].eq(targets).sum().item()
            yield len(labels)
