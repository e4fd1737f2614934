"""BBBC039: nuclei of U2OS cells, with the published split (Caicedo et al., Cytometry A 2019)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.names import image_id_of, stem_of
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError
from cellkit.microscope.file_info import only_headers
from cellkit.microscope.folders import IMAGE_SUFFIXES, by_stem, check_inside, list_files
from cellkit.sources.assign_splits import assign_splits
from cellkit.sources.leftovers import leftovers
from cellkit.sources.listing import (
    UNUSED,
    Convert,
    Loaded,
    SourceImage,
    failing,
    loader_of_several,
    only_class,
)
from cellkit.sources.loading import check_same_way, check_shape, load_picture, perhaps
from cellkit.sources.own_split import read_split_lists

ORDER = 20

BBBC039_LISTS = (("training", "train"), ("validation", "val"), ("test", "test"))


WELL_OF_FIELD = re.compile(r"_([A-P]\d{2})_s\d+_")


def detect(root: Path) -> bool:
    """Tell whether a folder is such a data set."""
    return any((root / "metadata").rglob("training.txt")) and (root / "images").is_dir()


def read(root: Path, config: ConvertConfig) -> Iterator[SourceImage]:
    """BBBC039: ``images/*.tif`` (16 bit), ``masks/*.png``, and the split in ``metadata/{training,validation,test}.txt``.

    The lists name the masks (``.png``). A mask is a map of three colours in the red channel, chosen so that touching
    nuclei differ: each 8-connected region of one value is a nucleus, as in the authors' own code (Caicedo et al., Cytometry
    A 2019). A listed field without any nucleus stays, empty. The well is the group.
    """
    root = Path(root)
    lists = {path.name: path for path in list_files(root / "metadata", (".txt",), keep_labels=True)}
    named = [(lists[f"{name}.txt"], split) for name, split in BBBC039_LISTS if f"{name}.txt" in lists]
    split_of = read_split_lists(named, root)
    pictures, masks = by_stem(root / "images", IMAGE_SUFFIXES), by_stem(root / "masks", (".png",))
    items = []
    for stem in sorted({*pictures, *split_of}):
        found, found_masks = pictures.get(stem, []), masks.get(stem, [])
        path, mask = next(iter(found), None), next(iter(found_masks), None)
        split = split_of.get(stem, UNUSED if split_of else "")
        well = WELL_OF_FIELD.search(stem)
        if path is None:
            loader = failing(f"{stem} is in metadata/ but not in images/", "add the image, or correct the list")
        else:
            loader = loader_of_several(root, found, found_masks) or partial(_load_bbbc039, root, path, mask, config)
        source = f"images/{path.name if path else stem}"
        group = well[1] if well else ""
        files = (*found, *found_masks)
        image_id = image_id_of(f"{stem}.png")
        items.append(SourceImage(image_id, only_class(config), group, split, source, loader, stem, files=files))
    yield from assign_splits(items, config, fill_split=True, left=list(leftovers(root, items)))


def _load_bbbc039(root: Path, path: Path, mask: Path | None, config: ConvertConfig, convert: Convert) -> Loaded:
    made = load_picture(root, path, config, convert)
    if mask is None:
        raise UserError(f"{path.name} has no mask masks/{stem_of(path)}.png", "add masks.zip, or remove the image")
    check_inside(mask, root)
    check_same_way(made, path, mask)
    class_id = 1 if only_class(config) else 0
    if only_headers():
        return perhaps(made, [class_id])
    colours = read_red(mask, made.image.shape[:2], path)
    return made._replace(instances=Instances.from_labels(regions_of_colours(colours)).with_classes(class_id))


def read_red(path: Path, shape: tuple[int, int], image: Path) -> np.ndarray:
    """Return the red channel (H, W) uint8 of a colour PNG, or a grey one as it is; it must be as large as `image`.

    Raises
    ------
    UserError
        More than 8 bits a colour.
    """
    from PIL import Image

    content = path.read_bytes()
    if content[24:25] == b"\x10" and content[25:26] in (b"\x02", b"\x06"):  # Pillow would cut them to 8
        raise UserError(f"{path} has 16 bits per colour", "a mask of BBBC039 has 8; use the masks as they came")
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as picture:
            check_shape((picture.height, picture.width), shape, path, image)
            if picture.mode not in ("RGBA", "RGB", "L"):
                raise UserError(f"{path} is a {picture.mode} picture", "a mask of BBBC039 is an 8-bit RGBA PNG")
            pixels = np.asarray(picture)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read: {error}", "fetch it again; it is damaged") from error
    return pixels if pixels.ndim == 2 else pixels[..., 0]


def regions_of_colours(colours: np.ndarray) -> np.ndarray:
    """Number the 8-connected regions of each value but 0.

    Returns
    -------
    (H, W) int32
        Numbered by value, then by first pixel.

    Examples
    --------
    >>> regions_of_colours(np.array([[1, 1, 2, 0, 1], [0, 0, 2, 0, 1]]))
    array([[1, 1, 3, 0, 2],
           [0, 0, 3, 0, 2]], dtype=int32)
    """
    from scipy import ndimage

    labels = np.zeros(colours.shape, np.int32)
    count = 0
    for value in np.unique(colours[colours > 0]):
        found, more = ndimage.label(colours == value, np.ones((3, 3)))
        labels[found > 0] = found[found > 0] + count
        count += more
    return labels
