"""Drawn fields written as microscope files with their truth."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cellkit.cells.drawn.camera import expose_stack
from cellkit.cells.drawn.field import CHANNELS, check_names, draw_field
from cellkit.cells.drawn.style import FieldStyle
from cellkit.cells.records import MIXED
from cellkit.config.parts import DrawnConfig
from cellkit.errors import UserError
from cellkit.files import atomic_path, write_text
from cellkit.formats.label_images import write_labels


@dataclass(frozen=True)
class FieldFile:
    """One written microscope file: paths relative to the folder, what it shows, how many cells, which seed."""

    path: str
    truth: str
    line: str
    defect: str
    cells: int
    seed: tuple[int, ...]


def write_fields(
    folder: str | Path,
    *,
    lines: Sequence[str] = ("HEK", "N2a"),
    images_per_line: int = 8,
    mixed_images: int = 4,
    size_px: int = 256,
    planes: int = 3,
    diameter_px: float = 34.0,
    defect_images_per_line: int = 1,
    empty_images: int = 0,
    seed: int = 0,
) -> list[FieldFile]:
    """Write drawn fields as 16-bit OME-TIFF z-stacks (ZCYX; channels DAPI, GFP), with their truth beside them.

    `<folder>/HEK/HEK_01.ome.tif`, ..., `<folder>/mixed/mixed_01.ome.tif`; truth in `<folder>/truth/HEK/HEK_01.tif`
    (label images) and `<folder>/truth/classes.csv` (file, label, class). The same arguments give the same bytes.

    Parameters
    ----------
    folder : path
        Made when missing.
    lines : sequence of str
        Names out of `LINES`, one subfolder each.
    images_per_line, mixed_images : int
        Sound images per line, and images of all lines together.
    size_px, planes : int
        Height = width, and z planes of every image.
    diameter_px : float
        Mean cell diameter.
    defect_images_per_line : int
        Out-of-focus frames, and as many debris frames, added at the end of each line.
    empty_images : int
        Frames without a cell, added at the end of the mixed images (of the last line when there are none).
    seed : int
        Each image has its own stream, so adding images leaves the others as they were.

    Returns
    -------
    list of FieldFile
        In the order written.

    Raises
    ------
    UserError
        Unknown line, or mixed images of fewer than two lines.
    """
    folder = Path(folder)
    _check_lines(lines, mixed_images)
    style = FieldStyle(size_px=(size_px, size_px), diameter_px=diameter_px)
    written, rows = [], ["file,label,class"]
    for group, (name, mixed, defects) in enumerate(
        _plan(lines, images_per_line, mixed_images, defect_images_per_line, empty_images)
    ):
        for number, defect in enumerate(defects, start=1):
            stream = (seed, group, number)
            field, stack = _one_image(mixed, style, stream, defect, planes)
            path, truth = f"{name}/{name}_{number:02d}.ome.tif", f"truth/{name}/{name}_{number:02d}.tif"
            _write_ome_tiff(folder / path, stack, style.um_per_px)
            _write_truth(folder / truth, field.labels)
            rows += [f"{path},{label},{line}" for label, line in enumerate(field.class_names, start=1)]
            written.append(FieldFile(path, truth, name, defect, len(field.class_names), stream))
    write_text(folder / "truth" / "classes.csv", "\n".join(rows) + "\n")
    return written


def write_blank_fields(folder: str | Path, lines: Sequence[str], config: DrawnConfig, size_px: int = 64) -> None:
    """Write what `write_fields` would, small and blank: the same files, names, axes and channels, to look ahead.

    The labels have one cell of each line, a band across the field.

    Parameters
    ----------
    config : DrawnConfig
        ``convert.drawn``.
    """
    folder = Path(folder)
    _check_lines(lines, config.mixed_images)
    counts = (config.images_per_line, config.mixed_images, config.defect_images_per_line, config.empty_images)
    rows = ["file,label,class"]
    bands = np.arange(size_px) * len(lines) // size_px + 1
    cells = np.repeat(bands.astype(np.uint16)[:, None], size_px, axis=1)  # those of the rows below
    image, truth = folder / ".blank.ome.tif", folder / ".blank.tif"
    _write_ome_tiff(image, np.zeros((config.planes, 2, size_px, size_px), np.uint16), 1.0)
    write_labels(truth, cells)
    for name, mixed, defects in _plan(lines, *counts):
        for number in range(1, len(defects) + 1):
            path = f"{name}/{name}_{number:02d}.ome.tif"
            for first, own in ((image, folder / path), (truth, folder / f"truth/{name}/{name}_{number:02d}.tif")):
                own.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(first, own)
            rows += [f"{path},{label},{line}" for label, line in enumerate(mixed, start=1)]
    write_text(folder / "truth" / "classes.csv", "\n".join(rows) + "\n")


def _check_lines(lines: Sequence[str], mixed_images: int) -> None:
    check_names(lines, "")
    if mixed_images and len(lines) < 2:
        raise UserError(f"{mixed_images} mixed images of one line ({lines[0]}), wanted two lines or more",
                        "name a second line, or set mixed_images to 0")  # fmt: skip


def _plan(lines, images_per_line: int, mixed_images: int, defect_images: int, empty_images: int):
    """Return per subfolder: (name, lines in it, defect of each image)."""
    plan = [(line, (line,), [""] * images_per_line) for line in lines]
    for _, _, defects in plan:
        defects += ["out_of_focus"] * defect_images + ["debris"] * defect_images
    if mixed_images:
        plan.append((MIXED, tuple(lines), [""] * mixed_images))
    plan[-1][2].extend(["empty"] * empty_images)
    return plan


def _one_image(lines, style: FieldStyle, stream: tuple[int, ...], defect: str, planes: int):
    """Return (field, stack) of one file; brightness, crowding and light vary a little from image to image."""
    vary = np.random.default_rng((*stream, 0))
    own = replace(
        style,
        density=style.density * float(vary.uniform(0.75, 1.3)),
        photons=style.photons * float(vary.uniform(0.7, 1.3)),
        blur_px=style.blur_px * float(vary.uniform(0.85, 1.3)),
        illumination=style.illumination * float(vary.uniform(0.3, 1.3)),
    )
    field = draw_field(lines, own, (*stream, 1), defect)
    return field, expose_stack(field, own, planes, (*stream, 2))


def _write_ome_tiff(path: Path, stack: np.ndarray, um_per_px: float) -> None:
    """Write a (Z, C, Y, X) uint16 stack as OME-TIFF; no date and no random identifier, so bytes repeat."""
    import tifffile

    metadata = {
        "axes": "ZCYX",
        "Channel": {"Name": list(CHANNELS)},
        "PhysicalSizeX": um_per_px,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": um_per_px,
        "PhysicalSizeYUnit": "µm",
        "Name": path.name.removesuffix(".ome.tif"),
        "Description": "drawn cells, not a measurement",
        "Creator": "cellkit",
        "UUID": "00000000-0000-0000-0000-000000000000",
    }
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, stack, ome=True, photometric="minisblack", software="cellkit", metadata=metadata)


def _write_truth(path: Path, labels: np.ndarray) -> None:
    """Write a label image with the package's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_labels(path, labels)
