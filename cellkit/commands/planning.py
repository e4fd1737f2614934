"""What `cellkit plan` plans for: the images of a run, or those of a folder, with the model that looks at them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import Quarantined, UserError
from cellkit.log import LOG
from cellkit.microscope.frames import Frame
from cellkit.predict.model import Model

if TYPE_CHECKING:
    from cellkit.sources.label_files import LabelFiles


@dataclass(frozen=True)
class Pool:
    """Images to plan for.

    Parameters
    ----------
    images : CellDataset
        All of them, flagged ones too, without labels.
    by_person : set of str
        The image_id of those that a person has labelled.
    model : Model
    out : Path
        Where the files to correct go.
    comes_back : str
        How the corrected files are used, in words.
    curve : Path or None
        Scores of models trained on fewer and more images.
    quarantined : list of Quarantined
        Files that could not be used.
    cells : float or None
        Cells in an image that a person has labelled, in the mean; None where that is not known.
    """

    images: CellDataset
    by_person: set[str]
    model: Model
    out: Path
    comes_back: str
    curve: Path | None = None
    quarantined: list[Quarantined] = field(default_factory=list)
    cells: float | None = None


def pool_of_run(given: argparse.Namespace) -> Pool:
    """Return the images of a run folder, its best segmentation model unless another is named, and what is labelled there.

    Labelled is what the last run of 02 took as truth or corrections, and what a person has saved since in ``to_correct``, in
    the folder that ``label.use`` names, or in ``--labelled``.

    Raises
    ------
    UserError
        The run has no images yet, or no model.
    """
    from cellkit.formats.coco_reading import read_coco
    from cellkit.labelling.budget import CURVE_FILE
    from cellkit.labelling.rounds import TO_CORRECT
    from cellkit.machine import here
    from cellkit.run.folder import Run

    run = Run(given.images[0])
    if given.out:
        _refuse_own(given.out, run)
    images = CellDataset.from_records(run.find("records"), unused=True)
    images = images.subset([bool(record.split or record.flags) for record in images.records])
    labelled = read_coco(run.find_all("labels")["labels"], run.folder) if run.find_all("labels") else None
    labelled = None if labelled is None else labelled.without_proposed()
    by_person = set() if labelled is None else {r.image_id for r in labelled.records}
    cells = sum(map(len, labelled.instances)) / len(labelled) if labelled is not None and len(labelled) else None
    settings = run.stages().get("02_label_with_cellpose", {}).get("config", {})
    use, own = settings.get("use", "truth"), run.folder / TO_CORRECT
    places = [own] if use in ("truth", "proposed") else [own, here(use)]
    by_person |= _saved(images, [*places, *map(Path, given.labelled or [])])
    out, place = (Path(given.out), given.out) if given.out else (own, f"{run.name}/{TO_CORRECT}")
    back = f"Back: set label.use: {place} and run 02 again."
    if places[-1].resolve() != out.resolve() and use != "proposed":
        what = "where your labels are" if use == "truth" else f"in {use}, where the others are,"
        back = f"Back: save them {what} and run the notebooks again."
    curve = run.folder / CURVE_FILE
    model = _model_of(run, given, settings)
    return Pool(images, by_person, model, out, back, curve if curve.is_file() else None, cells=cells)


def _refuse_own(out: str, run: Any) -> None:
    """Refuse to write into what a run folder keeps for itself or for its stages."""
    from cellkit.manifest import RESERVED, overlap, owned_files, read_manifest

    place, folder = Path(out).resolve(), run.folder.resolve()
    if not place.is_relative_to(folder):
        return
    name = place.relative_to(folder).as_posix()
    if name == "." or any(overlap(name, own) for own in (*owned_files(read_manifest(folder)), *RESERVED)):
        raise UserError(
            f"-o {out} is a place where the run keeps its own files", "name a folder of your own, or leave -o out"
        )


def _model_of(run: Any, given: argparse.Namespace, settings: dict[str, Any]) -> Model:
    """Return the model that is named, else the one that 03 kept, else the one that 02 labelled with, read as it was there."""
    from cellkit.fetch.find import find_weights
    from cellkit.models import backend_module
    from cellkit.predict.model import find_model

    if given.model:
        return find_model(given.model)
    if "03_finetune_cellpose" in run.stages():
        return find_model(f"{run.folder}:cellpose")
    if not settings:
        raise UserError(f"{run.name} has no model yet", "name one: --model starter, or run 02 first")
    known = backend_module(settings["backend"]).Settings.model_fields
    config = {name: settings[name] for name in known if settings.get(name) is not None}
    return Model(settings["model"], settings["backend"], find_weights(settings["model"]), (), config)


def pool_of_files(given: argparse.Namespace, folder: Path) -> Pool:
    """Return pictures and microscope files, each converted as for `cellkit predict` into `folder`, and judged for quality.

    Labelled is what has a label file where a run on the same folder finds it, and what ``--labelled`` and the folder of an
    earlier plan hold.

    Raises
    ------
    UserError
        No model or no place for the files is named, or no image can be used.
    """
    from cellkit.commands.shared import conversion_of
    from cellkit.microscope.frames import find_frames, find_images, none_used, refuse_inputs_as_outputs
    from cellkit.predict.model import find_model

    if lacking := [place for place in given.images if not Path(place).exists() and not set("*?[") & set(place)]:
        raise UserError(
            f"no file or folder at {lacking[0]}", "give a run folder, or files, folders or patterns of images"
        )
    if not given.model:
        raise UserError("no model is named", "name one: --model starter, or RUN:cellpose of a finished run")
    if not given.out:
        raise UserError("no folder for the files to correct is named", "name one: -o to_correct")
    model, out, links = _unsized(find_model(given.model)), Path(given.out), []
    listed, labels = _without_label_images(find_images(given.images, avoid=[out], outside=links), given.images)
    frames, failed = find_frames(listed)
    refuse_inputs_as_outputs(frames, [out])
    quarantined = links + failed
    images = _converted(frames, conversion_of(given, model.conversion), folder, quarantined, given.workers)
    if not len(images):
        raise none_used(len(frames), quarantined)
    beside = {name for own in labels for name in _labelled_beside(images.records, own.root)}
    beside |= {frame.image_id for own in labels for frame in frames if _has_labels(frame, own)}
    by_person = beside | _saved(images, [out, *map(Path, given.labelled or [])])
    back = (
        f"Back: give {given.out} as label.use of a run on these images. A run deals them into training, validation and test: "
        "what is planned there offers training images alone."
    )
    return Pool(images, by_person, model, out, back, None, quarantined)


def _unsized(model: Model) -> Model:
    """Return start weights without the diameter of their card, so that it is estimated, as in notebook 02; others as they are."""
    from dataclasses import replace

    from cellkit.predict.model import is_unsized

    if not is_unsized(model):
        return model
    kept = {name: value for name, value in model.config.items() if name not in ("diameter_px", "diameter_of")}
    return replace(model, config=kept)


def _converted(
    frames: Sequence[Frame], conversion: Any, folder: Path, quarantined: list[Quarantined], workers: int
) -> CellDataset:
    """Write each frame as the picture a model is shown, ``folder/<image_id>.png``; what cannot be read is skipped."""
    from dataclasses import replace
    from functools import partial

    from cellkit.microscope.flags import flag_records
    from cellkit.parallel import map_items

    work = partial(_picture, conversion=conversion, folder=folder)
    done, failed = map_items(work, frames, "read", workers, name=lambda frame: f"{frame.path}{frame.suffix}")
    quarantined += [one.in_one_line() for one in failed]
    made = [one for one in done if one is not None]
    flags, _ = flag_records([measured for _, measured in made])
    records = [replace(record, flags=flag) for (record, _), flag in zip(made, flags, strict=True)]
    return CellDataset(records, [Instances.empty((r.height_px, r.width_px)) for r in records], root=folder)


def _picture(frame: Frame, conversion: Any, folder: Path) -> tuple[ImageRecord, dict[str, Any]]:
    """Write the picture of one frame; return its record, and what was measured of its quality."""
    from cellkit.errors import of_place
    from cellkit.microscope.frames import reason_of
    from cellkit.microscope.journal import png_parts, write_parts
    from cellkit.microscope.quality import measure
    from cellkit.predict.images import read_picture

    try:
        shown = read_picture(frame, conversion)
    except Exception as error:  # whatever a reader raises on a damaged file
        if of_place(error):
            raise
        raise UserError(reason_of(error)) from error
    write_parts(folder / f"{frame.image_id}.png", png_parts(shown.image, shown.um_per_px))
    group = frame.relative.rpartition("/")[0]
    about = {"channels": shown.channels, "um_per_px": shown.um_per_px, "file": frame.relative, "group": group}
    size = shown.image.shape[:2]
    return ImageRecord(frame.image_id, f"{frame.image_id}.png", *size, split="train", **about), measure(shown.image)


def _without_label_images(
    listed: Sequence[tuple[Path, str]], named: Sequence[str]
) -> tuple[list[tuple[Path, str]], list[LabelFiles]]:
    """Return the images without what a run would take for label images (``train_masks/``), and the label files of each folder."""
    from cellkit.config.sections import ConvertConfig
    from cellkit.sources.label_files import LabelFiles

    labels, left_out = [], set()
    for folder in (Path(name) for name in named if Path(name).is_dir()):
        own = LabelFiles(folder)
        below = [path for path, _ in listed if path.is_relative_to(folder)]
        own.find_folders(below, ConvertConfig())
        left_out |= {path for path in below if path.relative_to(folder).parent in own.folders}
        labels.append(own)
    return [(path, relative) for path, relative in listed if path not in left_out], labels


def _has_labels(frame: Frame, labels: LabelFiles) -> bool:
    """Tell whether a run would find labels of a frame below a folder, by name; a model's proposals as they were left are none."""
    if not frame.path.is_relative_to(labels.root):
        return False
    try:
        label = labels.of_image(frame.path, frame.suffix, 0, 1)
        found = label.path if label else labels.cells_of(frame.path, frame.suffix)
    except UserError:  # several, which a run refuses: labels there are
        return True
    return found is not None and _by_person(found)


def _labelled_beside(records: Sequence[ImageRecord], folder: Path) -> set[str]:
    """Return the images that have a file in the folder of the pictures whose name alone says labels of a person."""
    from cellkit.labelling.label_files import match_files

    found = match_files(records, folder)[0].items()
    return {name for name, files in found for kind, path in files if kind != "plain" and _by_person(path)}


def _by_person(path: Path) -> bool:
    """Tell whether a label file is anything else than a model's proposal as it was left."""
    from cellkit.formats.labels import is_proposed
    from cellkit.formats.zarr_labels import about_labels, is_zarr_labels
    from cellkit.labelling.rounds import as_left

    try:
        if is_zarr_labels(path):
            return about_labels(path).made_by != "proposed"
        return not as_left(path) and not is_proposed(path)
    except UserError:  # one that cannot be read is none that a model left
        return True


def _saved(images: CellDataset, folders: Sequence[Path]) -> set[str]:
    """Return the images that one of the folders holds a person's labels for; say which files there are not used."""
    from cellkit.labelling.corrections import labelled_by_person

    names: set[str] = set()
    for folder in dict.fromkeys(folders):
        if folder.is_dir():
            found, unused = labelled_by_person(images, folder)
            names |= found
            for item in unused:
                LOG.warning(f"{folder}: {item.item} is not used: {item.reason}")
    return names
