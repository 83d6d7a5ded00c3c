"""Muon: momentum whose update of each convolution filter is orthogonalised (Jordan 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

# Quintic Newton-Schulz, as steep at 0 as goes while singular values end between 0.7 and 1.2 (Jordan).
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(
    matrices: torch.Tensor, num_steps: int, products: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return float matrices [n, rows, columns] with their singular values brought near 1, same dtype.

    ``products``: float32 or bfloat16, of the matrix products.
    """
    x = matrices.to(products)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    # The Frobenius norm bounds the greatest singular value, as the iteration needs.
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov's momentum; in groups with ``orthogonal`` set, each update is orthogonalised.

    A group holds params, lr, base_lr, momentum, weight_decay (coupled), orthogonal, ns_steps and
    normalise_filters. Filters [out, in, F, F] are taken as matrices [out, in * F * F], those of one shape
    together. The products are in bfloat16 where ``bf16_products`` is set, and on GPUs, as Jordan's are.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, bf16_products: bool = False) -> None:
        super().__init__(groups, {})
        self._bf16_products = bf16_products

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one step from the gradients; a closure is not taken."""
        assert closure is None
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._step_group(group, weights)

    def _step_group(self, group: dict[str, Any], weights: list[torch.Tensor]) -> None:
        gradients = [p.grad for p in weights if p.grad is not None]
        for p in weights:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in weights]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        updates = list(torch._foreach_add(gradients, momenta, alpha=group["momentum"]))
        if group["orthogonal"]:
            updates = self._orthogonalised(updates, group["ns_steps"])
            if group["normalise_filters"]:
                for p in weights:
                    p.mul_(p.shape[0] ** 0.5 / torch.linalg.vector_norm(p))
        if isinstance(group["lr"], torch.Tensor):
            torch._foreach_sub_(weights, torch._foreach_mul(updates, group["lr"]))
        else:
            torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _orthogonalised(self, updates: list[torch.Tensor], num_steps: int) -> list[torch.Tensor]:
        """Return each update orthogonalised: one batched iteration for the filters of each shape."""
        by_shape: dict[torch.Size, list[int]] = {}
        for i, update in enumerate(updates):
            by_shape.setdefault(update.shape, []).append(i)
        done = list(updates)
        for shape, members in by_shape.items():
            matrices = torch.stack([updates[i].reshape(shape[0], -1) for i in members])
            in_bf16 = self._bf16_products or matrices.is_cuda
            made = orthogonalise(matrices, num_steps, torch.bfloat16 if in_bf16 else torch.float32)
            for i, matrix in zip(members, made.unbind(), strict=True):
                done[i] = matrix.view(shape)
        return done
