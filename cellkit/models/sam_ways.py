"""Which weights of Cellpose-SAM an adaptation trains, and how a training step goes through the network.

Sources: blocks near the end, "Parameter efficient fine-tuning of Segment Anything Model for biomedical imaging", arXiv 2502.00418
(where weights are trained matters more than how); LoRA, Hu et al., ICLR 2022, with rank and places of CellSeg1, arXiv 2412.01410;
stochastic depth, Huang et al., ECCV 2016, with the shares of cellpose 4.2.1.1, vit.py.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cellkit.errors import UserError

Way = Literal["head", "late", "lora", "all"]
LORA_AT = r".*\.qkv"  # the layers that are given low-rank parts: queries, keys and values of every block


def train_by(network: nn.Module, way: Way, late_blocks: int, rank: int, dropout: float, seed: int) -> int:
    """Let an adaptation train the weights of one of the four ways and no others.

    Parameters
    ----------
    network : cellkit.models.sam_network.CellposeSAM
    way : {"head", "late", "lora", "all"}
        What follows the blocks; that and the last blocks; low-rank parts beside the attention's weights; everything but the
        embedding of the patches, which Cellpose 4 leaves as it is too.
    late_blocks : int
        How many are the last blocks.
    rank, dropout : int, float
        Of the low-rank parts.
    seed : int
        What these begin with.

    Returns
    -------
    int
        How many blocks, from the first on, need no gradient.

    Raises
    ------
    UserError
        There are more late blocks than blocks.
    """
    blocks = network.encoder.blocks
    network.requires_grad_(False)
    if way == "lora":
        _add_lora(network, rank, dropout, seed)
        return 0
    if way == "late":
        check_late(late_blocks, len(blocks))
    frozen = {"head": len(blocks), "late": len(blocks) - late_blocks, "all": 0}[way]
    for part in (network.encoder.neck, network.out, *blocks[frozen:]):
        part.requires_grad_(True)
    if way == "all" and network.encoder.pos_embed is not None:
        network.encoder.pos_embed.requires_grad_(True)
    return frozen


def check_late(late_blocks: int, blocks: int) -> None:
    """Refuse more late blocks than blocks.

    Raises
    ------
    UserError
        With both numbers.
    """
    if late_blocks > blocks:
        raise UserError(
            f"finetune.late_blocks is {late_blocks}, the network has {blocks} blocks", "set fewer, or way: all"
        )


def _add_lora(network: nn.Module, rank: int, dropout: float, seed: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    from cellkit.models.training import random_state_kept

    with random_state_kept():
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=LORA_AT)
        inject_adapter_in_model(config, network)


def merge_lora(network: nn.Module) -> None:
    """Add the low-rank parts to the weights beside which they lie, and take them away: a plain network again."""
    for name, module in list(network.named_modules()):
        if hasattr(module, "base_layer"):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, module.base_layer)


def dropped(step: int, seed: int, crops: int, blocks: int, share: float) -> np.ndarray:
    """Return which blocks are left out for which crops of a step, (crops, blocks) bool: the later, the more often.

    Parameters
    ----------
    share : float
        Of the crops that leave out the last block; the first is never left out.

    Examples
    --------
    >>> dropped(0, 0, 1000, 3, 0.4).mean(axis=0).round(1).tolist()
    [0.0, 0.2, 0.4]
    """
    drawn = np.random.default_rng([seed, step, 1]).random((crops, blocks))
    return drawn < np.linspace(0, share, blocks)


def forward(
    network: nn.Module,
    planes: torch.Tensor,
    frozen: int = 0,
    left_out: np.ndarray | None = None,
    corner: tuple[int, int] = (0, 0),
    recompute: bool = True,
) -> torch.Tensor:
    """Return the maps of crops, (B, 3, h, w), on the way to a gradient.

    Parameters
    ----------
    planes : (B, 3, h, w) float32
        Height and width are multiples of the side of a token, and no larger than the network's tile.
    frozen : int
        Blocks, from the first on, of which nothing is kept for the way back.
    left_out : (B, blocks) bool, optional
        Blocks that a crop does not go through; frozen ones are gone through all the same.
    corner : (int, int)
        Where in the network's tile, from above and from the left (px), the crops lie.
    recompute : bool
        Compute the inside of a block again on the way back, in place of keeping it.
    """
    encoder, patch = network.encoder, network.ps
    with torch.no_grad():  # the patches' embedding stays as it is, as in cellpose
        embedding = encoder.patch_embed.proj
        x = nn.functional.conv2d(planes, embedding.weight, embedding.bias, stride=patch).permute(0, 2, 3, 1)
    (y, left), (height, width) = (at // patch for at in corner), x.shape[1:3]
    x = x + encoder.pos_embed[:, y : y + height, left : left + width]
    for number, block in enumerate(encoder.blocks):
        if number < frozen:
            with torch.no_grad():
                x = block(x)
            continue
        out = np.zeros(len(x), bool) if left_out is None else left_out[:, number]
        if out.all():
            continue
        through = torch.from_numpy(np.flatnonzero(~out)).to(x.device) if out.any() else None
        some = x if through is None else x[through]
        some = checkpoint(block, some, use_reentrant=False) if recompute else block(some)
        x = some if through is None else x.index_copy(0, through, some.to(x.dtype))
    numbers = network.out(encoder.neck(x.permute(0, 3, 1, 2)))
    return nn.functional.conv_transpose2d(numbers, network.W2, stride=patch)


def trained_numbers(network: nn.Module) -> tuple[int, int]:
    """Return how many numbers of a network are trained, and how many it has."""
    sizes: list[tuple[int, Any]] = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
