"""Where images come from: foreign layouts, one function each, all turned into the same thing.

Each ``read_X(root, config)`` lists what a folder holds and yields `SourceImage`: what is known of an image before it is
opened, and `load()` for its pixels and truth. `gather` turns them all into a run's records, pictures and instances; an
image that cannot be used is set aside with its reason, and the rest goes on.

`config` is the ``convert`` section: channels, percentiles, classes and class_names, split, max_images, ...
"""

from __future__ import annotations

import base64
import csv
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cellkit.convert import Level, check_ids, convert_frame, image_id_of, resize_image, resize_instances
from cellkit.errors import Quarantined, UserError, nearest
from cellkit.files import atomic_path
from cellkit.instances import Instances
from cellkit.labels import read_labels
from cellkit.loop import map_items
from cellkit.readers import PICTURE_SUFFIXES, TIFF_SUFFIXES, VENDOR_SUFFIXES, inspect_file, open_file, open_picture
from cellkit.records import ImageRecord, split_records

IMAGE_SUFFIXES = TIFF_SUFFIXES + PICTURE_SUFFIXES + tuple(VENDOR_SUFFIXES)
LABEL_SUFFIXES = (".tif", ".tiff", ".png")
LABEL_ENDINGS = ("_cp_masks", "_masks", "_labels", "_label", "_mask")  # beside the image, as Cellpose and others write
NOT_IMAGES = (*LABEL_ENDINGS, "_flows", "_outlines", "_cp_outlines")
LABEL_FOLDERS = ("labels", "masks", "truth")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test"}
MIN_PIECE_PX = 50
MIXED = "mixed"


# ---- one image of a source -----------------------------------------------------------------------------------------
class Loaded(NamedTuple):
    """Pixels and truth of one image, before resizing.

    image : (H, W, 3) uint8; instances : Instances or None (no truth); um_per_px : float, nan unknown;
    channels : str, as in ImageRecord; levels : how each channel was scaled; planes : what became of the z planes.
    """

    image: np.ndarray
    instances: Instances | None
    um_per_px: float = math.nan
    channels: str = ""
    levels: tuple[Level, ...] = ()
    planes: str = ""


@dataclass(frozen=True)
class SourceImage:
    """What is known of an image before it is opened; fields as in `ImageRecord`.

    `split` is "" where the source has none of its own. `loader` is picklable, so that worker processes can load.
    """

    image_id: str
    cell_type: str
    group: str
    split: str
    source: str
    loader: Callable[[], Loaded]

    def load(self) -> Loaded:
        """Read, convert and return the image and its truth; raises what is wrong with it."""
        return self.loader()


def _refuse(problem: str, remedy: str = "") -> Loaded:
    """Stand in for an image whose header cannot be read: the reason appears where the others are loaded."""
    raise UserError(problem, remedy)


# ---- layouts -------------------------------------------------------------------------------------------------------
def read_microscope(root: Path, config) -> Iterator[SourceImage]:
    """Microscope files in folders called after their cell line; several lines in one image lie in ``mixed/``.

    ``<root>/HEK/a.ome.tif`` has its truth, where there is one, in ``<root>/truth/HEK/a.tif`` (a label image), and the
    classes of mixed cells in ``<root>/truth/classes.csv`` (file, label, class). Each scene and time point is an image.
    Mixed images are test images: their line is not known without truth. This is what `synthetic.write_fields` writes.
    """
    root = Path(root)
    classes = _read_class_table(root / "truth" / "classes.csv", config)
    items = []
    for path in list_files(root, IMAGE_SUFFIXES):
        relative = path.relative_to(root)
        for item in _frames(path, root, config, partial(_truth_beside, root, relative), classes):
            items.append(replace(item, split="test") if item.cell_type == MIXED and not item.split else item)
    yield from _finished(items, config)


def read_folder(root: Path, config) -> Iterator[SourceImage]:
    """Any folder of pictures or microscope files, with label images where they are found by name.

    A label image is ``a_masks.tif`` or ``.png`` beside ``a.png`` (also _cp_masks, _labels, _label, _mask), or lies
    under ``labels/`` or ``masks/`` in place of ``images/`` (``<root>/images/x/a.png``, ``<root>/labels/x/a.tif``), or
    below ``<root>/labels/`` at the same relative path. Folders called train, val and test are the split; a folder
    called after a class is the cell type; other folders are the group.
    """
    root = Path(root)
    items = []
    for path in list_files(root, IMAGE_SUFFIXES):
        items += _frames(path, root, config, partial(_label_by_name, root, path.relative_to(root)), {})
    yield from _finished(items, config)


def read_two_lines(root: Path, config) -> Iterator[SourceImage]:
    """One folder per cell line, each with ``images/`` and ``labels/`` of the same names: one line per image.

    The layout of Coelho, Shariff and Murphy (ISBI 2009) as ``u2os/`` and ``nih3t3/``. With ``config.mixed_images`` = n,
    n mixed test images follow, each the left half of a test image of one line beside the right half of a test image of
    the other; the lines take turns on the left. See `compose_halves`.
    """
    root = Path(root)
    items: list[SourceImage] = []
    for folder in sorted(child for child in root.iterdir() if (child / "images").is_dir()):
        line = _cell_type([folder.name], config)
        if not line or line == MIXED:
            raise _unknown_class(folder.name, config, f"the folder {folder.name}/")
        for path in list_files(folder / "images", IMAGE_SUFFIXES, keep_labels=True):
            relative = path.relative_to(folder / "images")
            label = partial(_required, folder / "labels", relative.with_suffix(""), path)
            image_id = image_id_of(f"{folder.name}/{relative.as_posix()}")
            source = path.relative_to(root).as_posix()
            items.append(
                SourceImage(image_id, line, "", "", source, partial(_load_file, root, path, config, label, line))
            )
    items = list(_finished(items, config))
    yield from items
    yield from _mixed_halves(items, config)


def read_labelme(root: Path, config) -> Iterator[SourceImage]:
    """labelme JSON files: a picture, and a mask or polygon per object with its label; overlapping masks are kept.

    Folders train, val and test are the split. Where there is no test folder, ``config.split.test`` is the share of the
    training images that becomes test. Labels become classes by name or by ``config.class_names``; null there keeps the
    object with class 0 (unknown).
    """
    root = Path(root)
    files = list_files(root, (".json",))
    _check_labelme_classes(files, config)
    items = []
    for path in files:
        relative = path.relative_to(root)
        split = SPLIT_NAMES.get(relative.parts[0].lower(), "") if len(relative.parts) > 1 else ""
        items.append(
            SourceImage(
                image_id_of(relative.as_posix()), _only_class(config) or MIXED, "", split, relative.as_posix(),
                partial(_load_labelme, root, path, config),
            )
        )  # fmt: skip
    yield from _finished(_carve_test(items, config), config)


def read_dsb2018(root: Path, config) -> Iterator[SourceImage]:
    """2018 Data Science Bowl nuclei, in either form.

    Packed: ``images/ID.png``, ``labels/ID.png`` (16-bit ids) and ``index.csv``; ``config.modalities`` keeps the rows
    with these modalities (null: all). Kaggle's own: ``ID/images/ID.png``, ``ID/masks/*.png`` with
    one nucleus each.
    """
    root = Path(root)
    packed = (root / "index.csv").is_file()
    items = list(_packed_dsb2018(root, config) if packed else _kaggle_dsb2018(root, config))
    yield from _finished(items, config)


SOURCES: dict[str, Callable[[Path, object], Iterator[SourceImage]]] = {
    "drawn": read_microscope,
    "microscope": read_microscope,
    "two_lines": read_two_lines,
    "labelme": read_labelme,
    "dsb2018": read_dsb2018,
    "folder": read_folder,
}


# ---- files and names -----------------------------------------------------------------------------------------------
def list_files(root: Path, suffixes: Sequence[str], keep_labels: bool = False) -> list[Path]:
    """Return the files below `root` with one of `suffixes`, sorted by relative path.

    Hidden names, and unless `keep_labels` label images and their folders, are left out. Links to folders are not
    followed, so a loop of links ends; what a link to a file points to must lie below `root`.
    """
    root = Path(root)
    found = []
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if not keep_labels:
            folders[:] = [name for name in folders if name.lower() not in LABEL_FOLDERS]
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or not name.lower().endswith(tuple(suffixes)):
                continue
            if keep_labels or not _stem(path).lower().endswith(NOT_IMAGES):
                found.append(path)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _check_inside(path: Path, root: Path) -> None:
    """Refuse a link that leads out of the data folder."""
    try:
        inside = path.resolve().is_relative_to(Path(root).resolve())
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path.name} is a link that leads nowhere: {error}", "remove it") from error
    if not inside:
        raise UserError(f"{path.name} is a link that leads out of {root}", "copy the file into the data folder")


def _stem(path: Path) -> str:
    """Return the file name without suffix; ``.ome.tif`` is one suffix."""
    stem = path.stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def _named_class(folder: str, config) -> str:
    """Return the class a folder is called after, "mixed", or "" when it is called otherwise."""
    names = {name.casefold(): name for name in (*config.classes, MIXED)}
    return names.get((config.class_names.get(folder, folder) or "").casefold(), "")


def _cell_type(folders: Iterable[str], config) -> str:
    """Return the class of the innermost folder that is called after one; else the only class there is; else ""."""
    named = [_named_class(folder, config) for folder in folders]
    return next((name for name in reversed(named) if name), _only_class(config))


def _only_class(config) -> str:
    return config.classes[0] if len(config.classes) == 1 else ""


def _class_id(label: str, config) -> int:
    """Return the class id of a label of the source: by class_names, else by name; 0 where class_names says null."""
    name = config.class_names.get(label, label)
    if name is None:
        return 0
    ids = {known.casefold(): number for number, known in enumerate(config.classes, 1)}
    if str(name).casefold() not in ids:
        raise _unknown_class(label, config, f"the source's label '{label}'")
    return ids[str(name).casefold()]


def _unknown_class(label: str, config, what: str) -> UserError:
    return UserError(
        f"{what} is none of the classes ({', '.join(config.classes)}){nearest(label, config.classes)}",
        f"name it in convert.class_names, e.g. {label}: {config.classes[0]} (or null: cells of no known class)",
    )


def _frames(path: Path, root: Path, config, label_of: Callable, classes: dict) -> Iterator[SourceImage]:
    """Yield one SourceImage per scene and time of a file; `label_of(suffix)` finds the label image of each."""
    relative = path.relative_to(root)
    folders = [part for part in relative.parts[:-1] if part.lower() != "images"]
    cell_type = _cell_type(folders, config)
    split = next((SPLIT_NAMES[part.lower()] for part in folders if part.lower() in SPLIT_NAMES), "")
    plain = [part for part in folders if part.lower() not in SPLIT_NAMES and not _named_class(part, config)]
    common = {"cell_type": cell_type, "group": "/".join(plain), "split": split}
    name = "/".join((*folders, relative.name))
    try:
        _check_inside(path, root)
        single = path.suffix.lower() in PICTURE_SUFFIXES  # one frame: the header can wait
        frames = [(0, 0, "")] if single else list(inspect_file(path, config.axes).frames())
    except UserError as error:
        refusal = partial(_refuse, *str(error).split("\n", 1))
        yield SourceImage(image_id_of(name), source=relative.as_posix(), loader=refusal, **common)
        return
    for scene, time, suffix in frames:
        ids = classes.get(relative.as_posix(), {})
        loader = partial(_load_file, root, path, config, partial(label_of, suffix), cell_type, scene, time, ids)
        source = relative.as_posix() + suffix.replace("_s", " scene ").replace("_t", " t ")
        yield SourceImage(image_id_of(name, suffix), source=source, loader=loader, **common)


# ---- truth ---------------------------------------------------------------------------------------------------------
def _truth_beside(root: Path, relative: Path, suffix: str) -> Path | None:
    """Return ``<root>/truth/<folders>/<stem><suffix>.tif`` where it exists."""
    path = root / "truth" / relative.parent / f"{_stem(relative)}{suffix}.tif"
    return path if path.is_file() else None


def _label_by_name(root: Path, relative: Path, suffix: str) -> Path | None:
    """Return the one label image that belongs to a picture, or None; see `read_folder`."""
    stem = _stem(relative) + suffix
    folders = [root / relative.parent / (stem + ending) for ending in LABEL_ENDINGS]
    for name in LABEL_FOLDERS:
        parts = [name if part.lower() == "images" else part for part in relative.parent.parts]
        below = Path(*parts) if name in parts else Path(name, relative.parent)
        folders += [root / below / (stem + ending) for ending in ("", *LABEL_ENDINGS)]
    return _only_one(folders, root / relative)


def _required(folder: Path, stem: Path, image: Path, suffix: str = "") -> Path:
    """Return the label image ``folder/stem.*``; refuse an image without."""
    found = _only_one([folder / stem], image)
    if found is None:
        raise UserError(
            f"{image.name} has no label image {stem}.tif or .png in {folder}", "add it, or remove the image"
        )
    return found


def _only_one(stems: Iterable[Path], image: Path) -> Path | None:
    found = [
        Path(f"{stem}{suffix}") for stem in stems for suffix in LABEL_SUFFIXES if Path(f"{stem}{suffix}").is_file()
    ]
    if len(found) > 1:
        raise UserError(f"{image.name} has several label images: {found[0]} and {found[1]}", "keep one of them")
    return found[0] if found else None


def _read_class_table(path: Path, config) -> dict[str, dict[int, int]]:
    """Return {file: {label: class id}} of a ``classes.csv``; empty where there is none."""
    table: dict[str, dict[int, int]] = defaultdict(dict)
    if not path.is_file():
        return table
    with open(path, newline="", encoding="utf-8-sig") as file:
        for line, row in enumerate(csv.DictReader(file), 2):
            try:
                table[row["file"]][int(row["label"])] = _class_id(row["class"], config)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{path} line {line}: {error!r}", "the columns are file, label (a number), class"
                ) from error
    return table


def _labelled(labels: np.ndarray, class_id: int, ids: dict[int, int]) -> Instances:
    """Return the objects of a label image: each of its own class in `ids` where that is given, else of `class_id`."""
    instances = Instances.from_labels(labels)
    if not ids:
        return instances.with_classes(class_id)
    return instances.with_classes([ids.get(int(k), class_id) for k in np.unique(labels) if k])


# ---- loading -------------------------------------------------------------------------------------------------------
def _load_file(root, path, config, label_of, cell_type, scene=0, time=0, ids=None) -> Loaded:
    """Load one frame of a file and the label image that `label_of()` finds."""
    _check_inside(path, root)
    with open_file(path, config.axes) as opened:
        made = _converted(opened, config, scene, time)
    label_path = label_of()
    if label_path is None:
        return made
    _check_inside(label_path, root)
    labels = read_labels(label_path)
    if labels.shape != made.image.shape[:2]:
        raise UserError(
            f"{path.name} is {made.image.shape[0]} x {made.image.shape[1]} px, its label image {label_path} is "
            f"{labels.shape[0]} x {labels.shape[1]}",
            "label the image itself, not a resized or cropped copy",
        )
    class_id = _class_id(cell_type, config) if cell_type not in ("", MIXED) else 0
    return made._replace(instances=_labelled(labels, class_id, ids or {}))


def _converted(opened, config, scene: int = 0, time: int = 0) -> Loaded:
    made = convert_frame(opened, scene, time, config.channels, config.projection, config.percentiles)
    return Loaded(made.image, None, made.um_per_px, made.channels, made.levels, made.planes)


def _load_masks(root: Path, image: Path, masks: Path, config, cell_type: str) -> Loaded:
    """Load Kaggle's form: an image and a folder with one mask per object."""
    _check_inside(image, root)
    with open_file(image) as opened:
        made = _converted(opened, config)
    shape = made.image.shape[:2]
    paths = list_files(masks, (".png",), keep_labels=True)
    objects = Instances.from_masks((_one_mask(path, shape) for path in paths), shape)
    return made._replace(instances=objects.with_classes(_class_id(cell_type, config) if cell_type else 0))


def _one_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    labels = read_labels(path)
    if labels.shape != shape:
        raise UserError(f"the mask {path} is {labels.shape}, its image {shape}", "masks are as large as their image")
    values = np.unique(labels)
    if len(values[values > 0]) > 1:
        raise UserError(f"the mask {path} holds {len(values)} values", "a mask is one object: 0 and one other value")
    return labels > 0


def _packed_dsb2018(root: Path, config) -> Iterator[SourceImage]:
    with open(root / "index.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"id", "modality"} <= set(rows[0]):
        raise UserError(
            f"{root / 'index.csv'} lacks rows, or the columns id and modality", "use the packed form as it came"
        )
    rows.sort(key=lambda row: row["id"])
    wanted = config.modalities
    known = sorted({row["modality"] for row in rows})
    for name in wanted or ():
        if name not in known:
            raise UserError(
                f"no image has the modality '{name}'{nearest(name, known)}", f"choose of {', '.join(known)}"
            )
    cell_type = _only_class(config)
    for row in rows:
        if not wanted or row["modality"] in wanted:
            path = root / "images" / f"{row['id']}.png"
            label = partial(_required, root / "labels", Path(row["id"]), path)
            loader = partial(_load_file, root, path, config, label, cell_type)
            yield SourceImage(image_id_of(f"{row['id']}.png"), cell_type, "", "", f"images/{path.name}", loader)


def _kaggle_dsb2018(root: Path, config) -> Iterator[SourceImage]:
    cell_type = _only_class(config)
    for folder in sorted(child for child in root.iterdir() if (child / "images").is_dir()):
        for path in list_files(folder / "images", PICTURE_SUFFIXES, keep_labels=True):
            loader = partial(_load_masks, root, path, folder / "masks", config, cell_type)
            yield SourceImage(image_id_of(path.name), cell_type, "", "", path.relative_to(root).as_posix(), loader)


# ---- labelme -------------------------------------------------------------------------------------------------------
def _check_labelme_classes(files: list[Path], config) -> None:
    """Refuse a label the config does not know before any image is read: it is the config's fault, not an image's."""
    for path in files:
        try:
            shapes = _read_labelme(path)["shapes"]
        except UserError:
            continue  # reported where the image is loaded
        for label in {str(shape["label"]) for shape in shapes if isinstance(shape, dict) and "label" in shape}:
            _class_id(label, config)


def _read_labelme(path: Path) -> dict:
    """Read and check the outline of a labelme file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path.name} is no JSON: {error}", "write it again with labelme") from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise UserError(f"{path.name} is no labelme file: it has no list of shapes", "write it again with labelme")
    return content


def _load_labelme(root: Path, path: Path, config) -> Loaded:
    """Load the embedded picture (or the one at imagePath) and the shapes as instances."""
    _check_inside(path, root)
    content = _read_labelme(path)
    with _labelme_picture(root, path, content) as opened:
        made = _converted(opened, config)
    shape = made.image.shape[:2]
    stated = (content.get("imageHeight"), content.get("imageWidth"))
    if stated != shape and stated != (None, None):
        raise UserError(
            f"{path.name} says {stated[0]} x {stated[1]} px, its picture is {shape[0]} x {shape[1]}",
            "write it again with labelme",
        )
    masks, corners, ids = [], [], []
    for shapes in _objects(content["shapes"]):
        placed = [_shape_mask(item, shape, f"{path.name}, shape {number}") for number, item in shapes]
        mask, corner = placed[0] if len(placed) == 1 else _union(placed, shape)
        masks.append(mask)
        corners.append(corner)
        ids.append(_class_id(str(shapes[0][1]["label"]), config))
    return made._replace(instances=Instances.from_boxed_masks(masks, corners, shape, ids))


def _labelme_picture(root: Path, path: Path, content: dict):
    """Open the picture of a labelme file: embedded as base64, or the file it names, which must lie below `root`."""
    if content.get("imageData"):
        try:
            data = base64.b64decode(content["imageData"], validate=True)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{path.name}: its imageData is no base64: {error}", "write it again with labelme"
            ) from error
        return open_picture(path, data)
    named = str(content.get("imagePath") or "").replace("\\", "/")
    if not named:
        raise UserError(f"{path.name} has neither imageData nor imagePath", "write it again with labelme")
    picture = path.parent / named
    _check_inside(picture, root)
    return open_file(picture)


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


def _shape_mask(item: dict, shape: tuple[int, int], where: str) -> tuple[np.ndarray, tuple[int, int]]:
    """Return a boolean mask and the column and row of its first pixel."""
    points = _points(item, shape, where)
    if item.get("shape_type") == "mask":
        return _embedded_mask(item, points, where)
    if item.get("shape_type") == "polygon":
        return _polygon_mask(points, shape, where)
    raise UserError(f"{where} is a '{item.get('shape_type')}'", "outline each cell as a polygon or a mask")


def _points(item: dict, shape: tuple[int, int], where: str) -> np.ndarray:
    """(N, 2) float columns and rows; finite and within one image size of the image."""
    try:
        points = np.asarray(item.get("points"), float).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where} has points that are no pairs of numbers", "write the file again with labelme"
        ) from error
    size = np.array([shape[1], shape[0]])
    if not np.isfinite(points).all() or (points < -size).any() or (points > 2 * size).any():
        raise UserError(f"{where} has points far outside its image, or none at all", "draw the shape again")
    return points


def _embedded_mask(item: dict, points: np.ndarray, where: str) -> tuple[np.ndarray, tuple[int, int]]:
    """A base64 PNG of 0 and 1 between two inclusive corners."""
    from io import BytesIO

    from PIL import Image

    try:
        with Image.open(BytesIO(base64.b64decode(item["mask"], validate=True)), formats=["PNG"]) as picture:
            size, mode = picture.size, picture.mode
            corners = np.rint(points).astype(int).reshape(2, 2)
            wanted = tuple(int(n) for n in corners[1] - corners[0] + 1)
            mask = np.asarray(picture) > 0 if size == wanted and mode in ("1", "L", "P") else None
    except Exception as error:
        raise UserError(f"{where} has a mask that cannot be read: {error}", "draw the shape again") from error
    if mask is None:
        raise UserError(f"{where}: its mask is {size} {mode}, its corners span {wanted}", "draw the shape again")
    return mask, (int(corners[0, 0]), int(corners[0, 1]))


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


def _carve_test(items: list[SourceImage], config) -> list[SourceImage]:
    """Give `config.split.test` of the training images to test, where the source has a split but no test images."""
    splits = {item.split for item in items}
    share = dict(config.split).get("test", 0)
    if "train" not in splits or "test" in splits or not share:
        return items
    train = [item for item in items if item.split == "train"]
    drawn = _split(train, {"train": 1 - share, "test": share}, config)
    return [drawn.get(item.image_id, item) for item in items]


# ---- halves --------------------------------------------------------------------------------------------------------
def _mixed_halves(items: list[SourceImage], config) -> Iterator[SourceImage]:
    """Yield `config.mixed_images` mixed test images of the first two lines' test images; every pair is used once."""
    lines = [name for name in config.classes if any(item.cell_type == name for item in items)][:2]
    if not config.mixed_images:
        return
    tests = [[item for item in items if item.cell_type == line and item.split == "test"] for line in lines]
    possible = math.prod(map(len, tests)) if len(lines) == 2 else 0
    if config.mixed_images > possible:
        raise UserError(
            f"{config.mixed_images} mixed images are wanted, {possible} can be made of the test images",
            "lower convert.mixed_images or raise convert.split.test; two lines are needed",
        )
    a, b = tests
    for number in range(config.mixed_images):
        turn = number // math.lcm(len(a), len(b))
        pair = (a[number % len(a)], b[(number + turn) % len(b)])
        left, right = pair if number % 2 == 0 else pair[::-1]
        source = f"left half of {left.source}, right half of {right.source}"
        loader = partial(_load_halves, left.loader, right.loader)
        yield SourceImage(f"mixed_{number + 1:02d}", MIXED, "", "test", source, loader)


def _load_halves(left: Callable[[], Loaded], right: Callable[[], Loaded]) -> Loaded:
    a, b = left(), right()
    image, instances = compose_halves((a.image, a.instances), (b.image, b.instances))
    return Loaded(
        image, instances, a.um_per_px if a.um_per_px == b.um_per_px else math.nan, a.channels, a.levels + b.levels
    )


def compose_halves(left: tuple, right: tuple, min_piece_px: int = MIN_PIECE_PX) -> tuple[np.ndarray, Instances]:
    """Put the left half of one image beside the right half of another, with their truth.

    Parameters
    ----------
    left, right : (image, instances)
        (H, W, 3) uint8, scaled each on its own, and its cells. Both are cut to the common height and width, from the
        upper left; the seam is the middle column of that, and belongs to the right.
    min_piece_px : int
        A cell cut by the seam or the cut edge is cut in the truth as well; a piece with fewer pixels is dropped.

    Returns
    -------
    image : (H, W, 3) uint8
    instances : Instances
        Cells of the left, then of the right, with their class ids.
    """
    height = min(left[0].shape[0], right[0].shape[0])
    width = min(left[0].shape[1], right[0].shape[1])
    seam = width // 2
    image = np.concatenate([left[0][:height, :seam], right[0][:height, seam:width]], axis=1)
    parts = []
    for (_, cells), columns in ((left, slice(0, seam)), (right, slice(seam, width))):
        labels = np.zeros((height, width), np.int32)
        labels[:, columns] = cells.paint()[:height, columns]
        here = np.unique(labels[labels > 0]) - 1
        piece = Instances.from_labels(labels, cells.class_ids[here])
        parts.append(piece[(piece.areas_px == cells.areas_px[here]) | (piece.areas_px >= min_piece_px)])
    return image, Instances.concatenate(parts)


# ---- which images, which split -------------------------------------------------------------------------------------
def thin(items: Sequence[SourceImage], max_images: int | None) -> list[SourceImage]:
    """Keep at most `max_images` per cell type, evenly spaced over the order given, the first and last among them."""
    kept: set[int] = set()
    by_type: dict[str, list[int]] = defaultdict(list)
    for position, item in enumerate(items):
        by_type[item.cell_type].append(position)
    for positions in by_type.values():
        count = len(positions) if max_images is None else min(max_images, len(positions))
        kept.update(positions[round(k)] for k in np.linspace(0, len(positions) - 1, count))
    return [item for position, item in enumerate(items) if position in kept]


def _split(items: Sequence[SourceImage], fractions: dict, config) -> dict[str, SourceImage]:
    """Return the items by id, each with a split drawn by `records.split_records`."""
    bare = [ImageRecord(i.image_id, i.source, 1, 1, cell_type=i.cell_type, group=i.group) for i in items]
    drawn = split_records(bare, fractions, config.seed, by=config.split_by)
    return {item.image_id: replace(item, split=record.split) for item, record in zip(items, drawn, strict=True)}


def _finished(items: Sequence[SourceImage], config) -> Iterator[SourceImage]:
    """Check ids, keep `config.max_images` of each cell type, and give a split to those the source gave none."""
    check_ids((item.image_id, item.source) for item in items)
    items = thin(items, config.max_images)
    without = [item for item in items if not item.split]
    drawn = _split(without, dict(config.split), config) if without else {}
    yield from (drawn.get(item.image_id, item) for item in items)


# ---- all of it -----------------------------------------------------------------------------------------------------
class Gathered(NamedTuple):
    """What notebook 01 makes of a source.

    records : list of ImageRecord, in the order of the source, with quality flags
    instances : list of Instances in the same order, or None when the source has no truth
    quarantined : list of Quarantined, what was set aside and why
    conversion : list of dict, one per image and colour: image_id, source, colour, channel, low, high, clipped_fraction
    quality : list of dict, one per image: image_id, what was measured, flags
    thresholds : dict, the limits behind the flags
    """

    records: list[ImageRecord]
    instances: list[Instances] | None
    quarantined: list[Quarantined]
    conversion: list[dict]
    quality: list[dict]
    thresholds: dict


def gather(config, root: str | Path, out: str | Path) -> Gathered:
    """Convert every image of a source into a run folder.

    Writes ``out/images/<image_id>.png`` (each atomically), ``out/conversion.csv`` and ``out/quality.csv``.

    Parameters
    ----------
    config : ConvertConfig
    root : path
        The folder that holds the source, see `source_folder`.
    out : path
        The run folder, or ``stage.root`` which stands for it.

    Returns
    -------
    Gathered
        The same for any `config.workers`.

    Raises
    ------
    UserError
        No such folder, no image in it, two images of one id, an unknown class, or no image that could be used.
    """
    root, out = Path(root), Path(out)
    items = _listed(config, root)
    work = partial(_convert_one, folder=out / "images", scale=config.scale)
    done, quarantined = map_items(work, items, "convert", config.workers, name=lambda item: item.source)
    quarantined = [Quarantined(q.item, q.reason.removeprefix("UserError: ").replace("\n", "; ")) for q in quarantined]
    done = [result for result in done if result is not None]
    if any(result[1] is not None for result in done):
        bare = [result[0].source for result in done if result[1] is None]
        quarantined += [Quarantined(source, "has no truth, while other images of the source have") for source in bare]
        done = [result for result in done if result[1] is not None]
    if not done:
        first = f"{quarantined[0].item}: {quarantined[0].reason}"
        raise UserError(
            f"none of the {len(items)} images in {root} could be used; the first: {first}",
            "correct the config or the files; `cellkit inspect FILE` says what a file holds",
        )
    return _gathered(out, done, quarantined)


def _listed(config, root: Path) -> list[SourceImage]:
    """Return the source's images; refuse a missing folder, an empty one, and two images of one id."""
    if not root.is_dir():
        raise UserError(f"the data folder {root} does not exist", "set data: and convert.path, or CELLKIT_DATA=FOLDER")
    items = list(SOURCES[config.source](root, config))
    if not items:
        raise UserError(
            f"no image of the source '{config.source}' in {root}",
            "set convert.source and convert.path; data/README.md shows the layouts that are read",
        )
    check_ids((item.image_id, item.source) for item in items)
    return items


def _convert_one(item: SourceImage, folder: Path, scale: float):
    """Load one image, resize, write the PNG; return (record, instances, levels, measurements)."""
    from cellkit.quality import measure

    loaded = item.load()
    image = resize_image(loaded.image, scale)
    instances = None if loaded.instances is None else resize_instances(loaded.instances, scale)
    path = write_png(folder / f"{item.image_id}.png", image)
    record = ImageRecord(
        image_id=item.image_id,
        path=f"{folder.name}/{path.name}",
        height_px=image.shape[0],
        width_px=image.shape[1],
        channels=loaded.channels,
        cell_type=item.cell_type,
        group=item.group,
        split=item.split,
        um_per_px=loaded.um_per_px / scale,
        source=f"{item.source} {loaded.planes}".rstrip(),
    )
    clipped = max((level.clipped_fraction for level in loaded.levels), default=None)
    return record, instances, loaded.levels, measure(image, clipped)


def _gathered(out: Path, done: list, quarantined: list[Quarantined]) -> Gathered:
    """Flag the images against each other, write the tables."""
    from cellkit.quality import flag_records

    flags, thresholds = flag_records([measured for *_, measured in done])
    records = [replace(result[0], flags=flag) for result, flag in zip(done, flags, strict=True)]
    instances = [result[1] for result in done]
    conversion = [
        {"image_id": record.image_id, "source": record.source, "colour": level.colour, "channel": level.channel,
         "low": level.low, "high": level.high, "clipped_fraction": level.clipped_fraction}
        for record, result in zip(records, done, strict=True) for level in result[2]
    ]  # fmt: skip
    quality = [
        {"image_id": record.image_id, **result[3], "flags": record.flags}
        for record, result in zip(records, done, strict=True)
    ]
    write_table(out / "conversion.csv", conversion)
    write_table(out / "quality.csv", quality)
    return Gathered(records, None if instances[0] is None else instances, quarantined, conversion, quality, thresholds)


def write_png(path: str | Path, image: np.ndarray) -> Path:
    """Write (H, W, 3) uint8 as PNG, atomically; the same pixels give the same bytes."""
    import imagecodecs

    with atomic_path(path) as temporary:
        temporary.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(image), level=3, strategy=3))
    return Path(path)


def write_table(path: str | Path, rows: Sequence[dict]) -> Path:
    """Write rows as CSV, atomically; text a spreadsheet would run as a formula gets a leading apostrophe."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return Path(path)


def _cell(value):
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return round(value, 6) if isinstance(value, float) else value


def source_folder(config, stage) -> Path:
    """Return the folder of a run's images: drawn into the run folder, or below the data folder and noted as an input.

    Parameters
    ----------
    config : ConvertConfig
    stage : Stage
        The running stage.

    Raises
    ------
    UserError
        There is no data folder, or nothing at `config.path` in it.
    """
    from cellkit.config import data_path
    from cellkit.synthetic import write_fields

    if config.source == "drawn":
        folder = stage.path("microscope")
        drawn = config.drawn.model_dump()
        write_fields(folder, lines=config.classes, seed=config.seed, **drawn)
        return folder
    root = data_path(config)
    stage.reads(data=root)
    return root
