"""Batch norm over the crops of all processes of a training: what it divides by is that of the whole batch.

`torch.nn.SyncBatchNorm` does the same on GPUs alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed import all_reduce


class _Summed(torch.autograd.Function):
    """A tensor summed over all processes; what comes back to it is what comes back in all."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()
        all_reduce(total)
        return total


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm of features (B, C, H, W), B being this process's share, of which no process has none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features by mean and variance of the whole batch while it is trained, else by those it has learned."""
        if not self.training:
            return super().forward(x)
        over_all = _Summed.apply
        wide = x.float()
        count = over_all(wide.new_tensor([float(wide[:, 0].numel())]))
        mean = over_all(wide.sum((0, 2, 3))) / count
        apart = wide - mean[:, None, None]
        variance = over_all(apart.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (apart * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def share_norms(network: nn.Module) -> None:
    """Let all batch norms of a network look at the crops of all processes; parameters, and how they are called, stay."""
    for module in network.children():
        share_norms(module)
    for name, module in network.named_children():
        if type(module) is nn.BatchNorm2d:
            shared = SharedBatchNorm(module.num_features, module.eps, module.momentum)
            shared.weight, shared.bias = module.weight, module.bias
            for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(shared, buffer, getattr(module, buffer))
            setattr(network, name, shared.train(module.training))
