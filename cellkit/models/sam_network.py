"""The vision transformer of Cellpose 4 (Cellpose-SAM): the cellpose package's network, of any size, with attention in one piece.

Source: Pachitariu, Rariden, Stringer, "Cellpose-SAM: superhuman generalization for cellular segmentation", bioRxiv 2025;
network and names of its tensors are those of cellpose 4.2.1.1, vit.py, and segment_anything 1.0, image_encoder.py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from cellkit.errors import UserError
from cellkit.machine import arithmetic
from cellkit.models import sam_dino, weights
from cellkit.models.sam_dino import CellposeDINO

BACKEND = "cellpose_sam"  # whose checkpoints hold this network
SCRATCH = "scratch"
MAPS = 3  # flow y, flow x, cell probability (logit)
CELL_PX = 30.0  # diameter to which cells are scaled, where one is told
logging.getLogger("cellpose.vit").setLevel(
    logging.ERROR
)  # it advises of a package that is asked for where it is needed
from cellpose.vit import CPSAM, BaseModel  # noqa: E402
from segment_anything.modeling.image_encoder import Attention, ImageEncoderViT, get_rel_pos  # noqa: E402


@dataclass(frozen=True)
class Shape:
    """The size of a network; the default is that of `cpsam` and `cpsam_v2`, a ViT-L.

    Attributes
    ----------
    width, depth, heads : int
        Numbers per token; blocks; attention heads per block.
    patch_px, tile_px : int
        Side of a token, and of the square that the network is shown.
    mlp, neck : int
        Numbers inside a block's two layers, and after the last block.
    places : tuple of int
        Of each block, how many relative places it has learnt in each direction.
    """

    width: int = 1024
    depth: int = 24
    heads: int = 16
    patch_px: int = 8
    tile_px: int = 256
    mlp: int = 4096
    neck: int = 256
    places: tuple[int, ...] = tuple(127 if block % 6 == 5 else 27 for block in range(24))


class FusedAttention(Attention):
    """Attention with relative places, computed without ever holding a number for each pair of tokens.

    What a place adds to a pair is a sum of one number for its rows and one for its columns (`add_decomposed_rel_pos`). With
    these numbers behind the query, and behind the key a 1 at its own row and column, the product of the two holds it already.
    So the kernels of `torch.nn.functional.scaled_dot_product_attention` serve, and the result is that of the original.

    Parameters
    ----------
    side : int
        Tokens in each direction of the square that the network is shown; a smaller one keeps the distances learnt in it.
    """

    def __init__(self, width: int, heads: int, places: int, side: int):
        super().__init__(width, heads, use_rel_pos=True, input_size=((places + 1) // 2,) * 2)
        self.side = side
        self.kept: list[torch.Tensor] | None = None  # the tables of places that are not trained

    def tables(self) -> list[torch.Tensor]:
        """Return what the query is multiplied with for each pair of rows, and of columns: (side, side, c) each."""
        return [get_rel_pos(self.side, self.side, table) for table in (self.rel_pos_h, self.rel_pos_w)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, width) to the same."""
        batch, height, width, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        rows, columns = self.kept or self.tables()
        rows, columns = rows[:height, :height], columns[:width, :width]
        placed = q.unflatten(2, (height, width))
        by_row = torch.einsum("bnhwc,hkc->bnhwk", placed, rows.to(q.dtype))
        by_column = torch.einsum("bnhwc,wkc->bnhwk", placed, columns.to(q.dtype))
        q = torch.cat([q * self.scale, by_row.flatten(2, 3), by_column.flatten(2, 3)], dim=-1)
        own = own_place(height, width, k.dtype, k.device)
        k = torch.cat([k, own.expand(*k.shape[:2], *own.shape)], dim=-1)
        out = nn.functional.scaled_dot_product_attention(q, k, nn.functional.pad(v, (0, height + width)), scale=1.0)
        out = out[..., : v.shape[-1]].transpose(1, 2).reshape(batch, height, width, -1)
        return self.proj(out)


@lru_cache(maxsize=4)
def own_place(height: int, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return, (H * W, H + W), a 1 at the row and one at the column of each token.

    Examples
    --------
    >>> own_place(1, 2, torch.int32, torch.device("cpu")).tolist()
    [[1, 1, 0], [1, 0, 1]]
    """
    rows = torch.eye(height, dtype=dtype, device=device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=dtype, device=device).repeat(height, 1)
    return torch.cat([rows, columns], dim=1)


class CellposeSAM(CPSAM):
    """Three channels in, three maps out (flow y, flow x, cell probability logit), in squares of ``shape.tile_px``.

    The names of its tensors are those of Cellpose 4, whose package can run them again.

    Attributes
    ----------
    shape : Shape
    arithmetic : cellkit.machine.Arithmetic
        What it is computed in; the weights are float32.
    diam_labels : nn.Parameter
        Mean diameter in px of the labels that the weights were trained on.
    """

    def __init__(self, shape: Shape = Shape()):
        BaseModel.__init__(self)  # that of CPSAM would first make the whole of SAM, in one size only
        self.shape, self.arithmetic = shape, arithmetic()
        self.nout, self.ps = MAPS, shape.patch_px
        self.rdrop = 0.0  # it is trained by `sam_ways.forward`, which leaves out blocks itself
        self.encoder = ImageEncoderViT(
            img_size=shape.tile_px,
            patch_size=shape.patch_px,
            embed_dim=shape.width,
            depth=shape.depth,
            num_heads=shape.heads,
            mlp_ratio=shape.mlp / shape.width,
            out_chans=shape.neck,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        for block, places in zip(self.encoder.blocks, shape.places, strict=True):
            block.attn = FusedAttention(shape.width, shape.heads, places, shape.tile_px // shape.patch_px)
        numbers = MAPS * shape.patch_px**2
        self.out = nn.Conv2d(shape.neck, numbers, kernel_size=1)
        places = torch.eye(numbers).reshape(numbers, MAPS, shape.patch_px, shape.patch_px)
        self.W2 = nn.Parameter(places, requires_grad=False)  # from the numbers of a token to its pixels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, tile_px, tile_px) float to the same."""
        return super().forward(x)[0]


AnyNetwork = TypeVar("AnyNetwork", CellposeSAM, CellposeDINO)


# ---- opening ---------------------------------------------------------------------------------------------------------
def shape_of(tensors: Mapping[str, torch.Tensor]) -> Shape | None:
    """Return the size of the network that tensors are of; None where they are of no such network.

    Examples
    --------
    >>> small = Shape(width=16, depth=2, heads=2, mlp=32, neck=8, places=(127, 27))
    >>> shape_of(CellposeSAM(small).state_dict()) == small, shape_of({})
    (True, None)
    """
    numbers = {int(found[1]) for key in tensors if (found := re.match(r"encoder\.blocks\.(\d+)\.", key))}
    blocks = [f"encoder.blocks.{k}" for k in sorted(numbers)]
    try:
        patch, seen = tensors["encoder.patch_embed.proj.weight"], tensors["encoder.pos_embed"]
        tables = [tensors[f"{block}.attn.rel_pos_h"] for block in blocks]
        return Shape(
            width=patch.shape[0],
            depth=len(blocks),
            heads=patch.shape[0] // tables[0].shape[1],
            patch_px=patch.shape[2],
            tile_px=patch.shape[2] * seen.shape[1],
            mlp=tensors[f"{blocks[0]}.mlp.lin1.weight"].shape[0],
            neck=tensors["encoder.neck.0.weight"].shape[0],
            places=tuple(len(table) for table in tables),
        )
    except (KeyError, IndexError, ZeroDivisionError):
        return None


def load_network(
    checkpoint: str | Path, precision: str | None = None
) -> tuple[CellposeSAM | CellposeDINO, dict[str, Any]]:
    """Return the network in evaluation mode and the config of its card ({} for a published checkpoint).

    Its size is that of its tensors.

    Parameters
    ----------
    checkpoint : path
        Ours (safetensors with a card) or one of Cellpose 4.
    precision : {"auto", "float32", "bfloat16"}, optional
        See `cellkit.machine.arithmetic`; None = as the card says, else auto.

    Raises
    ------
    UserError
        No checkpoint there, or it is of another network.
    """
    checkpoint = Path(checkpoint)
    config: dict[str, Any] = {}
    if checkpoint.suffix == ".safetensors":
        config = weights.card_for(checkpoint, BACKEND).config
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in weights.load_tensors(checkpoint).items()}
    return placed(network_of(tensors, checkpoint), precision or config.get("precision", "auto")).eval(), config


def network_of(tensors: dict[str, torch.Tensor], source: Path) -> CellposeSAM | CellposeDINO:
    """Return the network that tensors are of, on the CPU; they become its own.

    Raises
    ------
    UserError
        They are of another network, or not all there; `source` is named.
    """
    if any(key.startswith("downsample.") for key in tensors):
        raise UserError(f"{source} is a checkpoint of Cellpose 1 to 3", "open it with backend: cellpose_unet")
    kind = CellposeDINO if "encoder.cls_token" in tensors else CellposeSAM
    shape: Any = sam_dino.shape_of(tensors) if kind is CellposeDINO else shape_of(tensors)
    remedy = "give cpsam_v2, cpsam, cpdino, another checkpoint of Cellpose 4, or one that 03_finetune_cellpose wrote"
    if shape is None:
        raise UserError(f"{source} is no checkpoint of Cellpose 4", remedy)
    with torch.device("meta"):
        network = kind(shape)
    expected = network.state_dict()
    for name in ("diam_mean", "diam_labels"):
        tensors[name] = tensors.get(name, torch.tensor([CELL_PX])).reshape(1)
    missing = [k for k in expected if k not in tensors]
    wrong = [k for k in expected if k in tensors and tensors[k].shape != expected[k].shape]
    if missing or wrong:
        counts = f"{len(missing)} tensors missing, {len(wrong)} of another size"
        raise UserError(f"{source} is no whole checkpoint of Cellpose 4 ({counts})", remedy)
    trained = {name: value.requires_grad for name, value in network.named_parameters()}
    network.load_state_dict({k: tensors[k] for k in expected}, assign=True)
    for name, value in network.named_parameters():
        value.requires_grad_(trained[name])
    return network


def load_start(base: str | Path, seed: int = 0, shape: Shape = Shape(), precision: str = "auto") -> CellposeSAM:
    """Return the network to start from: a checkpoint, or "scratch", random numbers from `seed` in a network of `shape`.

    Raises
    ------
    UserError
        As `load_network`; or a Cellpose-DINO, which is applied as it is.
    """
    from cellkit.models.training import random_state_kept

    if str(base) != SCRATCH:
        network = load_network(base, precision)[0]
        if isinstance(network, CellposeDINO):
            raise UserError(f"{base} is a Cellpose-DINO, which is not adapted here", "start from cpsam_v2 or cpsam")
        return network
    with random_state_kept():
        torch.manual_seed(seed)
        network = CellposeSAM(shape)
        for name, value in network.named_parameters():
            if "pos" in name:  # zeros until something is learnt
                nn.init.normal_(value, std=0.02)
    return placed(network, precision).eval()


def applied_only(network: AnyNetwork) -> AnyNetwork:
    """Return the network made ready to be applied and not trained: same maps, half the memory in bfloat16.

    Weights of products are rounded to the number type that they are computed in, once and not at each call.
    """
    keep_tables(network.requires_grad_(False))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(network.arithmetic.dtype)
    return network.eval()


def keep_tables(network: nn.Module) -> None:
    """Look up what the places learnt add, once and not at each call, in each block that does not train them.

    That is a third of all the small operations of a block, and what a GPU waits for with few crops.
    """
    for module in network.modules():
        if isinstance(module, FusedAttention):
            tables = [table.detach().to(network.arithmetic.dtype) for table in module.tables()]
            module.kept = None if module.rel_pos_h.requires_grad else tables


def placed(network: AnyNetwork, precision: str) -> AnyNetwork:
    """Return the network where it is computed; in that precision from now on."""
    network.arithmetic = arithmetic(precision)
    return network.arithmetic.placed(network)
