"""A Cellpose-SAM small enough for a test, ours and the cellpose package's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from segment_anything.modeling.image_encoder import ImageEncoderViT

from cellkit.models import weights
from cellkit.models.sam_network import BACKEND, CellposeSAM, Shape, load_start

SMALL = Shape(width=32, depth=2, heads=2, mlp=64, neck=16, places=(127, 27))
FIRST_GLOBAL = (0,)  # the blocks of SMALL that have learnt 127 places in each direction


def small_encoder(_=None) -> SimpleNamespace:
    """Return what `segment_anything.sam_model_registry` makes of "vit_l", as small as `SMALL`."""
    encoder = ImageEncoderViT(
        img_size=1024,
        embed_dim=SMALL.width,
        depth=SMALL.depth,
        num_heads=SMALL.heads,
        mlp_ratio=SMALL.mlp / SMALL.width,
        out_chans=SMALL.neck,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=FIRST_GLOBAL,
    )
    return SimpleNamespace(image_encoder=encoder)


def small_network(seed: int = 0) -> CellposeSAM:
    return load_start("scratch", seed, SMALL, "float32")


def small_checkpoint(path: Path, seed: int = 0, **config) -> Path:
    """Write random weights with a card to `path`.safetensors."""
    tensors = small_network(seed).state_dict()
    return weights.save_checkpoint(path.with_suffix(".safetensors"), tensors, BACKEND, config=config)
