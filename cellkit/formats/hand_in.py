"""Which images of predictions are handed in to a competition, and under which ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.names import best_pairs, image_id_of, plain_stem, repeated, same, stem_of
from cellkit.cells.records import ImageRecord
from cellkit.errors import Quarantined, UserError, counted
from cellkit.formats.sides import NAMES, first_names, image_records, marks_of, skipped_by
from cellkit.log import LOG


def named_after(side: CellDataset, folder: str | Path) -> tuple[CellDataset, list[Quarantined]]:
    """Return the images below a folder, in their order and called as their files are without suffix; and which rows are empty.

    Empty is what could not be predicted, as the file of predictions says.

    Raises
    ------
    UserError
        An image without prediction, a prediction of no image (but for other images of a run), or another size.
    """
    unread: dict[str, str] = {}
    wanted = image_records(folder, unread)
    places, lacking = best_pairs(wanted, side.records, NAMES), unread_by(side)
    empty = {k for k, record in enumerate(wanted) if k not in places and _key(record) in lacking}
    missing = [record.image_id for k, record in enumerate(wanted) if k not in places and k not in empty]
    used = set(places.values())
    others = _is_of_run(side)  # other images of it may be among them
    extra = [] if others else [r.image_id for k, r in enumerate(side.records) if k not in used]
    if missing or extra:
        problem = (
            f"{counted(len(missing), 'test image')} without prediction, {counted(len(extra), 'prediction')} of none"
        )
        raise UserError(f"{problem}, e.g. {(missing or extra)[0]}", f"predict the images in {folder}")
    found = side.subset([places[k] for k in range(len(wanted)) if k not in empty])
    for record, own in zip([r for k, r in enumerate(wanted) if k not in empty], found.records, strict=True):
        known = stem_of(record.path) not in unread
        if known and (record.height_px, record.width_px) != (own.height_px, own.width_px):
            raise UserError(
                f"{record.image_id} is {record.height_px} x {record.width_px} px, its cells were found in "
                f"{own.height_px} x {own.width_px} px",
                f"predict the original images: cellkit predict MODEL {folder} -o FILE.json",
            )
    own, cells = iter(found.instances), []
    for k, record in enumerate(wanted):
        shape = record.height_px or 1, record.width_px or 1
        cells.append(Instances.empty(shape) if k in empty else next(own))
    if empty:
        LOG.warning(f"empty, as it could not be predicted: {', '.join(wanted[k].image_id for k in sorted(empty))}")
    names = [stem_of(record.path) for record in wanted]
    records = [
        replace(record, image_id=name, height_px=found.shape[0], width_px=found.shape[1])
        for record, name, found in zip(wanted, names, cells, strict=True)
    ]
    left = [
        Quarantined(wanted[k].path, f"an empty row, {unread.get(names[k], lacking[_key(wanted[k])])}")
        for k in sorted(empty)
    ]
    return CellDataset(records, cells, side.classes, path=side.path), left


def named_as_files(side: CellDataset) -> CellDataset:
    """Return a side whose images are called as their files are without suffix, which is how a competition calls them.

    Images of a run are called as its source calls them, as in the submission of the run itself. Several of one file, and images
    of a run that would share a name, keep theirs.

    Raises
    ------
    UserError
        Two files of one name.
    """
    marks = marks_of(side)
    if side.run or side.of_model or marks:
        names = [_own_id(marks.get(record.image_id, {})) or record.image_id for record in side.records]
        count = Counter(names)
        names = [n if count[n] == 1 else r.image_id for r, n in zip(side.records, names, strict=True)]
        return _named(side, names)
    in_json = side.path is not None and side.path.suffix.lower() == ".json"
    names = [_file_name(record) if in_json else stem_of(f"{record.image_id}.") for record in side.records]
    scenes = Counter(record.path for record in side.records)
    names = [r.image_id if r.path and scenes[r.path] > 1 else name for r, name in zip(side.records, names, strict=True)]
    if twice := repeated(names):
        raise UserError(
            f"{side.path} has two images of files called '{twice[0]}'",
            "give the folder of the test images, whose names are the ids: --images DIR",
        )
    return _named(side, names)


def _own_id(marks: Mapping[str, object]) -> str:
    own_id = marks.get("own_id", "")
    return own_id if isinstance(own_id, str) else ""


def _named(side: CellDataset, names: Sequence[str]) -> CellDataset:
    return replace(side, records=[replace(r, image_id=name) for r, name in zip(side.records, names, strict=True)])


def _file_name(record: ImageRecord) -> str:
    """Return what the file of an image is called without suffix; where the path is that of a label image, of its picture."""
    if record.path in ("", record.image_id):
        return record.image_id
    stem = stem_of(record.path)
    return stem if record.image_id.endswith(image_id_of(f"{stem}.")) else plain_stem(record.path)


def _key(record: ImageRecord) -> str:
    return same(plain_stem(record.path))


def unread_by(side: CellDataset) -> dict[str, str]:
    """Return why, by names as `same` has them, a prediction skipped images: its file lists them."""
    told = {_key_of_skipped(one): one["reason"] for one in skipped_by(side)}
    there = set(map(_key, side.records))
    return {name: reason for name, reason in told.items() if name not in there}


def _key_of_skipped(one: Mapping[str, str]) -> str:
    """Return the name by which `unread_by` tells what was skipped; an id has no suffix that could be taken off."""
    return same(plain_stem(f"{one['own_id']}." if one.get("own_id") else one["item"].replace("\\", "/")))


def with_empty_rows(side: CellDataset, test: bool = True) -> tuple[CellDataset, list[Quarantined], str]:
    """Return the images that are handed in where no folder names them, called as `named_as_files` does.

    Of predictions of a run those are its test images, and empty what the run is to hand in and could not predict.

    Parameters
    ----------
    test : bool
        Whether it is those; else all images of the side, and no others.

    Returns
    -------
    side : CellDataset
    skipped : list of Quarantined
        What could not be predicted: has it an empty row or none, and why.
    note : str
        What to say of images that are not handed in; "" where all are.

    Raises
    ------
    UserError
        As `of_test` and `named_as_files`.
    """
    skipped, unread = skipped_by(side), unread_by(side)
    side, note = of_test(side) if test else (side, "")
    named = named_as_files(side)
    there = {record.image_id for record in named.records}
    own = {one["own_id"]: one for one in skipped if one.get("own_id") and one["own_id"] not in there} if test else {}
    known = {_key_of_skipped(one) for one in skipped if one.get("own_id")}
    left = [Quarantined(name, f"an empty row, {one['reason']}") for name, one in own.items()]
    left += [Quarantined(name, f"no row, {unread[name]}") for name in sorted(unread) if name not in known]
    records = [*named.records, *(ImageRecord(name, name, 1, 1) for name in own)]
    cells = [*named.instances, *(Instances.empty((1, 1)) for _ in own)]
    return CellDataset(records, cells, named.classes, path=side.path), left, note


def as_asked(
    side: CellDataset, skipped: Sequence[Quarantined], unread: Mapping[str, str], ids: Sequence[str], sample: str | Path
) -> tuple[CellDataset, list[Quarantined], str]:
    """Return exactly the images that a sample submission asks for, in its order; those that are not there are empty.

    Parameters
    ----------
    side : CellDataset
        Called as the competition does, see `named_after` and `with_empty_rows`, which also say what was `skipped`.
    unread : mapping
        Why a prediction skipped images, see `unread_by`.
    ids : sequence of str
        See `cellkit.formats.samples.sample_ids`.
    sample : path
        The file, for messages.

    Returns
    -------
    side : CellDataset
    skipped : list of Quarantined
        The images of the sample that have an empty row because nothing is known of them, and why.
    note : str
        What is not handed in, as the sample does not ask for it; "" where all is.

    Raises
    ------
    UserError
        No image has an id of the sample.
    """
    places = {record.image_id: k for k, record in enumerate(side.records)}
    if not places.keys() & set(ids):
        there = f"there are {', '.join([*places][:3])}" if places else "there is no image"
        raise UserError(
            f"none of {counted(len(ids), 'id')} of {sample} is an image of {side.path}, e.g. {ids[0]}; {there}",
            "predict the test images that the sample asks for",
        )
    told = {name: one for one in skipped for name in (one.item, stem_of(one.item))}
    records, cells, left = [], [], []
    for name in ids:
        if name in places:
            records.append(side.records[places[name]])
            cells.append(side.instances[places[name]])
            left += [told[name]] if name in told else []
        else:
            records.append(ImageRecord(name, name, 1, 1))
            cells.append(Instances.empty((1, 1)))
            reason = unread.get(same(name), f"{sample} asks for it, and nothing was predicted of it")
            left.append(Quarantined(name, f"an empty row, {reason}"))
    asked = set(ids)
    others = [name for name in places if name not in asked]
    note = f"{counted(len(others), 'image')} not handed in, as not asked for by {sample}: {first_names(others)}"
    return CellDataset(records, cells, side.classes, path=side.path), left, note if others else ""


def of_test(side: CellDataset) -> tuple[CellDataset, str]:
    """Return predictions of a run for its test images alone, and what to say of the others; any other side as it is.

    Where a competition asks for images, those are the test images.

    Raises
    ------
    UserError
        None of them is of a test image.
    """
    if not _is_of_run(side):
        return side, ""
    marks = marks_of(side)
    asked = {name for name, one in marks.items() if one.get("asked") == "yes"}
    is_test = [r.image_id in asked if asked else r.split == "test" for r in side.records]
    kept = [k for k, one in enumerate(is_test) if one]
    others = [r.split or "excluded" for r, one in zip(side.records, is_test, strict=True) if not one]
    if not kept:
        only = ", ".join(sorted(set(others)))
        lists = [f"coco/{split}.json" for split in ("val", "train") if split in others]
        there = next((path for name in lists if (path := (side.run or Path()) / name).is_file()), None)
        raise UserError(
            f"{side.path} has no test image of the run, {f'only {only}' if only else 'and no other image'}",
            f"say which images to hand in: --images DIR{f', or --coco {there}' if there else ''}"
            if only
            else "predict the images to hand in: cellkit predict RUN:NAME IMAGES -o FILE.json, and submit that",
        )
    of = ", ".join(sorted(set(others)))
    problem = f"{counted(len(kept), 'test image')} handed in, not {counted(len(others), 'other')} of the run ({of})"
    return side.subset(kept), f"{problem}; for others give --images DIR or --coco FILE" if others else ""


def _is_of_run(side: CellDataset) -> bool:
    """Tell whether these are predictions of a run: other images than those to hand in may be among them."""
    return side.of_model or any(set(marks) - {"own_id"} for marks in marks_of(side).values())


def refuse_scaled(side: CellDataset) -> None:
    """Refuse cells of a run whose pictures were resized: their masks are not of the original images' size.

    Raises
    ------
    UserError
        With the scale, and the command that predicts the original images.
    """
    if scales := {one["scale"] for one in marks_of(side).values() if isinstance(one.get("scale"), int | float)}:
        raise UserError(
            f"{side.path} has the cells in pictures of {min(scales):g} times the original size (convert.scale)",
            f"predict the original images: cellkit predict {side.run or 'RUN'}:NAME IMAGES -o FILE.json, and submit that",
        )
