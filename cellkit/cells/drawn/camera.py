"""What a camera makes of a drawn field: uneven light, blur, noise, one plane or a stack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cellkit.cells.drawn.field import Field
from cellkit.cells.drawn.style import FieldStyle
from cellkit.errors import UserError

MAX_COUNT = 65535


def expose(field: Field, style: FieldStyle, seed: int | Sequence[int]) -> np.ndarray:
    """Take one picture of a field: blur, uneven light, background, shot noise, camera.

    Parameters
    ----------
    field : Field
        What is there; its defect out_of_focus blurs by a fifth of a cell diameter, saturated overexposes.
    style : FieldStyle
        Optics and camera.
    seed : int or sequence of int
        Seed of light and noise.

    Returns
    -------
    (2, H, W) uint16
        Nuclei, cytoplasm.
    """
    return expose_stack(field, style, 1, seed)[0]


def expose_stack(field: Field, style: FieldStyle, planes: int, seed: int | Sequence[int]) -> np.ndarray:
    """Take a z-stack of a field: the middle plane is sharp, the others are blurred and dimmer the further they are.

    Parameters
    ----------
    field : Field
        What is there.
    style : FieldStyle
        Optics and camera.
    planes : int
        Number of planes; plane `planes // 2` is in focus.
    seed : int or sequence of int
        Seed of light and noise.

    Returns
    -------
    (Z, 2, H, W) uint16
        Per plane: nuclei, cytoplasm.

    Raises
    ------
    UserError
        Fewer than one plane.
    """
    if planes < 1:
        raise UserError(f"planes is {planes}, wanted 1 or more", "ask for at least one plane")
    rng = np.random.default_rng(seed)
    light = uneven_light(rng, field.labels.shape, style.illumination)
    lost_px = style.diameter_px / 5 if field.defect == "out_of_focus" else 0.0
    boost = 30.0 if field.defect == "saturated" else 1.0
    stack = np.empty((planes, 2, *field.labels.shape), dtype=np.uint16)
    for plane in range(planes):
        away = abs(plane - planes // 2)
        blur_px = float(np.hypot(style.blur_px, away * 0.07 * style.diameter_px + lost_px))
        for channel, sent in enumerate((field.nuclei, field.cytoplasm)):
            seen = _blur(sent, blur_px, style) * light * (boost / (1.0 + 0.2 * away)) + style.background
            stack[plane, channel] = _camera(rng, seen, style)
    return stack


def uneven_light(rng: np.random.Generator, shape: tuple[int, int], strength: float) -> np.ndarray:
    """Return the lamp's field (H, W), at most 1, `strength` lower in the corner farthest from its middle."""
    middle = rng.uniform(0.3, 0.7, 2)
    y, x = np.linspace(0, 1, shape[0])[:, None] - middle[0], np.linspace(0, 1, shape[1])[None] - middle[1]
    fall = y * y + x * x
    return (1 - strength * fall / fall.max()).astype(np.float32)


def _blur(sent: np.ndarray, sigma_px: float, style: FieldStyle) -> np.ndarray:
    """Spread light by the point spread, and a share of it (haze) a third of a cell diameter further."""
    from scipy.ndimage import gaussian_filter

    sharp = gaussian_filter(sent, sigma_px, mode="reflect", truncate=3.0)
    if not style.haze:
        return sharp
    return (1 - style.haze) * sharp + style.haze * gaussian_filter(sharp, 0.3 * style.diameter_px, truncate=2.5)


def _camera(rng, seen: np.ndarray, style: FieldStyle) -> np.ndarray:
    """Return counts (uint16) for expected photons: shot noise, gain, offset, read noise, clipped at full scale."""
    counts = style.gain * rng.poisson(np.maximum(seen, 0)) + style.offset
    counts = counts + style.read_noise * rng.standard_normal(seen.shape, dtype=np.float32)
    return np.clip(np.rint(counts), 0, MAX_COUNT).astype(np.uint16)
