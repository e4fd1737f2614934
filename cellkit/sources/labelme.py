"""labelme: a JSON file per picture, a mask or polygon per object, and the label as its class."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np

from cellkit.cells.instances import IGNORED, Instances
from cellkit.cells.names import image_id_of, plain
from cellkit.cells.records import MIXED
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError
from cellkit.files import decoded, read_json
from cellkit.microscope.file_info import Opened
from cellkit.microscope.folders import check_inside, list_files
from cellkit.microscope.open import open_file
from cellkit.microscope.pictures import open_picture
from cellkit.sources.assign_splits import assign_splits
from cellkit.sources.leftovers import leftovers
from cellkit.sources.listing import Convert, Loaded, SourceImage, class_id_of, known_class, only_class
from cellkit.sources.loading import about_annotated, refuse_frames

ORDER = 120


def detect(root: Path) -> bool:
    """Tell whether a folder is such a data set."""
    return any(_labels_in(path) for path in list_files(root, (".json",))[:3])


def classes(root: Path) -> set[str]:
    """Return the labels of all shapes."""
    return {label for path in list_files(root, (".json",)) for label in _labels_in(path)}


def read(root: Path, config: ConvertConfig) -> Iterator[SourceImage]:
    """labelme JSON files: a picture, and a mask or polygon per object with its label; overlapping masks are kept.

    Folders train, val and test are the split; by group, other folders are the group. Where there is no test folder,
    ``config.split.test`` is the share of the training images that becomes test. Labels become classes by name or by
    ``config.class_names``; null there keeps the object with class 0 (unknown). Shapes of the label "ignore", rectangles too, say
    what is not annotated.
    """
    root = Path(root)
    files = list_files(root, (".json",))
    _check_labelme_classes(files, config)
    items = []
    for path in files:
        relative = path.relative_to(root)
        about = about_annotated(relative.parts[:-1], config)
        line, source = only_class(config) or MIXED, relative.as_posix()
        image_id, used = image_id_of(source), (path, *_pictures_of(path))
        loader = partial(_load_labelme, root, path, config)
        items.append(SourceImage(image_id, line, about["group"], about["split"], source, loader, path.stem, files=used))
    yield from assign_splits(items, config, fill_split=True, left=list(leftovers(root, items)))


def _pictures_of(path: Path) -> list[Path]:
    """Return the pictures beside a labelme file that are called as it is, or as it says."""
    try:
        named = str(_read_labelme(path).get("imagePath") or "").replace("\\", "/")
    except UserError:
        named = ""
    beside = [other for other in path.parent.glob("*") if plain(other.stem) == plain(path.stem) and other != path]
    return [*beside, *([Path(os.path.normpath(path.parent / named))] if named else [])]


def _check_labelme_classes(files: list[Path], config: ConvertConfig) -> None:
    """Refuse a label the config does not know before any image is read: it is the config's fault, not an image's."""
    for path in files:
        try:
            shapes = _read_labelme(path)["shapes"]
        except UserError:
            continue  # reported where the image is loaded
        for label in sorted({str(shape["label"]) for shape in shapes if isinstance(shape, dict) and "label" in shape}):
            known_class(label, config)


def _read_labelme(path: Path) -> dict:
    """Read and check the outline of a labelme file."""
    try:
        content = json.loads(decoded(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path.name} is no JSON: {error}", "write it again with labelme") from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise UserError(f"{path.name} is no labelme file: it has no list of shapes", "write it again with labelme")
    return content


def _load_labelme(root: Path, path: Path, config: ConvertConfig, convert: Convert) -> Loaded:
    """Load the embedded picture (or the one at imagePath) and the shapes as instances."""
    check_inside(path, root)
    content = _read_labelme(path)
    with _labelme_picture(root, path, content, config) as opened:
        refuse_frames(opened, str(content.get("imagePath") or path.name))
        made = convert(opened, config.conversion)
    shape = made.image.shape[:2]
    stated = (content.get("imageHeight"), content.get("imageWidth"))
    if stated != shape and stated != (None, None):
        raise UserError(
            f"{path.name} says {stated[0]} x {stated[1]} px, its picture is {shape[0]} x {shape[1]}",
            "write it again with labelme",
        )
    masks, corners, ids = [], [], []
    for shapes in _objects(content["shapes"]):
        ignored = class_id_of(str(shapes[0][1]["label"]), config) == IGNORED
        placed = [_shape_mask(item, shape, f"{path.name}, shape {number}", ignored) for number, item in shapes]
        mask, corner = placed[0] if len(placed) == 1 else _union(placed, shape)
        masks.append(mask)
        corners.append(corner)
        ids.append(class_id_of(str(shapes[0][1]["label"]), config))
    return made._replace(instances=Instances.from_boxed_masks(masks, corners, shape, ids))


def _labelme_picture(root: Path, path: Path, content: dict, config: ConvertConfig) -> AbstractContextManager[Opened]:
    """Open the picture of a labelme file: embedded as base64, or the file it names, which must lie below `root`."""
    if content.get("imageData"):
        try:
            data = base64.b64decode(content["imageData"], validate=True)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{path.name}: its imageData is no base64: {error}", "write it again with labelme"
            ) from error
        return open_picture(path, most_px=config.max_plane_px, content=data)
    named = str(content.get("imagePath") or "").replace("\\", "/")
    if not named:
        raise UserError(f"{path.name} has neither imageData nor imagePath", "write it again with labelme")
    picture = path.parent / named
    check_inside(picture, root)
    return open_file(picture, config.axes, config.max_plane_px)


def _objects(shapes: list) -> list[list[tuple[int, dict]]]:
    """Return the numbered shapes of each object: those that share a group_id are one; the rest are one each."""
    objects: dict[object, list[tuple[int, dict]]] = {}
    for number, shape in enumerate(shapes):
        if not isinstance(shape, dict) or "label" not in shape:
            raise UserError(f"shape {number} has no label", "write the file again with labelme")
        group = shape.get("group_id")
        key = ("alone", number) if group is None else ("group", str(group), str(shape["label"]))
        objects.setdefault(key, []).append((number, shape))
    return list(objects.values())


def _shape_mask(
    item: dict, shape: tuple[int, int], where: str, ignored: bool = False
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return a boolean mask and the column and row of its first pixel; a rectangle only of a region that is `ignored`."""
    points = _points(item, shape, where)
    if item.get("shape_type") == "mask":
        return _embedded_mask(item, points, where)
    if item.get("shape_type") == "polygon":
        return _polygon_mask(points, shape, where)
    if item.get("shape_type") == "rectangle" and ignored and len(points) == 2:
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        return _polygon_mask(np.array([[left, top], [right, top], [right, bottom], [left, bottom]]), shape, where)
    raise UserError(f"{where} is a '{item.get('shape_type')}'", "outline each cell as a polygon or a mask")


def _points(item: dict, shape: tuple[int, int], where: str) -> np.ndarray:
    """(N, 2) float columns and rows; finite and within one image size of the image."""
    try:
        points = np.asarray(item.get("points"), float).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{where} has points that are no pairs of numbers", "write the file again with labelme"
        ) from error
    size = np.array([shape[1], shape[0]])
    if not np.isfinite(points).all() or (points < -size).any() or (points > 2 * size).any():
        raise UserError(f"{where} has points far outside its image, or none at all", "draw the shape again")
    return points


def _embedded_mask(item: dict, points: np.ndarray, where: str) -> tuple[np.ndarray, tuple[int, int]]:
    """A base64 PNG of 0 and 1 between two inclusive corners.

    Its size is what counts. A mask that was moved has corners between pixels; labelme drops their fractions where it draws
    it (labelme/utils/shape.py).
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(base64.b64decode(item["mask"], validate=True)), formats=["PNG"]) as picture:
            size, mode = picture.size, picture.mode
            corners = points.reshape(2, 2)
            corners = np.sort(corners, axis=0)
            span = corners[1] - corners[0] + 1
            fits = (np.abs(span - size) < 0.5).all() and mode in ("1", "L", "P")
            mask = np.asarray(picture) > 0 if fits else None
    except Exception as error:
        raise UserError(f"{where} has a mask that cannot be read: {error}", "draw the shape again") from error
    if mask is None:
        wanted = " x ".join(f"{v:g}" for v in span)
        raise UserError(
            f"{where}: its mask is {size[0]} x {size[1]} px ({mode}), its corners span {wanted}", "draw the shape again"
        )
    column, row = np.floor(corners[0] + 1e-6).astype(int).tolist()  # a whole number less a rounding error is whole
    return mask, (column, row)


def _polygon_mask(points: np.ndarray, shape: tuple[int, int], where: str) -> tuple[np.ndarray, tuple[int, int]]:
    """A polygon with its outline, drawn as labelme draws it (labelme/utils/shape.py: PIL, outline and fill)."""
    from PIL import Image, ImageDraw

    if len(points) < 3:
        raise UserError(f"{where} is a polygon of {len(points)} points", "a polygon has three or more")
    canvas = Image.new("1", (shape[1], shape[0]))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points.tolist()], outline=1, fill=1)
    return np.asarray(canvas), (0, 0)


def _union(placed: list, shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Join the masks of one object that lie apart."""
    whole = Instances.from_boxed_masks([mask for mask, _ in placed], [corner for _, corner in placed], shape)
    return whole.paint() > 0, (0, 0)


def _labels_in(path: Path) -> set[str]:
    """Return the labels in a labelme file; none where it is no such file."""
    try:
        shapes = read_json(path)["shapes"]
        return {str(shape["label"]) for shape in shapes}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return set()
