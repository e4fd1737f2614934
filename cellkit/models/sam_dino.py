"""The other vision transformer of Cellpose 4 (Cellpose-DINO: cpdino, cpdino-vitb), with the names of its published tensors.

Source: Siméoni et al., "DINOv3", arXiv 2508.10104: rotary places along rows and columns, a class token and four to store in,
scaled layers, no bias for keys. What comes before and after it is that of cellpose 4.2.1.1, vit.py, CPDINO, which itself needs
the package dinov3; that is in no package index. With the same weights the maps are the same (dinov3 @ 6876159a).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d, gelu, linear, scaled_dot_product_attention

from cellkit.machine import arithmetic

MAPS = 3  # flow y, flow x, cell probability (logit)
CELL_PX = 30.0
TILE_PX = 384  # what Cellpose shows it at once
EPS = 1e-5


@dataclass(frozen=True)
class DinoShape:
    """The size of a network; the default is that of `cpdino`, a ViT-L.

    Attributes
    ----------
    width, depth, heads : int
        Numbers per token; blocks; attention heads per block.
    patch_px, seen_px : int
        Side of a token's own square, and of the larger one that it is made from.
    mlp, stores : int
        Numbers inside a block's two layers; tokens to store in.
    tile_px : int
        Side of the square that the network is shown.
    """

    width: int = 1024
    depth: int = 24
    heads: int = 16
    patch_px: int = 8
    seen_px: int = 16
    mlp: int = 4096
    stores: int = 4
    tile_px: int = TILE_PX


class _Named(nn.Module):
    """Modules by name, as published tensors are called."""

    def __init__(self, **modules: nn.Module):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class _Keyless(nn.Linear):
    """Queries, keys and values, whose bias is multiplied by a mask: 0 for keys."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        mask = torch.ones(outputs)
        mask[outputs // 3 : 2 * outputs // 3] = 0
        self.register_buffer("bias_mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias * self.bias_mask)


class _Scaled(nn.Module):
    """A factor for each number of a token."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class _Block(nn.Module):
    """Attention, then two layers for each token; both scaled and added."""

    def __init__(self, shape: DinoShape):
        super().__init__()
        self.heads = shape.heads
        self.norm1, self.norm2 = nn.LayerNorm(shape.width, EPS), nn.LayerNorm(shape.width, EPS)
        self.attn = _Named(qkv=_Keyless(shape.width, 3 * shape.width), proj=nn.Linear(shape.width, shape.width))
        self.mlp = _Named(fc1=nn.Linear(shape.width, shape.mlp), fc2=nn.Linear(shape.mlp, shape.width))
        self.ls1, self.ls2 = _Scaled(shape.width), _Scaled(shape.width)

    def forward(self, x: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Map (B, N, width) to the same; `turns` are sine and cosine of the tokens that have a place, the last ones."""
        q, k, v = self.attn.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = (turned(one, *turns) for one in (q, k))
        x = x + self.ls1(self.attn.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        return x + self.ls2(self.mlp.fc2(gelu(self.mlp.fc1(self.norm2(x)))))


def turned(x: torch.Tensor, sine: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
    """Return queries or keys (B, heads, N, c) of which those of the last tokens are turned by their places, (n, c) each."""
    first, last = x[:, :, : -len(sine)], x[:, :, -len(sine) :]
    left, right = last.chunk(2, dim=-1)
    return torch.cat([first, (last * cosine + torch.cat([-right, left], dim=-1) * sine).to(x.dtype)], dim=2)


class CellposeDINO(nn.Module):
    """Three channels in, three maps out (flow y, flow x, cell probability logit), in squares of ``shape.tile_px``.

    Attributes
    ----------
    shape : DinoShape
    arithmetic : cellkit.machine.Arithmetic
        What it is computed in; the weights are float32.
    """

    def __init__(self, shape: DinoShape = DinoShape()):
        super().__init__()
        self.shape, self.arithmetic = shape, arithmetic()
        width, per_head = shape.width, shape.width // shape.heads
        encoder = _Named(
            patch_embed=_Named(proj=nn.Conv2d(3, width, shape.seen_px)),
            rope_embed=nn.Module(),
            blocks=nn.ModuleList(_Block(shape) for _ in range(shape.depth)),
            norm=nn.LayerNorm(width, EPS),
        )
        encoder.rope_embed.register_buffer("periods", 100.0 ** (torch.arange(per_head // 4) / (per_head / 4)))
        for name, count in (("cls_token", (1, 1)), ("storage_tokens", (1, shape.stores)), ("mask_token", (1,))):
            encoder.register_parameter(name, nn.Parameter(torch.randn(*count, width) * 0.02))
        numbers = MAPS * shape.patch_px**2
        self.encoder, self.out = encoder, nn.Linear(width, numbers)
        pixels = torch.eye(numbers).reshape(numbers, MAPS, shape.patch_px, shape.patch_px)
        self.W2 = nn.Parameter(pixels, requires_grad=False)  # from the numbers of a token to its pixels
        self.diam_mean = nn.Parameter(torch.tensor([CELL_PX]), requires_grad=False)
        self.diam_labels = nn.Parameter(torch.tensor([CELL_PX]), requires_grad=False)

    def turns(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sine and cosine of the place of each token, (height * width, c) each."""
        periods = self.encoder.rope_embed.periods.float()
        rows, columns = (2 * (torch.arange(n, device=periods.device) + 0.5) / n - 1 for n in (height, width))
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
        angles = (2 * math.pi * places[:, :, None] / periods).flatten(1).tile(2)
        return angles.sin(), angles.cos()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, tile_px, tile_px) float to the same."""
        encoder, patch = self.encoder, self.shape.patch_px
        padding = (self.shape.seen_px - patch) // 2 if self.shape.seen_px > patch else 0
        x = conv2d(x, encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias, stride=patch, padding=padding)
        height, width = x.shape[-2:]
        stores = torch.cat([encoder.cls_token, encoder.storage_tokens], dim=1).expand(len(x), -1, -1)
        x, turns = torch.cat([stores, x.flatten(2).transpose(1, 2)], dim=1), self.turns(height, width)
        for block in encoder.blocks:
            x = block(x, turns)
        x = self.out(encoder.norm(x)[:, stores.shape[1] :])
        return conv_transpose2d(x.unflatten(1, (height, width)).permute(0, 3, 1, 2), self.W2.to(x.dtype), stride=patch)


def shape_of(tensors: Mapping[str, torch.Tensor]) -> DinoShape | None:
    """Return the size of the network that tensors are of; None where they are of no such network.

    Examples
    --------
    >>> small = DinoShape(width=32, depth=2, heads=2, mlp=64)
    >>> shape_of(CellposeDINO(small).state_dict()) == small, shape_of({})
    (True, None)
    """
    blocks = {found[1] for key in tensors if (found := re.match(r"encoder\.blocks\.(\d+)\.", key))}
    try:
        patch = tensors["encoder.patch_embed.proj.weight"]
        return DinoShape(
            width=patch.shape[0],
            depth=len(blocks),
            heads=patch.shape[0] // (4 * len(tensors["encoder.rope_embed.periods"])),
            patch_px=tensors["W2"].shape[2],
            seen_px=patch.shape[2],
            mlp=tensors["encoder.blocks.0.mlp.fc1.weight"].shape[0],
            stores=tensors["encoder.storage_tokens"].shape[1],
        )
    except (KeyError, IndexError, ZeroDivisionError):
        return None
