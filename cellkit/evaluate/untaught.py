"""Cell lines that a model is to find cells of, and none of whose images teaches it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from cellkit.cells.records import MIXED, ImageRecord
from cellkit.errors import counted


def untaught_lines(records: Iterable[ImageRecord], teach: Iterable[ImageRecord]) -> dict[str, int]:
    """Return the cell lines of which no image teaches, and how many images each has.

    Images that are in no split, and those of several lines or of none that is known, are left out. Where an image of several
    lines teaches, which ones is not known, and none is named.

    Parameters
    ----------
    records : iterable of ImageRecord
        Of all images.
    teach : iterable of ImageRecord
        Of the images whose labels are learned from.

    Examples
    --------
    >>> of = lambda line, split="train": ImageRecord(line, f"{line}.png", 8, 8, cell_type=line, split=split)
    >>> untaught_lines([of("u2os"), of("nih3t3", "test"), of("mixed", "test"), of("hek", "")], [of("u2os")])
    {'nih3t3': 1}
    """
    taught = {record.cell_type for record in teach}
    if MIXED in taught:
        return {}
    lines = (record.cell_type for record in records if record.split)
    return dict(sorted(Counter(line for line in lines if line and line != MIXED and line not in taught).items()))


def describe_untaught(lines: Mapping[str, int], teach: Iterable[ImageRecord] = ()) -> str:
    """Say of which cell lines no labelled image teaches, as `untaught_lines` found, and what to do; or that there is none.

    Parameters
    ----------
    teach : iterable of ImageRecord
        As for `untaught_lines`: where an image of several lines is among them, it is said that this is not known.

    Examples
    --------
    >>> print(describe_untaught({"nih3t3": 1}))
    no labelled image of nih3t3 (1 image) teaches: the tuned model may find cells there worse than the base does
      to do: label one; cellkit plan takes the lines in turn
    >>> describe_untaught({})
    'every cell line has an image that teaches'
    """
    if not lines and any(record.cell_type == MIXED for record in teach):
        return "an image of several lines teaches: whether every line is in one that does is not known"
    if not lines:
        return "every cell line has an image that teaches"
    each = ", ".join(f"{line} ({counted(images, 'image')})" for line, images in lines.items())
    return (
        f"no labelled image of {each} teaches: the tuned model may find cells there worse than the base does\n"
        "  to do: label one; cellkit plan takes the lines in turn"
    )
