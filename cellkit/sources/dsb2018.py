"""2018 Data Science Bowl nuclei, packed or as Kaggle has them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.names import image_id_of, split_of_folder, stem_of
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError, nearest
from cellkit.formats.label_images import labels_orientation, read_labels
from cellkit.microscope.file_info import PICTURE_SUFFIXES, only_headers
from cellkit.microscope.folders import check_inside, find_picture, list_files
from cellkit.microscope.open import open_file
from cellkit.sources.assign_splits import assign_splits
from cellkit.sources.label_files import LabelFiles
from cellkit.sources.leftovers import leftovers
from cellkit.sources.listing import UNUSED, Convert, Loaded, SourceImage, class_id_of, only_class
from cellkit.sources.loading import check_same_way, load_file, perhaps, resolved
from cellkit.sources.source_tables import read_table
from cellkit.sources.unlabelled import apart_from_bare

ORDER = 90

# folder: its split, "" = drawn
DSB2018_PARTS = {"stage1_train": "", "train": "", "stage1_test": "test", "test": "test"}


def detect(root: Path) -> bool:
    """Tell whether a folder is such a data set."""
    below = [child for child in sorted(root.iterdir()) if (child / "images").is_dir()]
    packed = (root / "index.csv").is_file() and (root / "labels").is_dir()
    return packed or (bool(below) and all((child / "masks").is_dir() for child in below))


def read(root: Path, config: ConvertConfig) -> Iterator[SourceImage]:
    """2018 Data Science Bowl nuclei, in either form.

    Packed: ``images/ID.png``, ``labels/ID.png`` (16-bit ids) and ``index.csv``; ``config.modalities`` keeps the rows
    with these modalities (null: all). Kaggle's own: ``ID/images/ID.png``, ``ID/masks/*.png`` with
    one nucleus each; also below ``stage1_train`` and ``stage1_test`` (or ``train`` and ``test``). Those of test are test
    images, and what has no folder ``masks`` has no truth.
    """
    root = Path(root)
    packed = (root / "index.csv").is_file()
    if packed:
        items, used = _packed_dsb2018(root, config)
        wanted = [item for item in items if item.split != UNUSED]
    else:
        items, used = list(_kaggle_dsb2018(root, config)), set()
        wanted = items
    left = list(leftovers(root, items, used))
    wanted, bare = apart_from_bare(wanted, config)
    yield from assign_splits(wanted, config, left=[*left, *bare])


def _packed_dsb2018(root: Path, config: ConvertConfig) -> tuple[list[SourceImage], set[Path]]:
    """Return the images, those of other modalities as unused, and the label images that were found."""
    rows = read_table(root / "index.csv", ("id", "modality"), root)
    if not rows:
        raise UserError(f"{root / 'index.csv'} lacks rows", "use the packed form as it came")
    rows.sort(key=lambda row: row["id"])
    wanted = config.modalities
    known = sorted({row["modality"] for row in rows})
    for name in wanted or ():
        if name not in known:
            raise UserError(
                f"no image has the modality '{name}'{nearest(name, known)}", f"choose of {', '.join(known)}"
            )
    cell_type = only_class(config)
    labels, items = LabelFiles(root), []
    for row in rows:
        path = find_picture(root / "images", row["id"]) or root / "images" / f"{row['id']}.png"
        label, files = resolved(partial(labels.required, root / "labels", Path(row["id"]), path))
        loader = partial(load_file, root, path, config, label, cell_type)
        split = split_of_folder(row.get("split") or "") if not wanted or row["modality"] in wanted else UNUSED
        image_id, source = image_id_of(f"{row['id']}.png"), f"images/{path.name}"
        items.append(SourceImage(image_id, cell_type, "", split, source, loader, row["id"], files=(path, *files)))
    return items, labels.used


def _kaggle_dsb2018(root: Path, config: ConvertConfig) -> Iterator[SourceImage]:
    if config.modalities:
        raise UserError(
            f"convert.modalities is {', '.join(config.modalities)}, and {root} has no index.csv, which lists them",
            "set convert.modalities: null; Kaggle's form does not say what kind a picture is",
        )
    cell_type = only_class(config)
    for place, split in ((root, ""), *((root / name, split) for name, split in DSB2018_PARTS.items())):
        for folder in sorted(child for child in place.glob("*") if (child / "images").is_dir()):
            for path in list_files(folder / "images", PICTURE_SUFFIXES, keep_labels=True):
                loader = partial(_load_masks, root, path, folder / "masks", config, cell_type)
                image_id, source = image_id_of(path.name), path.relative_to(root).as_posix()
                files, bare = (path, folder / "masks"), not (folder / "masks").is_dir()
                yield SourceImage(image_id, cell_type, "", split, source, loader, stem_of(path), files=files, bare=bare)


def _load_masks(
    root: Path, image: Path, masks: Path, config: ConvertConfig, cell_type: str, convert: Convert
) -> Loaded:
    """Load Kaggle's form: an image and a folder with one mask per object."""
    check_inside(image, root)
    with open_file(image, most_px=config.max_plane_px) as opened:
        made = convert(opened, config.conversion)
    if not masks.is_dir():
        return made
    if only_headers():
        return perhaps(made, [class_id_of(cell_type, config) if cell_type else 0])
    shape = made.image.shape[:2]
    paths = list_files(masks, (".png",), keep_labels=True)
    for path in paths:
        check_inside(path, root)
        check_same_way(made, image, path, labels_orientation(path))
    objects = Instances.from_masks((_one_mask(path, shape) for path in paths), shape)
    black = [path for path, area in zip(paths, objects.areas_px.tolist(), strict=True) if not area]
    notes = tuple(f"{path.relative_to(root).as_posix()}: no pixel of it is above 0" for path in black)
    objects = objects[objects.areas_px > 0].with_classes(class_id_of(cell_type, config) if cell_type else 0)
    return made._replace(instances=objects, left_out=(*made.left_out, *notes))


def _one_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    labels = read_labels(path)
    if labels.shape != shape:
        raise UserError(f"the mask {path} is {labels.shape}, its image {shape}", "masks are as large as their image")
    values = np.unique(labels)
    if len(values[values > 0]) > 1:
        raise UserError(f"the mask {path} holds {len(values)} values", "a mask is one object: 0 and one other value")
    return labels > 0
