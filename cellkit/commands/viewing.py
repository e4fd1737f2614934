"""Which image and which cells `cellkit view` shows, as layers or in words."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from cellkit.cells.dataset import CellDataset
from cellkit.cells.names import best_pairs
from cellkit.cells.records import ImageRecord
from cellkit.errors import Quarantined, UserError, counted, nearest
from cellkit.formats.any import read_side
from cellkit.formats.sides import NAMES, first_names
from cellkit.manifest import read_manifest
from cellkit.measure.channels import raw_channels
from cellkit.measure.images import read_cells
from cellkit.microscope.folders import is_run_folder
from cellkit.microscope.frames import Frame, find_frames, find_images, none_used
from cellkit.microscope.open import open_file
from cellkit.outdated import unused_models
from cellkit.show.napari_layers import Layer, cells_layer, channel_layers

INSTALL = "pip install 'napari[all]'"


@dataclass(frozen=True, eq=False)
class View:
    """One image, and {name: cells of one image} of what was found or drawn in it; `others` names the other images,
    `quarantined` the files that cannot be read."""

    frame: Frame
    cells: dict[str, CellDataset]
    others: str
    quarantined: tuple[Quarantined, ...] = ()


def chosen_view(images: str, labels: str | None, image_id: str | None, convention: str | None = None) -> View:
    """Return what is to be shown.

    Parameters
    ----------
    images : str
        A run folder, of which all cells are shown; or a file, a folder or a pattern.
    labels : str, optional
        Cells of those images; in a run folder besides its own.
    image_id : str, optional
        Which image; default the first.

    Raises
    ------
    UserError
        No image, none called so, or cells of no such image.
    """
    run = Path(images) if is_run_folder(Path(images)) else None
    links: list[Quarantined] = []
    frames, failed = find_frames(find_images([images if run is None else run / "images"], outside=links))
    quarantined = [*links, *failed]
    if not frames:
        raise none_used(0, quarantined)
    names = [frame.image_id for frame in frames]
    if image_id is not None and image_id not in names:
        raise UserError(f"no image '{image_id}'{nearest(image_id, names)}", f"images: {first_names(names)}")
    frame = frames[names.index(image_id) if image_id is not None else 0]
    unused = {} if run is None else unused_models(read_manifest(run))
    quarantined += [Quarantined(name, f"not shown: {why}") for name, why in sorted(unused.items())]
    sides = {} if run is None else {path.stem: read_side(path) for path in _files_of(run) if path.stem not in unused}
    if labels is not None:
        given = Path(labels).stem if Path(labels).stem not in sides else labels
        sides[given], unread = read_cells(labels, convention, frames)
        quarantined += unread
    own = {name: side for name, side in ((name, _of_frame(side, frame)) for name, side in sides.items()) if side}
    if labels is not None and given not in own:
        known = [record.image_id for record in sides[given].records]
        raise UserError(
            f"{labels} has no cells of {frame.image_id}", f"it has those of {first_names(known)}: --image ID"
        )
    more = [name for name in names if name != frame.image_id]
    others = f"{frame.image_id}; {counted(len(more), 'other image')}: --image {first_names(more)}" if more else ""
    return View(frame, own, others, tuple(quarantined))


def _files_of(run: Path) -> list[Path]:
    """Return what a run has of cells: truth, the labels that are trained on, and what its models found."""
    found = [run / "truth.json", run / "labels", *sorted((run / "predictions").glob("*.json"))]
    return [path for path in found if path.exists()]


def _of_frame(side: CellDataset, frame: Frame) -> CellDataset | None:
    """Return the cells of one image, None where there are none."""
    places = best_pairs([ImageRecord(frame.image_id, frame.relative, 1, 1)], side.records, NAMES)
    return side.subset([places[0]]) if places else None


def layers_of(view: View) -> list[Layer]:
    """Return the channels of the image, and its cells over them.

    Raises
    ------
    UserError
        Cells of an image of another size.
    """
    frame = view.frame
    with open_file(frame.path) as opened:
        um_per_px = opened.info.series[frame.scene].um_per_px
        planes = {name: read() for name, read in raw_channels(opened, frame.scene, frame.time).items()}
    size = next(iter(planes.values())).shape
    for side in view.cells.values():
        if side.instances[0].shape != size:
            own = "{} x {}".format(*side.instances[0].shape)
            raise UserError(
                f"the cells of {side.path} are of an image of {own} px, {frame.path.name} is {size[0]} x {size[1]} px",
                "give the very image that the cells were found in",
            )
    cells = [
        cells_layer(
            name, side.instances[0], side.classes, um_per_px, side.numbers[0].tolist() if side.numbers else None
        )
        for name, side in view.cells.items()
    ]
    return [*channel_layers(planes, um_per_px), *cells]


def in_words(view: View) -> str:
    """Return which files show the image and its cells, and how Fiji, QuPath and napari open them."""
    picture = view.frame.path
    lines = [f"napari is not installed here ({INSTALL} in an environment of its own); these are the files:", ""]
    lines += [f"  {'picture':<15} {picture}"]
    lines += [f"  {name:<15} {side.path}: {counted(side.cells, 'cell')}" for name, side in view.cells.items()]
    if view.cells:
        side = next(reversed(view.cells.values()))
        where = shlex.quote(str(side.path))
        lines += ["", "To open those of the last line, write them for your program:", ""]
        of = (
            f"cellkit labels {where}"
            if side.path.suffix == ".json"
            else f"cellkit coco {where} -o cells.json\n  cellkit labels cells.json"
        )
        lines += [
            f"  {of} -o open_me --format roi      # Fiji: open the picture; Analyze, Tools, ROI Manager; More, Open",
            f"  {of} -o open_me --format geojson  # QuPath: open the picture, drop the file of its name on it",
            f"  {of} -o open_me                   # napari: drop picture and label image on it; Convert to Labels",
        ]
    return "\n".join([*lines, *(["", view.others] if view.others else [])])
