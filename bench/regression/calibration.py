"""The built-in calibration loop: fixed work of the kinds that training is made of."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastresnet.engine.machine import synchronise

SIDE = {"cpu": 384, "cuda": 4096}
PRODUCTS = 4
COPIED_BYTES = {"cpu": 2**23, "cuda": 2**28}
PYTHON_STEPS = 20_000  # interpreter work, which launches and loaders are made of


def calibration_loop(device: torch.device) -> Callable[[], None]:
    """Return the loop for a device: matrix products, a copy and plain Python; some milliseconds a call."""
    side = SIDE[device.type]
    left, right = (torch.full((side, side), 0.5, device=device) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.ones(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def loop() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right, out=product)
        target.copy_(source)
        total = 0
        for step in range(PYTHON_STEPS):
            total += step
        synchronise(device)

    return loop
