"""Batched image operations, a parameter for each image: torchvision's ``v2.functional`` on float images.

Images are float32 [B, 3, H, W] in [0, 1], channels-last. The reports' pipelines worked on 8-bit images and
rounded after each operation; these do not round.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def resample(images: torch.Tensor, inverse: torch.Tensor, bilinear: bool) -> torch.Tensor:
    """Return images drawn through [B, 6] inverse maps in pixels from the centre; 0 outside.

    As ``affine`` and ``rotate`` with ``fill=None``: nearest pixels (ties to even) or bilinear.
    """
    batch, _, height, width = images.shape
    a, b, c, d, e, f = (inverse[:, i].view(batch, 1, 1) for i in range(6))
    mid_x, mid_y = (width - 1) / 2, (height - 1) / 2
    x = (torch.arange(width, device=images.device, dtype=torch.float32) - mid_x).view(1, 1, width)
    y = (torch.arange(height, device=images.device, dtype=torch.float32) - mid_y).view(1, height, 1)
    from_x = a * x + (b * y + (c + mid_x))
    from_y = d * x + (e * y + (f + mid_y))
    if not bilinear:
        return _pixels(images, torch.round(from_x), torch.round(from_y))
    left, top = torch.floor(from_x), torch.floor(from_y)
    right_share, bottom_share = (from_x - left).unsqueeze(1), (from_y - top).unsqueeze(1)
    upper = torch.lerp(_pixels(images, left, top), _pixels(images, left + 1, top), right_share)
    lower = torch.lerp(_pixels(images, left, top + 1), _pixels(images, left + 1, top + 1), right_share)
    return torch.lerp(upper, lower, bottom_share)


def _pixels(images: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the pixels at whole-numbered float columns ``x`` and rows ``y`` [B, H, W], 0 outside."""
    batch, channels, height, width = images.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    place = y.clamp(0, height - 1).long() * width + x.clamp(0, width - 1).long()
    first = torch.arange(batch, device=images.device).view(batch, 1, 1) * (height * width)
    pixels = images.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    picked = pixels[(first + place).view(-1)] * inside.view(-1, 1)
    return picked.view(batch, height, width, channels).permute(0, 3, 1, 2)


def shrink(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return images [B, 3, size, size] of the same dtype and memory format; as they are where they have that size.

    Bilinear with antialiasing, as torchvision's ``resize`` and Pillow's: every pixel counts, at any size.
    Computed in float32, which is all that a CPU has it in.
    """
    if images.shape[-1] == size:
        return images
    small = functional.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return small.to(images.dtype)


def grayscale(images: torch.Tensor) -> torch.Tensor:
    """Return the luma [B, 1, H, W] of ITU-R 601-2, as torchvision rounds it."""
    return 0.2989 * images[:, 0:1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:3]


def blend(images: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return clamp(i * image + g * grayscale + m * mean of the grayscale) for shares (i, g, m) [B, 3].

    With factor f, ``adjust_brightness`` is (f, 0, 0), ``adjust_saturation`` (f, 1 - f, 0) and
    ``adjust_contrast`` (f, 0, 1 - f).
    """
    own, gray_share, mean_share = (shares[:, i].view(-1, 1, 1, 1) for i in range(3))
    gray = grayscale(images)
    towards = gray_share * gray + mean_share * gray.mean((1, 2, 3), keepdim=True)
    return (own * images + towards).clamp(0, 1)


def shift_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Return images with their hue moved by ``turns`` [B]; saturation and value stay. As ``adjust_hue``.

    Hue is in sixths of a turn; a channel is value - chroma * clamp(min(k, 4 - k), 0, 1), where k is the hue
    plus 5, 3 and 1 for red, green and blue: the same function as the textbook's six cases, without them.
    """
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    unit = torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / unit,
        torch.where(value == green, (blue - red) / unit + 2, (red - green) / unit + 4),
    )
    hue = hue + 6 * turns.view(-1, 1, 1)
    channels = []
    for offset in (5, 3, 1):
        k = torch.remainder(hue + offset, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, -1).permute(0, 3, 1, 2)


def gray_where(images: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return images whose channels are all their grayscale where ``chosen`` [B] is not 0."""
    return torch.where(chosen.view(-1, 1, 1, 1) != 0, grayscale(images), images)


def erase(images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return images that are 0 in ``boxes`` [B, 4] of (y0, y1, x0, x1), the ends not included."""
    y0, y1, x0, x1 = (boxes[:, i].view(-1, 1, 1, 1) for i in range(4))
    y = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
    x = torch.arange(images.shape[3], device=images.device).view(1, 1, 1, -1)
    return torch.where((y >= y0) & (y < y1) & (x >= x0) & (x < x1), 0.0, images)
