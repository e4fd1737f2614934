"""Parts of the labelled images that are held back in turn: short runs that did not see them, and what those find there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cellkit.cells.dataset import CellDataset, predict_all
from cellkit.cells.instances import Instances
from cellkit.evaluate.quarters import Box, judged_in
from cellkit.files import read_json, sha256_file, write_json
from cellkit.log import LOG
from cellkit.machine import arithmetic
from cellkit.manifest import package_sha256
from cellkit.models import if_able
from cellkit.models.interpolation import interpolate, steps_between
from cellkit.models.weights import NotFinite, copy_checkpoint
from cellkit.modules import code_sha256
from cellkit.scores.table import per_image, score_table
from cellkit.settings import free_fields, weights_fields

FOLD_STEPS = 1 / 3  # of the whole run's steps
SHORTENED = ("steps", "warmup_steps", "average_steps")  # numbers of steps: a short run has the course of a whole one
FOUND = "found.json"  # written last: a fold that has it is finished
KEPT = ".weights"  # a hidden folder goes when the stage is done
Found = dict[float, list[Instances]]  # step from the base -> cells of each image


@dataclass(frozen=True)
class Fold:
    """One part that is held back.

    Attributes
    ----------
    train : CellDataset
        What teaches meanwhile.
    held : CellDataset
        The images that are held back, or the one of which a quarter is.
    folder : Path
    box : Box, optional
        That quarter.
    lasts : bool
        Whether the weights of its run stay while the stage is under way, see `weights_of`; else they go.
    """

    train: CellDataset
    held: CellDataset
    folder: Path
    box: Box | None = None
    lasts: bool = False


def run_fold(backend: ModuleType, fold: Fold, settings: Any, share: float | None = None) -> Found:
    """Adapt a model to what teaches, in a short run, and find the cells of what is held back at every step from the base.

    A fold that was finished with the same images and settings is read, not run. Its weights are deleted in the end, but for
    those that last.

    Parameters
    ----------
    settings : TrainSettings
        Of the whole run.
    share : float, optional
        Of the whole run's steps; default as `fold_settings`.
    """
    short, path = fold_settings(settings, share), fold.folder / FOUND
    stamp = _stamp(backend, fold, short)
    done = read_json(path) if path.is_file() else {}
    if done.get("stamp") != stamp:
        fold.folder.mkdir(parents=True, exist_ok=True)
        base = if_able(backend, "calibrate", fold.train, short, fold.folder / "base")
        tuned = backend.train(fold.train, fold.train.subset([]), short, fold.folder)
        found = {}
        for step in steps_between(base, tuned):
            found[str(step)] = [_plain(cells) for cells in _found_at(backend, fold, base, tuned, step)]
        if fold.lasts:
            for name, weights in (("base", base), ("tuned", tuned)):
                if weights is not None:
                    copy_checkpoint(weights, fold.folder / KEPT / name)
        done = read_json(write_json(path, {"stamp": stamp, "found": found}))
    else:
        LOG.info(f"{fold.folder.name} was finished before")
    _delete_weights(fold.folder)
    shapes = [cells.shape for cells in fold.held.instances]
    return {
        float(step): [_cells(one, shape) for one, shape in zip(rows, shapes, strict=True)]
        for step, rows in done["found"].items()
    }


def _found_at(backend: ModuleType, fold: Fold, base: Path | None, tuned: Path, step: float) -> Sequence[Instances]:
    """Return the cells of what is held back at a step from the base; none where the training of the fold diverged."""
    try:
        segmenter = backend.load(checkpoint_at(base, tuned, step, fold.folder / "between"))
    except NotFinite as error:
        if base is not None and step == 0:  # the base was not trained here
            raise
        LOG.info(
            f"{fold.folder.name}, step {step:g}: its training diverged, which counts as finding nothing: {error.problem}"
        )
        return [Instances.empty(cells.shape) for cells in fold.held.instances]
    return predict_all(segmenter, fold.held, f"step {step:g}")


def weights_of(fold: Fold) -> tuple[Path | None, Path]:
    """Return the base (None where there is none) and the tuned weights of a fold that was run and whose weights last."""
    found = {path.stem: path for path in sorted((fold.folder / KEPT).iterdir()) if path.suffix != ".json"}
    return found.get("base"), found["tuned"]


def fold_settings(settings: Any, share: float | None = None) -> Any:
    """Return the settings of a short run: a share of the steps, where the backend counts any; default its ``fold_steps``."""
    share = getattr(settings, "fold_steps", FOLD_STEPS) if share is None else share
    counts = {name: getattr(settings, name) for name in SHORTENED if hasattr(settings, name)}
    return settings.model_copy(update={name: max(min(one, 1), round(share * one)) for name, one in counts.items()})


def checkpoint_at(base: Path | None, tuned: Path, step: float, folder: Path) -> Path:
    """Return the checkpoint at a step from base to tuned; one between them is written into `folder`, over the last."""
    if step in (0.0, 1.0) or base is None:
        return base if step == 0 and base is not None else tuned
    return interpolate(base, tuned, step, Path(folder) / tuned.name)


def judged_of(folds: Sequence[Fold], founds: Sequence[Found]) -> tuple[CellDataset, Found, np.ndarray]:
    """Return the images that judge, the cells found in them at each step, and the fold of each.

    Of an image that is held back by quarters each quarter judges that holds a whole cell.
    """
    records, instances, ids, made_by, place = [], [], [], [], []
    cells: Found = {step: [] for step in founds[0]}
    for number, (fold, found) in enumerate(zip(folds, founds, strict=True)):
        held = fold.held
        for k, (record, truth) in enumerate(zip(held.records, held.instances, strict=True)):
            at = {step: rows[k] for step, rows in found.items()}
            if fold.box is not None:
                pairs = {step: judged_in(fold.box, truth, one) for step, one in at.items()}
                truth, at = next(iter(pairs.values()))[0], {step: pair[1] for step, pair in pairs.items()}
                record = replace(record, image_id=f"{record.image_id}, quarter {number + 1}", group=record.image_id)
                if not len(truth):
                    continue
            records.append(record)
            instances.append(truth)
            ids.append(held.ids[k] if held.ids and fold.box is None else number + 1)
            made_by.append(held.made_by[k])
            place.append(number)
            for step, one in at.items():
                cells[step].append(one)
    judge = CellDataset(records, instances, folds[0].held.classes, folds[0].held.root, ids, made_by)
    return judge, cells, np.array(place, int)


def scores_of(images: CellDataset, found: Mapping[float, Sequence[Instances]]) -> np.ndarray:
    """Return the MAP IoU of each image at each step, (images, steps) float."""
    names = [record.image_id for record in images.records]
    tables = [per_image(score_table(images.instances, cells, images.records)) for cells in found.values()]
    columns = [table.set_index("image_id")["score"].reindex(names).to_numpy(float) for table in tables]
    return np.stack(columns, axis=1) if columns else np.zeros((len(images), 0))


def _stamp(backend: ModuleType, fold: Fold, settings: Any) -> str:
    """Return a hash of all that a fold's result depends on: code, versions, settings, start weights, images and labels."""
    told = settings.model_dump(mode="json", exclude=free_fields(settings))
    versions = [metadata.version("torch"), package_sha256()]
    computed = str(arithmetic(told.get("precision", "auto")))
    about = (backend.__name__, code_sha256(backend.__name__), versions, computed, told, fold.box, fold.lasts)
    digest = hashlib.sha256(repr(about).encode())
    for name in weights_fields(type(settings)):
        path = Path(getattr(settings, name))
        digest.update((sha256_file(path) if path.is_file() else str(path)).encode())
    for part in (fold.train, fold.held):
        digest.update(repr(part.made_by).encode())
        for record, cells in zip(part.records, part.instances, strict=True):
            about = (record.image_id, record.cell_type, sha256_file(part.root / record.path), cells.shape)
            digest.update(repr(about).encode())
            for values in (cells.starts, cells.lengths, cells.offsets, cells.class_ids, cells.unknown):
                digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _plain(cells: Instances) -> dict[str, list]:
    """Return cells as plain values; nothing of them is rounded."""
    masks = [one["counts"] for one in cells.to_coco_rle()]
    return {"masks": masks, "classes": cells.class_ids.tolist(), "scores": cells.scores.tolist()}


def _cells(plain: Mapping[str, list], shape: tuple[int, int]) -> Instances:
    masks = [{"size": list(shape), "counts": text} for text in plain["masks"]]
    return Instances.from_coco_rle(masks, shape, plain["classes"], plain["scores"])


def _delete_weights(folder: Path) -> None:
    """Delete what a finished fold needs no more: weights, cards, and folders of targets, maps, parts of images."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name != KEPT:
            shutil.rmtree(path)
        elif path.suffix == ".safetensors":
            path.unlink()
            path.with_suffix(".json").unlink(missing_ok=True)
