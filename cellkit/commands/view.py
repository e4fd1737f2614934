"""The command `cellkit view`."""

from __future__ import annotations

import argparse

from cellkit.commands.shared import Answer, from_flag, list_quarantined

ABOUT = "open an image and its cells in napari, or say which files Fiji and QuPath open"
ORDER = 5


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "images", metavar="RUN|IMAGES", help="a run folder; or a picture, a microscope file, a folder of them"
    )
    cells = "their cells: a COCO file, or a folder of label images, ROI zips, GeoJSON ...; of a run all that it has"
    parser.add_argument("labels", metavar="LABELS", nargs="?", help=cells)
    parser.add_argument("--image", dest="image_id", metavar="ID", help="which image (default the first)")
    from_flag(parser, "whose COCO file it is")


def run(given: argparse.Namespace) -> Answer:
    """Open an image and its cells in napari, or say which files Fiji and QuPath open.

    Raises
    ------
    UserError
        No image, none called so, or cells of no such image.
    """
    from cellkit.commands.viewing import chosen_view, in_words, layers_of
    from cellkit.show.napari_layers import is_napari_here, open_napari

    view = chosen_view(given.images, given.labels, given.image_id, given.from_)
    list_quarantined(view.quarantined)
    if not is_napari_here():
        return Answer(in_words(view))
    open_napari(layers_of(view), f"{view.frame.image_id} - cellkit")
    return Answer(view.others)
