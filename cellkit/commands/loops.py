"""The forecasts of the commands over many images: what of each is counted, and what is timed where no speed is known."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellkit.forecast.loops import Loop
    from cellkit.microscope.convert import Conversion
    from cellkit.microscope.frames import Frame
    from cellkit.predict.model import Model

CONVERT_BYTES = 32  # of memory, of a pixel: planes of two channels, the picture
MEASURE_BYTES = 40  # likewise: a channel, its label image, what is measured of them
PICTURE_BYTES, HEADER_BYTES = 3, 360  # of a pixel of a picture, which is not compressed, and of its file
ROW_BYTES = 300  # of a row of conversion.csv
LABEL_BYTES = {"tif": 0.06, "png": 0.04, "ome-zarr": 0.1}  # of a pixel of a label image, compressed; else outlines
OVERLAY_BYTES = 2.0  # of a pixel of a picture with outlines
CELL_BYTES = 400  # of a cell in COCO, whose outline has about 40 rows
CONVERTING_BYTES, NETWORK_BYTES = (
    250e6,
    800e6,
)  # of memory, of a process that finds cells without a network, and with one
TABLE_BYTES = 1500  # of a cell in a table of all that is measured
PX_A_CELL = 2400  # where cells of 30 px cover a third of an image


def loop_of_convert(given: argparse.Namespace, conversion: Conversion) -> Loop:
    """Return the forecast of `cellkit convert`."""
    from cellkit.forecast.loops import Loop

    def convert(frame: Frame) -> int:
        from cellkit.microscope.convert import convert_frame
        from cellkit.microscope.journal import png_parts
        from cellkit.microscope.open import open_file

        written = 0
        with open_file(frame.path, conversion.axes, conversion.most_px) as opened:
            for scene, time, suffix in opened.info.frames():
                made = convert_frame(opened, scene, time, conversion, suffix)
                written += sum(len(part) for part in png_parts(made.image, made.um_per_px)) + 2 * ROW_BYTES
        return written

    out, scale = Path(given.out), conversion.scale**2
    return Loop(
        "convert",
        [conversion.to_json()],
        lambda px: CONVERT_BYTES * px,
        lambda pictures, px, cells: {out: PICTURE_BYTES * scale * px + (HEADER_BYTES + 2 * ROW_BYTES) * pictures},
        convert,
        workers=given.workers,
        force=given.force,
        every_picture=True,
        axes=conversion.axes,
    )


def loop_of_predict(given: argparse.Namespace, model: Model, conversion: Conversion | None) -> Loop:
    """Return the forecast of `cellkit predict`."""
    from functools import lru_cache

    from cellkit.forecast.loops import Loop
    from cellkit.formats.label_images import write_labels
    from cellkit.predict.files import unestimated
    from cellkit.predict.images import read_picture
    from cellkit.predict.large import WINDOW_BYTES
    from cellkit.predict.outputs import write_overlay

    model = unestimated(model)
    segment = lru_cache(lambda: model.load(conversion.scale if conversion else 1.0))
    diameter_px = model.config.get("diameter_px")
    px_a_cell = (
        PX_A_CELL * (diameter_px / 30) ** 2 if isinstance(diameter_px, int | float) and diameter_px else PX_A_CELL
    )

    def needed(px: float) -> float:
        one = segment()
        bytes_ = one.bytes_for((1, round(px))) if hasattr(one, "bytes_for") else 0
        return min(bytes_, WINDOW_BYTES) if getattr(one, "in_windows", None) is not None else bytes_

    def find(frame: Frame) -> int:
        from tempfile import TemporaryDirectory

        picture = read_picture(frame, conversion)
        (found,) = segment()([picture.image])
        with TemporaryDirectory(prefix="cellkit-") as folder:
            if given.overlays is not None:
                write_overlay(Path(folder) / "overlay.png", picture.image, found, model.classes)
            if given.labels is not None and given.format in ("tif", "png"):
                write_labels(Path(folder) / f"labels.{given.format}", found.paint())
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
        return size + len(found) * (2 * CELL_BYTES + TABLE_BYTES * (given.cells is not None))

    def written(pictures: float, px: float, cells: float) -> Mapping[Path, float]:
        found = px / px_a_cell * CELL_BYTES
        places: dict[Path, float] = defaultdict(float)  # of a folder that gets several things their sum
        places[Path(given.out).parent] += 2 * found + 1000 * pictures  # each image's part, and all of them joined
        if given.labels is not None:
            per_px = LABEL_BYTES.get(given.format)
            places[Path(given.labels)] += found if per_px is None else per_px * px
        if given.overlays is not None:
            places[Path(given.overlays)] += OVERLAY_BYTES * px
        if given.cells is not None:
            places[Path(given.cells).parent] += px / px_a_cell * TABLE_BYTES
        return places

    about: list[Any] = [model.backend, model.sha256, model.config, asdict(conversion) if conversion else None]
    about += [given.labels is not None and given.format, given.overlays is not None, given.cells is not None]
    one = CONVERTING_BYTES if model.backend == "threshold" else NETWORK_BYTES
    how = {
        "workers": given.workers,
        "worker_bytes": one,
        "force": given.force,
        "release": segment.cache_clear,
        "computes": True,
    }
    return Loop("predict", _plain(about), needed, written, find, **how)


def loop_of_measure(given: argparse.Namespace, conversion: Conversion) -> Loop:
    """Return the forecast of `cellkit measure`."""
    from cellkit.forecast.loops import Loop

    out = Path(given.out).parent
    return Loop(
        "measure",
        _plain([conversion.to_json(), given.nuclei_labels is not None]),
        lambda px: MEASURE_BYTES * px,
        lambda pictures, px, cells: {out: TABLE_BYTES * cells},
        workers=given.workers,
        force=given.force,
        axes=conversion.axes,
    )


def _plain(values: Any) -> Any:
    """Return values as JSON has them; what it has no word for as text."""
    import json

    return json.loads(json.dumps(values, default=str))
