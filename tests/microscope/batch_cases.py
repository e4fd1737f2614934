"""Stacks that the tests of conversion share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from cellkit.microscope.convert import Conversion

RECIPE = Conversion({"nuclei": 0, "cytoplasm": 1})


def write_stack(path: Path, seed: int = 0, size: int = 24, axes: str = "ZCYX", dtype=np.uint16, **options) -> Path:
    lead = {"ZCYX": (3, 2), "TCYX": (2, 2), "CYX": (2,)}[axes]
    pixels = np.random.default_rng(seed).integers(0, 4000 * (seed % 5 + 1), (*lead, size, size)).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, photometric="minisblack", ome=True, metadata={"axes": axes, **options})
    return path


def write_many(folder: Path, count: int, **how) -> list[tuple[Path, str]]:
    return [(write_stack(folder / f"s{k:03d}.ome.tif", k, **how), f"s{k:03d}") for k in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    """Everything but the lock, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.endswith(".lock")}


def pictures(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name.endswith(".png")}
