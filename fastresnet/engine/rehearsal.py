"""What a warm-up is done with: random batches, and loaders that have started."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fastresnet.draws import Purpose, below, stream
from fastresnet.loaders.protocol import Batch, Loader


def random_batches(
    sizes: list[int], image_size: int, num_classes: int, members: torch.Tensor, device: torch.device
) -> list[Batch]:
    """Return batches of one image of noise over and over, with random labels and the first members' indices."""
    batches = []
    for size in sizes:
        places = torch.arange(size)
        labels = below(stream(0, Purpose.WARMUP, 0), places.numpy(), num_classes)
        shape = (size, image_size, image_size, 3)
        pixels = below(stream(0, Purpose.WARMUP, 1), torch.arange(image_size**2 * 3).numpy(), 256)
        images = torch.from_numpy(pixels).to(torch.uint8).view(shape[1:]).expand(shape).contiguous()
        batches.append(
            Batch(
                images.to(device).permute(0, 3, 1, 2),
                torch.from_numpy(labels).to(device),
                members[places % len(members)].to(device),
            )
        )
    return batches


def warm_loaders(loaders: Iterable[Loader]) -> None:
    """Take the first and the last batch of each loader, for whatever it compiles or starts for their shapes."""
    for loader in loaders:
        for start in sorted({0, len(loader) - 1}):
            loader.set_epoch(0, start)
            for _ in loader:
                break
