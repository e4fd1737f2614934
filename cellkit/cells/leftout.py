"""Cells that a setting leaves out or cuts, or that are doubtful, are counted, and reported with the reason and the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import counted
from cellkit.log import LOG

OF_IMAGES = "images: "


def of_images(what: str) -> str:
    """Return the reason by which something is noted of an image itself, and not of cells in it: however many are counted.

    Examples
    --------
    >>> left = LeftOut()
    >>> left.of_image({of_images("of no kind"): 3}, "a")
    >>> left.sentences()
    ['1 image of no kind (a)']
    """
    return f"{OF_IMAGES}{what}"


class LeftOut:
    """How many cells were left out, cut or are doubtful, by reason and by image.

    Examples
    --------
    >>> left = LeftOut()
    >>> left.add(too_small(15), "a", 2)
    >>> left.add(too_small(15), "b", 5)
    >>> left.sentences()
    ['7 cells of 2 images left out: smaller than min_area_px = 15 px (most in b: 5)']
    """

    def __init__(self) -> None:
        self.cells: dict[str, Counter[str]] = {}

    def add(self, why: str, image_id: str, cells: int) -> None:
        """Note that an image lost cells; nothing is noted for 0."""
        if cells:
            self.cells.setdefault(why, Counter())[image_id] += cells

    def of_image(self, counts: Mapping[str, int], image_id: str) -> None:
        """Note what a model left out of an image: reason -> cells."""
        for why, cells in counts.items():
            self.add(why, image_id, cells)

    def sentences(self) -> list[str]:
        """Return one sentence per reason; what is noted of images themselves names each of them."""
        sentences = []
        for why, images in self.cells.items():
            if why.startswith(OF_IMAGES):
                what = why.removeprefix(OF_IMAGES)
                sentences.append(f"{counted(len(images), 'image')} {what} ({', '.join(sorted(images))})")
                continue
            image_id, most = images.most_common(1)[0]
            count = images.total()
            what = f"{counted(count, 'cell')} of {counted(len(images), 'image')} {why}"
            sentences.append(f"{what} (most in {image_id}: {most})" if len(images) > 1 else f"{what} ({image_id})")
        return sentences

    def log(self, desc: str) -> None:
        """Write the sentences into the log."""
        for sentence in self.sentences():
            LOG.warning(f"{desc}: {sentence}")


def too_small(least_px: int, key: str = "min_area_px") -> str:
    """Return the reason of cells below the least area.

    Examples
    --------
    >>> too_small(15, "coco.min_area_px")
    'left out: smaller than coco.min_area_px = 15 px'
    """
    return f"left out: smaller than {key} = {least_px} px"


def warn_small(
    records: Sequence[ImageRecord], instances: Sequence[Instances], least_px: int, key: str, what: str
) -> tuple[int, int, int]:
    """Say how many labelled cells are below the least area, if any.

    Parameters
    ----------
    key : str
        The setting, e.g. "finetune.min_area_px".
    what : str
        What becomes of them: "left out", "can never be found".

    Returns
    -------
    small, cells, largest_px : int
        How many are smaller, of how many, and the area of the largest of all (0 where there is none).
    """
    areas = [x.areas_px for x in instances]
    small = {r.image_id: int((a < least_px).sum()) for r, a in zip(records, areas, strict=True)}
    cells, largest = sum(map(len, areas)), max((int(a.max()) for a in areas if len(a)), default=0)
    lost = sum(small.values())
    if lost:
        most = max(small, key=small.get)
        found = f"{key} = {least_px} px: {lost} of {cells} labelled cells are smaller and {what} (most in {most}: {small[most]})"
        LOG.warning(f"{found}; lower {key} to keep them")
    return lost, cells, largest
