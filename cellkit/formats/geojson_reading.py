"""QuPath's GeoJSON, read with every object checked before anything is drawn.

What QuPath writes is in its PathObjectTypeAdapters.java and ROITypeAdapters.java (qupath-core, lib/io): a FeatureCollection,
a list of features, or one feature.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cellkit.cells.dataset import maker_of
from cellkit.cells.instances import IGNORE, IGNORED, Instances
from cellkit.cells.names import plain
from cellkit.cells.outlines import FARTHEST_PX, cross_themselves, fill, fill_each
from cellkit.errors import Quarantined, UserError, counted, plain_reason
from cellkit.formats.contract import SIZE_REMEDY
from cellkit.formats.geojson_file import OURS, is_as_written, top_of

IGNORE_CLASS = "Ignore*"  # QuPath's own class for regions that count for nothing
NO_CELLS = ("tile", "tmacore", "tma_core", "root", "pathtileobject", "tmacoreobject", "pathrootobject")
CELLS = {"cell": "cell", "pathcellobject": "cell", "detection": "detection", "pathdetectionobject": "detection"}
MOST_PX = 2**31  # of the image that a file says it belongs to
DRAW_AREA = "draw it as a polygon, or delete it"
NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.int64))
SCORES = ("score", "Detection probability")  # the second is that of StarDist in QuPath


@dataclass(frozen=True, eq=False)
class Objects:
    """What a GeoJSON file of one image holds.

    Attributes
    ----------
    instances : Instances
        The cells, those that have a number by it, the others after them.
    classes : tuple of str
        Class k is ``classes[k - 1]``.
    numbers : (N,) int64
        What the cells are called ("label" among their measurements); 0 where they have no number.
    nuclei : Instances
        As many, in the same order; one without pixels where a cell has none.
    made_by : str
        Who made the cells, "" where it is not known.
    notes : tuple of str
        What is no cell and was left out, and what was cut at the edge of the image.
    """

    instances: Instances
    classes: tuple[str, ...]
    numbers: np.ndarray
    nuclei: Instances
    made_by: str
    notes: tuple[str, ...]


Polygon = list[np.ndarray]  # an outline and its holes, (P, 2) float each
Runs = tuple[np.ndarray, np.ndarray]


class _Object(NamedTuple):
    """One object of a file: what it is and is called, its outlines and those of its nucleus; and their pixels."""

    where: str
    kind: str
    outline: list[Polygon]
    nucleus: list[Polygon]
    class_name: str
    score: float
    number: int
    plane: tuple[int, int]
    runs: Runs = NOTHING
    inner: Runs = NOTHING


def is_ignored(name: str) -> bool:
    """Tell whether a class of QuPath's means a region that is not annotated.

    Examples
    --------
    >>> is_ignored("Ignore*"), is_ignored("ignore"), is_ignored("Tumor")
    (True, True, False)
    """
    return plain(name).rstrip("*") == IGNORE


def read_geojson(
    path: str | Path, shape: tuple[int, int] | None = None, failed: list[Quarantined] | None = None
) -> Objects:
    """Read the objects of one image from GeoJSON, packed by gzip or not; overlaps are kept.

    Cells are QuPath's cells and detections, and annotations, which people draw. An annotation around a detection, or around
    several other objects, is a region in which somebody looked for cells, and no cell; tiles, TMA cores and objects of the
    class "Region*" are none either: the notes say so. Objects of the class "Ignore*" are regions that nobody annotated. A pixel
    belongs to an object when its centre does.

    Parameters
    ----------
    shape : (H, W), optional
        The size of the image; needed for files that cellkit did not write.
    failed : list of Quarantined, optional
        Objects that are no area are added to it, and the others read; without it such an object is an error.

    Raises
    ------
    UserError
        Naming file and object: no GeoJSON, damaged, suspiciously large; an object without area, that crosses itself, with a point
        that is none, or outside the image (with `failed`: no other); objects of several planes; no size of the image.
    """
    path = Path(path)
    features, ours = top_of(path)
    size, named = _about(ours, shape, path)
    errors: list[UserError] = []
    objects: list[_Object] = []
    for k, feature in enumerate(features, 1):
        try:
            objects.append(_object(feature, f"{path}: object {k}", bool(ours)))
        except UserError as error:
            errors.append(error)
    drawn = _drawn(objects, size, errors, path)
    if errors and (failed is None or not drawn):
        raise errors[0]
    if failed is not None:
        failed += [Quarantined(path.name, plain_reason(str(error))) for error in errors]
    _refuse_planes(drawn, path)
    cells, notes = _cells_among(drawn, size, path.name)
    cells.sort(key=lambda one: one.number or math.inf)
    ignored = [one for one in drawn if one.kind == IGNORE]
    classes = named + tuple(sorted({one.class_name for one in cells if one.class_name} - set(named)))
    number_of = {"": 0} | {name: k for k, name in enumerate(classes, 1)}
    ids = [number_of[one.class_name] for one in cells] + [IGNORED] * len(ignored)
    found = _instances(size, [one.runs for one in (*cells, *ignored)], ids, [one.score for one in (*cells, *ignored)])
    nuclei = _instances(size, [one.inner for one in cells], ids[: len(cells)], [one.score for one in cells])
    numbers = np.array([one.number for one in cells], np.int64)
    maker = maker_of(ours.get("labels")) if is_as_written(features, ours) else ""
    return Objects(found.without_ignored(), classes, numbers, nuclei, maker, tuple(notes))


def class_names(path: str | Path) -> set[str]:
    """Return the classes that the objects of a file name; those of an object that is damaged are left out.

    Raises
    ------
    UserError
        It is no GeoJSON, or damaged.
    """
    names = set()
    for feature in top_of(path)[0]:
        properties = feature.get("properties") if isinstance(feature, dict) else None
        with suppress(UserError):
            names.add(_class_of(properties.get("classification") if isinstance(properties, dict) else None, str(path)))
    return {name for name in names if name and not is_ignored(name)}


# ---- what cellkit noted ----------------------------------------------------------------------------------------------
def _about(
    ours: Mapping[str, Any], shape: tuple[int, int] | None, path: Path
) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Return the size of the image and the classes that cellkit noted."""
    own, names = ours.get("shape", shape), ours.get("classes", [])
    if own is None:
        raise UserError(f"{path} does not say how large its image is", SIZE_REMEDY)
    good = len(own) == 2 if isinstance(own, (list, tuple)) else False
    good = good and all(type(side) is int and 0 < side < 10**6 for side in own) and math.prod(own) <= MOST_PX
    texts = isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names)
    if not good or not texts or len(set(names)) < len(names):
        raise UserError(f"{path}: its member '{OURS}' is damaged: {str(ours)[:80]}", f"take the member '{OURS}' out")
    if shape is not None and tuple(own) != tuple(shape):
        raise UserError(
            f"{path} is of an image of {own[0]} x {own[1]} px, and its image is {shape[0]} x {shape[1]} px",
            "give the objects of this very image",
        )
    return (own[0], own[1]), tuple(names)


# ---- one object ----------------------------------------------------------------------------------------------------
def _object(feature: Any, where: str, is_ours: bool) -> _Object:
    """Return one object, checked and not yet drawn."""
    geometry = feature.get("geometry") if isinstance(feature, dict) else None
    properties = (feature.get("properties") or {}) if isinstance(feature, dict) else None
    if not isinstance(geometry, dict) or not isinstance(properties, dict):
        raise UserError(f"{where} is no feature with geometry and properties", "export the objects again")
    kind = _kind_of(feature, properties)
    class_name = _class_of(properties.get("classification"), where)
    if class_name and is_ignored(class_name):
        kind = IGNORE
    elif class_name.endswith("*"):
        kind = "none"  # so QuPath marks classes that it leaves out of counts, such as Region*
    if kind == "none":
        return _Object(where, kind, [], [], "", 1.0, 0, (0, 0))
    nucleus = feature.get("nucleusGeometry")
    inner = [] if nucleus is None else _polygons(nucleus, f"{where}: its nucleus")
    values = _measurements(properties.get("measurements"))
    number = values.get("label", 0)
    number = int(number) if 0 < number < 2**31 and number == int(number) else 0
    plane = geometry.get("plane") if isinstance(geometry.get("plane"), dict) else {}
    place = tuple(value if type(value := plane.get(axis, 0)) is int else 0 for axis in "zt")
    return _Object(
        where, kind, _polygons(geometry, where), inner, class_name, _score(values, where, is_ours), number, place
    )


def _kind_of(feature: Mapping[str, Any], properties: Mapping[str, Any]) -> str:
    """Return what QuPath calls an object: cell, detection, annotation (also without a word), or "none" for what is no cell."""
    said = next(
        (properties[key] for key in ("objectType", "object_type", "type") if key in properties), feature.get("id")
    )
    said = plain(said) if isinstance(said, str) else ""
    return "none" if said in NO_CELLS else CELLS.get(said, "annotation")


def _class_of(value: Any, where: str) -> str:
    """Return the name of a class as QuPath shows it, that of a class within another after it; "" where there is none."""
    parts: list[Any] = []
    while isinstance(value, dict):  # before QuPath 0.4 a class within another held that
        own = value.get("names", value.get("name", ""))
        parts = [*(own if isinstance(own, list) else [own]), *parts]
        value = value.get("parentClass")
    parts += [value] if value is not None else []
    if not all(isinstance(part, str) for part in parts):
        raise UserError(f"{where}: its class is {str(parts)[:40]}", "a class has a name")
    name = ": ".join(part.strip() for part in parts if part.strip())
    if "\0" in name or len(name) > 200 or any(0xD800 <= ord(sign) < 0xE000 for sign in name):
        raise UserError(f"{where}: its class is called {name[:40]!r}", "rename the class, with letters and digits")
    return name


def _measurements(value: Any) -> dict[str, float]:
    """Return the measurements of an object that are numbers: by name, or a list of name and value as before QuPath 0.4."""
    pairs = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        pairs = ((one.get("name"), one.get("value")) for one in value if isinstance(one, dict))
    return {name: float(own) for name, own in pairs
            if isinstance(name, str) and type(own) in (int, float) and abs(own) < 1e300}  # fmt: skip


def _score(values: Mapping[str, float], where: str, is_ours: bool) -> float:
    """Return the score of an object: 1 where a foreign file has none."""
    score = next((values[name] for name in SCORES if name in values), 1.0)
    if not 0 <= score <= 1 and is_ours:
        raise UserError(f"{where} has the score {score:g}", "a score is a number from 0 to 1")
    return score if 0 <= score <= 1 else 1.0


# ---- pixels --------------------------------------------------------------------------------------------------------
def _polygons(geometry: Any, where: str) -> list[Polygon]:
    """Return the polygons of a geometry."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    coordinates = geometry.get("coordinates") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon") or not isinstance(coordinates, list) or not coordinates:
        raise UserError(f"{where} is of type {str(kind)[:40]}: it has no area", DRAW_AREA)
    return [_rings(one, where) for one in ([coordinates] if kind == "Polygon" else coordinates)]


def _drawn(objects: Sequence[_Object], size: tuple[int, int], errors: list[UserError], path: Path) -> list[_Object]:
    """Return the objects with their pixels; of what cannot be drawn add to `errors` why."""
    rings = [ring for one in objects for polygon in (*one.outline, *one.nucleus) for ring in polygon]
    try:
        crossing = cross_themselves(rings, size).tolist()
        starts, lengths, offsets = fill_each(rings, size)
    except UserError as error:
        raise UserError(f"{path}: {error.problem}", error.remedy) from error
    cuts, place, drawn = offsets.tolist(), 0, []
    for one in objects:
        runs, problem = [], ""
        for polygons in (one.outline, one.nucleus):
            parts = []
            for polygon in polygons:
                each = [(starts[a:b], lengths[a:b]) for a, b in pairwise(cuts[place : place + len(polygon) + 1])]
                if any(crossing[place : place + len(polygon)]):
                    problem = "crosses itself"
                parts.append(each[0] if len(each) == 1 else _without_holes(polygon, each, size))
                place += len(polygon)
            runs.append(NOTHING if not parts else parts[0] if len(parts) == 1 else _union(parts))
            if any(part is None for part in parts):
                problem = problem or "has a hole outside its outline, or two that overlap"
        if not problem and one.outline and not len(runs[0][0]):
            problem = f"covers no pixel of its image of {size[0]} x {size[1]} px"
        if problem:
            errors.append(UserError(f"{one.where} {problem}", "draw it again, or delete it"))
        else:
            drawn.append(one._replace(runs=runs[0], inner=runs[1]))
    return drawn


def _without_holes(polygon: Polygon, each: list[Runs], size: tuple[int, int]) -> Runs | None:
    """Return the pixels of a polygon with holes; None where these do not lie inside, apart from one another."""
    found = fill(polygon, size)
    shell, *holes = (int(length.sum()) for _, length in each)
    return found if found[1].sum() == shell - sum(holes) else None


def _rings(polygon: Any, where: str) -> list[np.ndarray]:
    """Return the outlines of one polygon, (P, 2) float each, the first not repeated."""
    rings = []
    for points in polygon if isinstance(polygon, list) else ():
        try:
            ring = np.array(points)
        except ValueError:  # rows of different length
            ring = np.zeros(0, object)
        if ring.ndim != 2 or ring.dtype.kind not in "if" or ring.shape[1] not in (2, 3):
            raise UserError(
                f"{where} has points that are no pairs of numbers: {str(points)[:60]}", "points are x, y in px"
            )
        ring = ring[:, :2].astype(float)
        if not (np.abs(ring) <= FARTHEST_PX).all():  # NaN is not <= either
            raise UserError(f"{where} has a point that is not finite or far away", "points are in px")
        ring = ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring
        if len(ring) < 3:
            raise UserError(f"{where} has an outline of {counted(len(ring), 'point')}", DRAW_AREA)
        rings.append(ring)
    if not rings:
        raise UserError(f"{where} has a polygon without outline", DRAW_AREA)
    return rings


def _union(parts: Sequence[Runs | None]) -> Runs:
    """Return the runs that any of the parts covers."""
    begin, length = (np.concatenate([part[k] for part in parts if part is not None]) for k in (0, 1))
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], np.maximum.accumulate((begin + length)[order]) if len(begin) else begin
    first = np.flatnonzero(np.r_[True, begin[1:] > end[:-1]]) if len(begin) else np.zeros(0, np.int64)
    last = np.r_[first[1:], len(begin)] - 1 if len(begin) else first
    return begin[first], end[last] - begin[first]


def _instances(size: tuple[int, int], runs: Sequence[Runs], ids: Sequence[int], scores: Sequence[float]) -> Instances:
    starts, lengths = (np.concatenate([np.zeros(0, np.int64), *(one[k] for one in runs)]) for k in (0, 1))
    offsets = np.cumsum([0, *(len(begin) for begin, _ in runs)])
    return Instances.from_runs(size, starts, lengths, offsets, ids, scores)


# ---- all objects ---------------------------------------------------------------------------------------------------
def _refuse_planes(drawn: Sequence[_Object], path: Path) -> None:
    """Refuse objects of several planes or times."""
    planes = sorted({one.plane for one in drawn if one.kind != "none"})
    if len(planes) > 1:
        shown = ", ".join(f"z {z} t {t}" for z, t in planes[:3])
        raise UserError(
            f"{path} holds objects of {len(planes)} planes of a stack ({shown})", "export those of one plane"
        )


def _cells_among(drawn: Sequence[_Object], size: tuple[int, int], name: str) -> tuple[list[_Object], list[str]]:
    """Return the objects that are cells, and what to say of the others."""
    objects = [one for one in drawn if one.kind not in ("none", IGNORE)]
    regions = _regions(objects)
    cells = [one for k, one in enumerate(objects) if k not in regions]
    counts = Counter(none=len(drawn) - len(objects) - sum(one.kind == IGNORE for one in drawn), regions=len(regions))
    corners = [np.concatenate([polygon[0] for polygon in one.outline]) for one in cells]
    counts["cut"] = sum(bool((xy < -1).any() or (xy > (size[1] + 1, size[0] + 1)).any()) for xy in corners)
    texts = {
        "none": "{} left out: no cell but a tile, a TMA core, the root, or of a class such as Region*",
        "regions": "{} left out: an annotation around others is a region, no cell",
        "cut": "{} reached beyond the image and was cut at its edge",
    }
    return cells, [
        f"{name}: {text.format(counted(counts[key], 'object'))}" for key, text in texts.items() if counts[key]
    ]


def _regions(objects: Sequence[_Object]) -> set[int]:
    """Return which annotations are regions: one cell or detection, or two other objects, lie wholly inside."""
    outer = [k for k, one in enumerate(objects) if one.kind == "annotation"]
    if not outer or len(objects) < 2:
        return set()
    first = np.array([one.runs[0][0] for one in objects])
    last = np.array([one.runs[0][-1] + one.runs[1][-1] for one in objects])
    area = np.array([one.runs[1].sum() for one in objects])
    found = set()
    for k in outer:
        inside = np.flatnonzero((first >= first[k]) & (last <= last[k]) & (area < area[k]))
        weight = 0
        for other in inside.tolist():
            weight += _lies_in(objects[other].runs, objects[k].runs) * (1 if objects[other].kind == "annotation" else 2)
            if weight > 1:
                found.add(k)
                break
    return found


def _lies_in(inner: Runs, outer: Runs) -> bool:
    """Tell whether all pixels of one object are pixels of another."""
    at = np.searchsorted(outer[0], inner[0], side="right") - 1
    return bool((at >= 0).all() and (inner[0] + inner[1] <= (outer[0] + outer[1])[at]).all())
