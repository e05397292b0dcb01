"""The Muon optimizer for weight matrices; refuses vectors and embeddings, which are not orthogonalised.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonalised(stack: Tensor) -> Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrices; `stack` is [matrices, rows, columns]."""
    a, b, c = COEFFICIENTS
    x: Tensor = stack.bfloat16() if stack.is_cuda else stack.float()  # CPUs are slow at the former
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are orthogonalised; matrices of one size are updated together to save kernel launches."""

    def __init__(self, matrices: Sequence[Tensor], rate: float, momentum: float = 0.95, decay: float = 0.02) -> None:
        super().__init__(matrices, {"lr": rate, "momentum": momentum, "decay": decay})
        sizes: dict[torch.Size, list[Tensor]] = {}
        for matrix in matrices:
            sizes.setdefault(matrix.shape, []).append(matrix)
        self._groups = list(sizes.values())
        self._momenta = [torch.zeros((len(group), *group[0].shape), device=group[0].device) for group in self._groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # refuses closures
        """Update every matrix from its gradient."""
        assert closure is None
        options = self.param_groups[0]
        for group, momentum in zip(self._groups, self._momenta, strict=True):
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            momentum.lerp_(gradient, 1.0 - options["momentum"])
            update = orthogonalised(gradient.lerp(momentum, options["momentum"]))
            scale = max(1.0, update.shape[-2] / update.shape[-1]) ** 0.5
            torch._foreach_mul_(group, 1.0 - options["lr"] * options["decay"])
            torch._foreach_add_(group, list(update.float().unbind()), alpha=-options["lr"] * scale)
