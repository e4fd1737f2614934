"""Cellpose's residual U-Net in torch alone: this file goes along with the weights, and needs nothing else to run them.

It gives what `cellkit.models.unet_network` gives, to the rounding of a float32; that one is faster and can be trained. The
network is that of Stringer et al., Nature Methods 2021 (Cellpose 1 to 3), and its tensors have the published names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def _block(inputs: int, outputs: int, size: int, relu: bool = True) -> nn.Sequential:
    """Batch norm, ReLU, convolution."""
    layers: list[nn.Module] = [nn.BatchNorm2d(inputs, eps=1e-5), *([nn.ReLU()] if relu else [])]
    return nn.Sequential(*layers, nn.Conv2d(inputs, outputs, size, padding=size // 2))


class _Down(nn.Module):
    """Two residual pairs of convolutions."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        blocks = {f"conv_{k}": _block(outputs if k else inputs, outputs, 3) for k in range(4)}
        self.conv = nn.ModuleDict(blocks)
        self.proj = _block(inputs, outputs, 1, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(x) + self.conv["conv_1"](self.conv["conv_0"](x))
        return x + self.conv["conv_3"](self.conv["conv_2"](x))


class _Styled(nn.Module):
    """A convolution whose input is shifted, channel by channel, by the style of the image."""

    def __init__(self, channels: int, style: int):
        super().__init__()
        self.conv = _block(channels, channels, 3)
        self.full = nn.Linear(style, channels)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        return self.conv(x + self.full(style)[:, :, None, None])


class _Up(nn.Module):
    """Two residual pairs; the skip connection is added after the first convolution."""

    def __init__(self, inputs: int, outputs: int, style: int):
        super().__init__()
        blocks = {"conv_0": _block(inputs, outputs, 3)} | {f"conv_{k}": _Styled(outputs, style) for k in (1, 2, 3)}
        self.conv = nn.ModuleDict(blocks)
        self.proj = _block(inputs, outputs, 1, relu=False)

    def forward(self, x: torch.Tensor, skip: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        x = self.proj(x) + self.conv["conv_1"](self.conv["conv_0"](x) + skip, style)
        return x + self.conv["conv_3"](self.conv["conv_2"](x, style), style)


class _Levels(nn.Module):
    """One half of the network; `name` is that of its levels among the tensors."""

    def __init__(self, name: str, levels: Sequence[nn.Module]):
        super().__init__()
        self.add_module(name, nn.ModuleDict({f"res_{name}_{k}": level for k, level in enumerate(levels)}))


class CellposeUNet(nn.Module):
    """Two channels in (cytoplasm, nuclei), three maps out (flow y, flow x, cell probability as a logit).

    Parameters
    ----------
    widths : sequence of int
        Channels at strides 1, 2, 4 and 8.

    Notes
    -----
    Height and width are multiples of 8. ``diam_mean`` is the diameter in px that the cells shown should have,
    ``diam_labels`` that of the cells it was trained on.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256)):
        super().__init__()
        self.widths = tuple(widths)
        down = [_Down(i, o) for i, o in zip((2, *widths[:-1]), widths, strict=True)]
        up = [_Up(i, o, widths[-1]) for i, o in zip((*widths[1:], widths[-1]), widths, strict=True)]
        self.downsample, self.upsample = _Levels("down", down), _Levels("up", up)
        self.output = _block(widths[0], 3, 1)
        self.diam_mean = nn.Parameter(torch.tensor([30.0]), requires_grad=False)
        self.diam_labels = nn.Parameter(torch.tensor([30.0]), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, 2, H, W) float32 to (B, 3, H, W) float32; a channel's 1st and 99th percentile are shown as 0 and 1."""
        skips: list[torch.Tensor] = []
        for k, level in enumerate(self.downsample.down.values()):
            x = level(nn.functional.max_pool2d(x, 2) if k else x)
            skips.append(x)
        style = x.mean(dim=(2, 3))
        style = style / style.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
        for k, level in reversed(list(enumerate(self.upsample.up.values()))):
            if k + 1 < len(skips):
                x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = level(x, skips[k], style)
        return self.output(x)
