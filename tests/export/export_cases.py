"""Networks that leave, for the tests of exports: small ones of random numbers, and the card they are read by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cellkit.export.network import Exported, exported
from cellkit.models import weights
from cellkit.models.unet_network import CellposeUNet
from cellkit.predict.model import find_model

SMALL = (4, 8, 12, 16)
TOLD = {
    "diameter_px": 20.0,
    "channels": "both",
    "flow_threshold": 0.3,
    "cellprob_threshold": 0.5,
    "min_area_px": 12,
    "widths": list(SMALL),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A narrow U-Net of random numbers whose batch norms have seen something, with its card."""
    torch.manual_seed(5)
    network = CellposeUNet(widths=SMALL)
    with torch.no_grad():
        network.train()(torch.rand(2, 2, 64, 64) * 3)
    path = tmp_path_factory.mktemp("small") / "cellpose_tuned.safetensors"
    metrics = {"map_iou_validation": 0.61, "base": "starter_light", "parents": ["starter_light"]}
    return weights.save_checkpoint(
        path, network.state_dict(), "cellpose_unet", config=TOLD, metrics=metrics, licence="of your images"
    )


@pytest.fixture(scope="module")
def leaving(small) -> Exported:
    return exported(find_model(small))


def answers(checkpoint: Path, planes: np.ndarray) -> np.ndarray:
    """Return what cellkit's own network says of planes (B, 2, H, W) float32."""
    from cellkit.models.unet_network import load_network

    network, _ = load_network(checkpoint, "float32")
    with torch.no_grad():
        return network(network.arithmetic.placed(torch.from_numpy(planes))).cpu().numpy()


def planes_of_sizes(*sizes: tuple[int, int, int]) -> list[np.ndarray]:
    """Return planes (B, 2, H, W) float32 of random numbers, one array per (B, H, W)."""
    rng = np.random.default_rng(3)
    return [rng.normal(0.4, 0.5, (batch, 2, height, width)).astype(np.float32) for batch, height, width in sizes]


def thousand_scenes() -> Iterator[np.ndarray]:
    """Yield twenty batches (50, 2, 48, 48) float32 of bright squares on a noisy ground."""
    rng = np.random.default_rng(9)
    for _ in range(20):
        squares = rng.random((50, 2, 6, 6), np.float32).repeat(8, axis=2).repeat(8, axis=3)
        yield squares * (squares > 0.6) + rng.normal(0, 0.05, squares.shape).astype(np.float32)
