"""Drawn cells in transmitted light: what phase contrast, bright field and relief contrast (DIC) make of unstained cells.

A cell is a thickness of glass-like matter. Phase contrast shows the thickness without its slow part, so that a cell is darker
(or brighter) than its surroundings and wears a halo of the opposite sign; bright field out of focus shows its curvature
(transport of intensity: Teague, J. Opt. Soc. Am. 73, 1983); relief contrast shows its slope along one direction. All three
are approximations for weak objects; they serve to train and to test, not to measure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cellkit.cells.drawn.camera import MAX_COUNT, uneven_light
from cellkit.cells.drawn.field import Field, clouds, depth
from cellkit.cells.drawn.style import FieldStyle
from cellkit.errors import UserError

CONTRASTS = ("phase", "bright_field", "relief")


def transmit(field: Field, style: FieldStyle, contrast: str, seed: int | Sequence[int]) -> np.ndarray:
    """Take a picture of a field in transmitted light.

    Parameters
    ----------
    field : Field
        What is there; its stains are not seen.
    style : FieldStyle
        Diameter, blur, uneven light and texture; its photons set the noise.
    contrast : {"phase", "bright_field", "relief"}
    seed : int or sequence of int
        Seed of the optics, the light and the noise.

    Returns
    -------
    (H, W) uint16
        The empty background at about half of full scale.

    Raises
    ------
    UserError
        An unknown contrast.
    """
    from scipy.ndimage import gaussian_filter

    if contrast not in CONTRASTS:
        raise UserError(f"contrast is '{contrast}'", f"use one of {', '.join(CONTRASTS)}")
    rng, d = np.random.default_rng(seed), style.diameter_px
    thick = gaussian_filter(_thickness(rng, field, style), max(0.5, 0.6 * style.blur_px))
    sign, strength = 1 - 2 * rng.integers(2), rng.uniform(0.5, 1.2)
    if contrast == "phase":
        near, far, share = d * rng.uniform(0.06, 0.2), d * rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.8)
        slow = share * gaussian_filter(thick, near) + (1 - share) * gaussian_filter(thick, far)
        shown = sign * (slow - thick)
    elif contrast == "bright_field":
        focus = max(1.0, d * rng.uniform(0.02, 0.07))
        bent = gaussian_filter(thick, focus) - gaussian_filter(thick, 1.6 * focus)
        shown = 1.6 * sign * bent - rng.uniform(0.0, 0.25) * thick
    else:
        turn = rng.uniform(0, 2 * np.pi)
        slope = np.gradient(gaussian_filter(thick, max(0.7, 0.02 * d)))
        shown = 0.22 * d * (np.cos(turn) * slope[0] + np.sin(turn) * slope[1])
    dust = 0.03 * clouds(rng, thick.shape, 0.8 * d) + 0.02 * clouds(rng, thick.shape, max(2.0, 0.1 * d))
    light = uneven_light(rng, thick.shape, 0.5 * style.illumination)
    seen = (1 + 0.45 * strength * shown + rng.uniform(0, 1) * dust) * light
    electrons = max(10 * style.photons, 500.0)
    counts = rng.poisson(np.maximum(seen, 0.02) * electrons) / electrons
    return np.clip(np.rint(counts * MAX_COUNT / 2), 0, MAX_COUNT).astype(np.uint16)


def _thickness(rng, field: Field, style: FieldStyle) -> np.ndarray:
    """Return how thick the cells are (H, W), 1 = an ordinary cell: domes of several heights, granules, a nucleus."""
    labels, d = field.labels, style.diameter_px
    count = int(labels.max())
    depth_px = depth(labels)
    deepest = np.ones(count + 1)
    np.maximum.at(deepest, labels.ravel(), depth_px.ravel())
    height = np.concatenate([[0.0], np.exp(rng.normal(0, 0.25, count))])
    share = rng.uniform(0.3, 1.0, count + 1)  # of the radius at which a cell is at full height: flat or round
    rise = np.clip(depth_px / (deepest * share)[labels], 0, 1)
    thick = height[labels] * np.sqrt(np.clip(1 - (1 - rise) ** 2, 0, 1))
    granules = clouds(rng, labels.shape, max(1.5, 0.06 * d)) + 0.5 * clouds(rng, labels.shape, 0.2 * d)
    thick = thick * (1 + style.texture * granules)
    return thick + rng.uniform(-0.15, 0.3) * (field.nuclei_labels > 0) * height[labels]
