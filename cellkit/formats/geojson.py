"""QuPath's GeoJSON, there and back: detections, or cells with their nuclei, without losing a pixel.

Written to be dropped on the image in QuPath 0.3 or later; read by `cellkit.formats.geojson_reading`. Coordinates are pixels of
the full image, counted from its upper left corner, so that corners of pixels are whole numbers.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from cellkit.cells.dataset import MARKED
from cellkit.cells.instances import Instances
from cellkit.cells.names import plain, stem_of
from cellkit.cells.outlines import refuse_boxes, simple_polygons
from cellkit.errors import UserError
from cellkit.files import atomic_path
from cellkit.formats.contract import ImageCells, ImageToWrite, Reading, numbers_of_all
from cellkit.formats.geojson_file import OURS, is_as_written, stamp_of_features, top_of
from cellkit.formats.geojson_reading import IGNORE_CLASS, is_ignored, read_geojson
from cellkit.formats.seg import class_colours
from cellkit.microscope.folders import IMAGE_SUFFIXES

ENDINGS = (".geojson", ".geojson.gz")
WRITES = {"geojson": ".geojson"}
SAYS_PROPOSED = "the files say so"
TAKES_NUCLEI = True
NAMESPACE = uuid.UUID("5a1f8f5e-6f0b-4c56-9d5a-3f6f5c1c2b7e")  # of the ids: the same cells have the same


def write_geojson(
    path: str | Path,
    found: Instances,
    classes: Sequence[str] = (),
    numbers: Sequence[int] | None = None,
    nuclei: Instances | None = None,
    measured: Mapping[str, np.ndarray] = MappingProxyType({}),
    made_by: str = "",
) -> Path:
    """Write the cells of one image as a FeatureCollection that QuPath opens, atomically; the same cells give the same bytes.

    A cell is a detection with its class, its colour and its measurements, among them its number ("label") and score; one with a
    nucleus is a cell with its nucleus. What is not annotated is an annotation of the class "Ignore*". A cell in several pieces
    is a MultiPolygon, holes are kept, and `read_geojson` gives back the very pixels, overlaps included.

    Parameters
    ----------
    numbers : sequence of int, optional
        What each cell is called, e.g. its id in a label image; default 1 to N.
    nuclei : Instances, optional
        As many as cells, of the same image; one without pixels where a cell has none.
    measured : mapping of name -> (N,) float, optional
        Measurements of the cells; those that are not finite are left out.
    made_by : str
        "proposed" or "corrected", noted beside the features for as long as nobody changes them; QuPath drops it when it saves.

    Raises
    ------
    UserError
        A cell without pixels or with a class that has no name; a class called as what is not annotated; a number given twice;
        another number of nuclei or measurements than of cells.
    """
    path = Path(path)
    refuse_boxes([found, *([nuclei] if nuclei is not None else [])], "a GeoJSON file")
    numbers = list(range(1, len(found) + 1)) if numbers is None else [int(k) for k in numbers]
    _check(path, found, classes, numbers, nuclei, measured)
    features = list(_features(path, found, classes, numbers, nuclei, measured))
    about = {"shape": list(found.shape), "classes": list(classes), "stamp": stamp_of_features(features)}
    about |= {"labels": made_by} if made_by in MARKED else {}
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(f'{{"type": "FeatureCollection", "{OURS}": {_dump(about)}, "features": [')
        for k, feature in enumerate(features):
            file.write(f"{',' if k else ''}\n{_dump(feature)}")
        file.write("\n]}\n")
    return path


def _dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _check(path: Path, found: Instances, classes: Sequence[str], numbers: list[int], nuclei, measured: Mapping) -> None:
    if len(found) and not 0 <= found.class_ids.min() <= found.class_ids.max() <= len(classes):
        raise UserError(
            f"{path.name} has a cell of class {found.class_ids.max()} of {len(classes)}", "name every class"
        )
    odd = [name for name in classes if not name.strip() or is_ignored(name)]
    if odd or len(set(classes)) < len(classes):
        raise UserError(f"the classes are {', '.join(classes)}", f"name each once, and none '{IGNORE_CLASS}' or ''")
    if (found.areas_px == 0).any():
        raise UserError(f"cell {int(np.argmin(found.areas_px)) + 1} of {path.name} has no pixel", "leave it out")
    if len(set(numbers)) < len(found) or len(numbers) != len(found) or any(k < 1 for k in numbers):
        raise UserError(
            f"{path.name} has {len(found)} cells called {str(numbers)[:60]}", "number each cell once, from 1 on"
        )
    if nuclei is not None and (len(nuclei) != len(found) or nuclei.shape != found.shape):
        raise UserError(f"{path.name}: {len(found)} cells have {len(nuclei)} nuclei", "give each cell its nucleus")
    wrong = [name for name, values in measured.items() if np.shape(values) != (len(found),)]
    if wrong:
        raise UserError(f"{path.name}: '{wrong[0]}' is not measured once for each cell", f"give {len(found)} numbers")


def _features(
    path: Path, found: Instances, classes: Sequence[str], numbers: list[int], nuclei, measured: Mapping
) -> Iterator[dict[str, Any]]:
    """Yield one feature for each cell, and one for what is not annotated."""
    colours = class_colours(len(classes)).tolist()
    inner = [[]] * len(found) if nuclei is None else simple_polygons(nuclei)
    picture = picture_stem(path.name)
    for k, polygons in enumerate(simple_polygons(found)):
        class_id = int(found.class_ids[k])
        values = {"label": numbers[k], "score": float(found.scores[k])}
        values |= {
            name: float(own[k]) for name, own in measured.items() if math.isfinite(own[k]) and name not in values
        }
        properties = {"objectType": "cell" if inner[k] else "detection"}
        if class_id:
            properties["classification"] = {"name": classes[class_id - 1], "color": colours[class_id]}
        feature = {"type": "Feature", "id": str(uuid.uuid5(NAMESPACE, f"{picture}/{numbers[k]}"))}
        feature |= {"geometry": _geometry(polygons)}
        feature |= {"nucleusGeometry": _geometry(inner[k])} if inner[k] else {}
        yield feature | {"properties": properties | {"measurements": values}}
    for polygons in simple_polygons(found.region()):
        ignored = {"objectType": "annotation", "classification": {"name": IGNORE_CLASS, "color": colours[0]}}
        own = {"type": "Feature", "id": str(uuid.uuid5(NAMESPACE, f"{picture}/{IGNORE_CLASS}"))}
        yield own | {"geometry": _geometry(polygons), "properties": ignored | {"isLocked": True}}


def _geometry(polygons: list[list[np.ndarray]]) -> dict[str, Any]:
    """Return the geometry of an object; outlines end where they begin."""
    coordinates = [[[*ring.tolist(), ring[0].tolist()] for ring in polygon] for polygon in polygons]
    if len(coordinates) == 1:
        return {"type": "Polygon", "coordinates": coordinates[0]}
    return {"type": "MultiPolygon", "coordinates": coordinates}


# ---- the contract of cellkit.formats.any ----
def picture_stem(name: str) -> str:
    """Return the name that a file shares with its picture; QuPath proposes the picture's whole name.

    Examples
    --------
    >>> picture_stem("a.geojson"), picture_stem("a.b.ome.tif.geojson"), picture_stem("a.geojson.gz")
    ('a', 'a.b', 'a')
    """
    stem = name[: len(name) - len(next((end for end in (".geojson.gz", ".geojson") if plain(name).endswith(end)), ""))]
    return stem_of(stem) if stem.lower().endswith(IMAGE_SUFFIXES) else stem


def read_image(file: Path, how: Reading, size: tuple[int, int] | None = None) -> ImageCells:
    """Read the cells of one file, or their nuclei; objects that are no cells are named."""
    failed: list = []
    found = read_geojson(file, size, failed)
    notes = found.notes
    with_nucleus = int(np.count_nonzero(found.nuclei.areas_px))
    if how.nuclei:
        cells = found.nuclei[found.nuclei.areas_px > 0]
        return ImageCells(cells, found.classes, found.made_by, tuple(failed), notes)
    if with_nucleus:
        notes += (
            f"{file.name}: {with_nucleus} of {len(found.instances)} cells are drawn with a nucleus too, not read here",
        )
    numbers = numbers_of_all(found.numbers.tolist())
    return ImageCells(found.instances, found.classes, found.made_by, tuple(failed), notes, numbers)


def write_image(path: Path, image: ImageToWrite) -> tuple[int, int]:
    """Write one file; no cell loses pixels, those without any are left out.

    Raises
    ------
    UserError
        The file is there and QuPath saved it: it may hold corrections.
    """
    if os.path.lexists(path) and not written_here(path):
        raise UserError(
            f"{path} was changed, or saved by QuPath: it may hold corrections", "move it away, or give another folder"
        )
    some = image.cells.areas_px > 0
    nuclei = None if image.nuclei is None else image.nuclei[some]
    measured = {name: np.asarray(values)[some] for name, values in image.measured.items()}
    numbers = np.flatnonzero(some) + 1
    write_geojson(path, image.cells[some], image.classes, numbers, nuclei, measured, image.made_by)
    return 0, int(np.count_nonzero(~some))


def written_here(path: Path) -> bool:
    """Tell whether a file is as cellkit wrote it: QuPath drops what says so, and a change of any feature is seen."""
    try:
        return is_as_written(*top_of(path))
    except UserError:
        return False
