"""The images of a source at their own size: which ids and sizes are handed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cellkit.errors import Quarantined, readable
from cellkit.log import LOG
from cellkit.sources.listing import SourceImage
from cellkit.sources.source_tables import header_of, read_table

SAMPLE_COLUMNS = ("id", "ImageId")


def competition_ids(items: Sequence[SourceImage], done: Sequence) -> set[str]:
    """Return the image_ids of the test images that a source names as such, where others have truth and none of them has."""
    asked = {item.image_id for item in items if item.is_asked}
    truth = {result[0].image_id for result in done if result[1] is not None}
    return set() if asked & truth or not truth else asked


def sample_ids(root: Path, items: Sequence[SourceImage]) -> list[str]:
    """Return the ids of the competition's ``*sample_submission*.csv`` in a folder, in its order; [] where there is none.

    Of several files the one that names most of the images. One that names none of them is not followed, and that is said.
    """
    own, best, path = {item.own_id for item in items}, [], None
    for found in sorted(root.glob("*sample_submission*.csv")):
        column = next((name for name in SAMPLE_COLUMNS if name in header_of(found)), None)
        if column is None:
            continue
        ids = list(dict.fromkeys(row[column] for row in read_table(found, (column,), root)))
        if path is None or len(own & set(ids)) > len(own & set(best)):
            best, path = ids, found
    if path is not None and not own & set(best):
        LOG.warning(f"{path.name} names {len(best)} images, none of which is here: it is not followed")
        return []
    return best


def list_originals(
    items: Sequence[SourceImage], done: Sequence, quarantined: Sequence[Quarantined], sample: Sequence[str] = ()
) -> list[dict]:
    """Say of every image of a source what it was before it was converted: by these a submission is written.

    Returns
    -------
    list of dict
        image_id; id : what the source calls it, or the image_id where two would be called so, or where a competition's
        file cannot hold the name; split; height_px, width_px : of the file ("" where it could not be read); asked : "yes" or
        "no", whether the competition asks for it, by its sample_submission.csv, else by its test images without truth; ""
        where there is no such thing; note : why there is no picture.
        Ids of the sample that are no image here follow, without image_id.
    """
    from cellkit.formats.submission_check import id_fault

    size_of = {result[0].image_id: result[4] for result in done}
    names = [(readable(item.own_id), item.split) for item in items]
    count, wanted, competition = Counter(names), set(sample), competition_ids(items, done)
    ids = [
        name if count[name, split] == 1 and not id_fault(name) else item.image_id
        for (name, split), item in zip(names, items, strict=True)
    ]
    tests = {own_id for own_id, item in zip(ids, items, strict=True) if item.split == "test"}
    rows = []
    for item, own_id in zip(items, ids, strict=True):
        height_px, width_px = size_of.get(item.image_id, ("", ""))
        asked = own_id in wanted and (item.split == "test" or own_id not in tests)
        asked = asked if sample else item.image_id in competition
        note = "" if item.image_id in size_of else why_unused(readable(item.source), quarantined)
        rows.append(
            {"image_id": item.image_id, "id": own_id, "split": item.split, "height_px": height_px, "width_px": width_px,
             "asked": {True: "yes", False: "no"}[asked] if sample or competition else "", "note": note}
        )  # fmt: skip
    blank = {"image_id": "", "split": "test", "height_px": "", "width_px": "", "asked": "yes"}
    known = set(ids)
    return rows + [{**blank, "id": name, "note": "no picture of it is here"} for name in sample if name not in known]


def why_unused(source: str, quarantined: Sequence[Quarantined]) -> str:
    """Return the reason why an image was set aside; its name may be followed by what became of its planes."""
    named = [one for one in quarantined if one.item == source] or [
        q for q in quarantined if q.item.startswith(f"{source} ")
    ]
    return named[0].reason if named else "could not be used"
