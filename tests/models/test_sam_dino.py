"""Cellpose-DINO: its maps are those of `cellpose.vit.CPDINO` with dinov3 @ 6876159a."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cellkit.errors import UserError
from cellkit.models import cellpose_sam as sam
from cellkit.models import weights
from cellkit.models.sam_dino import CellposeDINO, DinoShape, shape_of
from cellkit.models.sam_network import BACKEND, load_network, load_start

SMALL = DinoShape(width=32, depth=2, heads=2, mlp=64)
FIXED = ("W2", "diam_mean", "diam_labels")


@pytest.fixture(scope="module")
def network() -> CellposeDINO:
    """Weights that are waves."""
    network = CellposeDINO(SMALL).eval()
    with torch.no_grad():
        for name, value in sorted(network.named_parameters()):
            if name not in FIXED:
                wave = torch.sin(torch.arange(value.numel()) * 0.7 + len(name)) * 0.4
                value.copy_(wave.reshape(value.shape))
    return network


@pytest.fixture(scope="module")
def seen() -> torch.Tensor:
    return (torch.arange(3 * 384 * 384) * 0.001).sin().reshape(1, 3, 384, 384)


def test_maps_are_those_measured_of_the_package(network, seen):
    with torch.no_grad():
        maps = network(seen)
    assert maps.std().item() == pytest.approx(1.9400, abs=1e-3)
    expected = [[-1.4783, -2.7350, 1.8305], [1.4083, -1.7887, 2.2085], [2.8854, 0.7972, 0.2914]]
    assert torch.allclose(maps[0, :, [0, 191, 380], [5, 200, 383]], torch.tensor(expected), atol=1e-3)


def test_maps_are_those_of_the_package(network, seen, monkeypatch):
    """Where its package is: it is in no package index."""
    models = pytest.importorskip("dinov3.models.vision_transformer")
    import cellpose.vit

    def small(pretrained: bool) -> torch.nn.Module:
        return models.DinoVisionTransformer(
            embed_dim=32, depth=2, num_heads=2, ffn_ratio=2, pos_embed_rope_dtype="fp32", layerscale_init=1e-5,
            norm_layer="layernormbf16", n_storage_tokens=4, mask_k_bias=True
        )  # fmt: skip

    monkeypatch.setattr(cellpose.vit, "dinov3_vitb16", small)
    theirs = cellpose.vit.CPDINO(model_name="vitb").eval()
    theirs.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.allclose(network(seen), theirs(seen)[0], atol=1e-5)


def test_the_default_size_is_the_published_one():
    with torch.device("meta"):
        parts = CellposeDINO().state_dict()
        base = CellposeDINO(DinoShape(width=768, depth=12, heads=12, mlp=3072)).state_dict()
    assert shape_of(parts) == DinoShape()
    for tensors, size_bytes in ((parts, 1_213_987_717), (base, 343_599_997)):
        assert sum(value.numel() for value in tensors.values()) * 4 == pytest.approx(size_bytes, rel=1e-3)


def test_finds_cells_and_is_not_adapted(network, tmp_path):
    path = weights.save_checkpoint(tmp_path / "dino.safetensors", network.state_dict(), BACKEND)
    again, _ = load_network(path, "float32")
    assert again.shape == SMALL and all(torch.equal(again.state_dict()[k], v) for k, v in network.state_dict().items())
    segment = sam.load(path, sam.Settings(precision="float32"))
    (found,) = segment([np.zeros((60, 50, 3), np.uint8)])
    assert found.shape == (60, 50)
    with pytest.raises(UserError, match="is a Cellpose-DINO, which is not adapted here\nstart from cpsam_v2"):
        load_start(path)
