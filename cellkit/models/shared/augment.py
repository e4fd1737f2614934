"""Crops that are turned, flipped, scaled and lit at random, for training."""

from __future__ import annotations

import numpy as np


def random_warp(cells: np.ndarray, rng: np.random.Generator, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a place, an angle, a flip and a zoom for a crop; seven in ten are placed near a cell.

    Parameters
    ----------
    cells : (H, W)
        Non-zero inside cells.

    Returns
    -------
    warp : (2, 3) float64
        Source (x, y, 1) -> crop (x, y), for cv2.warpAffine.
    turned : (2, 2) float64
        Its rotation and flip alone: what happens to a unit vector (x, y).
    """
    height, width = cells.shape
    angle, zoom, flip = rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.25), 1 - 2 * rng.integers(2)
    inside = np.flatnonzero(cells) if rng.random() < 0.7 else np.zeros(0, int)
    if inside.size:
        y, x = np.divmod(inside[rng.integers(inside.size)], width)
        y, x = y + rng.uniform(-0.3, 0.3) * size_px, x + rng.uniform(-0.3, 0.3) * size_px
    else:
        y, x = rng.uniform(0, height), rng.uniform(0, width)
    half = size_px / zoom / 2.8  # keep most of the crop inside the image
    y, x = (np.clip(v, min(half, n / 2), max(n - half, n / 2)) for v, n in ((y, height), (x, width)))
    cos, sin = np.cos(angle), np.sin(angle)
    turned = np.array([[cos * flip, -sin], [sin * flip, cos]])
    shift = size_px / 2 - zoom * turned @ np.array([x, y])
    return np.column_stack([zoom * turned, shift]), turned


def vary(planes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary brightness, contrast, gamma and noise, per channel; an empty channel stays empty."""
    out = planes.copy()
    for plane in out:
        if plane.any():
            gamma, gain, noise = np.exp(rng.uniform(-0.35, 0.35)), rng.uniform(0.8, 1.25), rng.uniform(0, 0.06)
            plane[:] = np.sign(plane) * np.abs(plane) ** gamma * gain
            plane += noise * rng.standard_normal(plane.shape, np.float32) * (rng.random() < 0.5)
    return out
