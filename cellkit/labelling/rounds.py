"""From round to round: which images a person should correct first, the files to open for that, and what was changed since."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.errors import UserError, counted
from cellkit.files import atomic_path, from_cell
from cellkit.formats import roi, seg
from cellkit.formats.any import ImageToWrite, written_here
from cellkit.formats.label_images import as_written
from cellkit.formats.labels import chosen_cells
from cellkit.labelling.corrections import confirmed_in, corrections_folder, proposals_beside
from cellkit.labelling.planner import DEFAULT_RULE, HELD_OUT, differences, features_of_proposals, plan_table, to_rank
from cellkit.models.gate import CHOOSE_FROM

if TYPE_CHECKING:
    import pandas

    from cellkit.labelling.annotate import Labelled

FIRST_WORDS = (
    "Images whose labels are proposals, the one to correct first on top. Training images are ranked by the rule named beside "
    "them, taking turns among cell types and groups; validation and test images are chosen at random. Disagreement "
    "is the share of cells that only one of model and threshold finds (1 - F1 at IoU > 0.5), confidence the mean score of the "
    "proposed cells. It is a guess where correcting pays, no score."
)
CHANGE_WORDS = (
    "Cells before and after a person's corrections, matched at IoU > 0.5: the same to the pixel, changed in outline (with the "
    "mean IoU of all matched cells), added, removed. Proposals that follow proposals are no person's change and are left out."
)
MOST_NAMED = 3
NAMED_JUDGES = 3  # validation images that are offered, as long as no more are labelled: no rule chose them
FIRST_COLUMNS = ("image_id", "split", "made_by", "cells", "confidence", "disagreement", "minutes", "rule", "why")
CHANGE_COLUMNS = ("since", "image_id", "made_by", "cells", "same", "changed", "added", "removed", "iou")
TO_CORRECT = "to_correct"  # in the run folder, and no stage's: what is saved there stays
NOT_SAVED = (
    "What you did not save stays a proposal;\n"
    "what is right as it is you list in confirmed.csv there (a column image_id)"
)
KEPT = "left as they are, because somebody saved or confirmed them"
INSTALL = "pip install 'cellpose[gui]'"
MOST_IMAGES = 200  # images; more are written by `cellkit plan`


def correct_first(
    images: CellDataset,
    proposals: Sequence[Instances],
    others: Sequence[Instances],
    chosen: Sequence[Labelled],
    rule: str = DEFAULT_RULE,
) -> pandas.DataFrame:
    """Order the images that no person has labelled: training images by a rule, then validation and test images at random.

    Parameters
    ----------
    images : CellDataset
    proposals, others : list of Instances
        What the model and another one found, one per image; the scores of the proposals are their confidence.
    chosen : list of Labelled
        Which labels each image has; images that are not among them have none (mixed ones).
    rule : str
        Of `cellkit.labelling.planner.RULES`; of the features it may use those that the proposals tell.

    Returns
    -------
    DataFrame
        image_id, split, made_by ("proposed", or "" for no labels), cells (proposed), confidence (nan where there is no
        cell), disagreement, minutes (to correct it, expected), rule, why; see `FIRST_WORDS`.
    """
    import pandas as pd

    made_by = {item.image_id: item.made_by for item in chosen}
    place = {record.image_id: k for k, record in enumerate(images.records)}
    by_person = {name for name, maker in made_by.items() if maker != "proposed"}
    done = [record for record in images.records if record.image_id in by_person]
    tables = []
    for part, how in zip(to_rank(images, by_person), (rule, "random"), strict=True):
        mine = [place[record.image_id] for record in part.records]
        found, other = ([cells[k] for k in mine] for cells in (proposals, others))
        features = features_of_proposals(part, found, disagreements={"models": differences(found, other)})
        tables.append(plan_table(part, features, how, labelled=done))
    table = pd.concat(tables, ignore_index=True).rename(columns={"disagreement_models": "disagreement"})
    return table.assign(made_by=[made_by.get(name, "") for name in table["image_id"]])[list(FIRST_COLUMNS)]


def next_images(stage: Any, most: int = 8) -> pandas.DataFrame:
    """Return the top of ``correct_first.csv`` that `write_rounds` left, to look at; no row where a person labelled them all.

    Parameters
    ----------
    stage : cellkit.run.folder.Stage
    most : int
        Rows of training images, and of the others.
    """
    import pandas as pd

    path = stage.path("correct_first.csv")
    if not path.is_file():
        return pd.DataFrame(columns=list(FIRST_COLUMNS))
    texts = dict.fromkeys(("image_id", "cell_type", "group"), str)  # 001 is a name
    table = pd.read_csv(path, keep_default_na=False, dtype=texts)
    table = table.assign(**{name: table[name].map(from_cell) for name in texts if name in table})
    held_out = table["split"].isin(HELD_OUT)
    return pd.concat([table[~held_out].head(most), table[held_out].head(most)], ignore_index=True)


def tell_proposed(chosen: Sequence[Labelled], first: pandas.DataFrame, use: str = "proposed") -> str:
    """Say how many images have proposals for labels, and which to correct first; "" where a person labelled all.

    Parameters
    ----------
    chosen : list of Labelled
    first : DataFrame
        From `correct_first`.
    use : str
        ``label.use``.
    """
    count = sum(item.made_by == "proposed" for item in chosen)
    if not count:
        return ""
    judges = first["image_id"][first["split"] == "val"].head(NAMED_JUDGES)
    names = first["image_id"][~first["split"].isin(HELD_OUT)]
    some = ", ".join(names.head(MOST_NAMED)) + (", ..." if len(names) > MOST_NAMED else "")
    told = (
        f"proposals, no truth: the labels of {count} of {counted(len(chosen), 'image')} are the model's own; they are trained "
        f"on, and these images have no score\ncorrect first: {some or 'no training image is left'} (correct_first.csv has all, "
        f"in order), {'then set label.use to the folder of the corrected files' if use == 'proposed' else f'save them in {use}'}"
    )
    numbers = (
        f"\nto judge by, chosen at random: {', '.join(judges)}; while fewer than {CHOOSE_FROM} validation images are labelled, "
        "labelled training images judge too, and a rule chose those"
    )
    return told + (numbers if len(judges) else "")


def change(before: Instances, after: Instances) -> tuple[int, int, int, int, float]:
    """Return how many cells are the same, changed, added and removed, and the mean IoU of the matched (nan for none).

    Cells that lie mostly where the image is not annotated afterwards are neither kept nor removed.

    Examples
    --------
    >>> a = Instances.from_labels(np.array([[1, 1, 0, 2, 2, 2, 0, 3]]))
    >>> b = Instances.from_labels(np.array([[1, 1, 0, 0, 2, 2, 0, 0]]))
    >>> change(a, b)
    (1, 1, 0, 1, 0.8333333333333333)
    """
    from cellkit.scores.iou import overlaps, scorable
    from cellkit.scores.matching import match_pairs

    before = scorable(after, before)
    pairs = overlaps(before, after)
    i, j = match_pairs(pairs)
    iou = {(a, b): s / u for a, b, s, u in zip(pairs.truth, pairs.found, pairs.shared_px, pairs.union_px, strict=True)}
    matched = np.array([iou[a, b] for a, b in zip(i, j, strict=True)], float)
    same = int(np.count_nonzero(matched == 1))
    mean = float(matched.mean()) if len(matched) else float("nan")
    return same, len(matched) - same, len(after) - len(matched), len(before) - len(matched), mean


def label_changes(
    images: CellDataset, proposals: Sequence[Instances], chosen: Sequence[Labelled], last_round: str | Path
) -> pandas.DataFrame:
    """Say how the labels differ from the proposals (corrected images), and from those of the run before, if there are any.

    Parameters
    ----------
    images : CellDataset
    proposals : list of Instances
        What was corrected, one per image.
    chosen : list of Labelled
        The labels of this round.
    last_round : path
        The folder of label images that an earlier run of the same stage left; images that are the same are left out, and
        proposals that follow proposals: a setting of the model changed them, no person.

    Returns
    -------
    DataFrame
        since ("proposals" or "last round"), image_id, made_by, cells (now), same, changed, added, removed, iou: `change`.
    """
    import pandas as pd

    proposed = {record.image_id: found for record, found in zip(images.records, proposals, strict=True)}
    rows = _rows("proposals", proposed, [item for item in chosen if item.made_by == "corrected"])
    try:
        former = chosen_cells(last_round)
    except UserError:
        former = {}  # what a damaged folder held cannot be compared with
    before = {name: cells for name, (cells, *_) in former.items()}
    of_model = {name for name, (_, maker, _) in former.items() if maker == "proposed"}
    by_person = [item for item in chosen if item.made_by != "proposed" or item.image_id not in of_model]
    former_rows = _rows("last round", before, by_person)
    rows += [row for row in former_rows if row[5:8] != (0, 0, 0)]
    return pd.DataFrame(rows, columns=list(CHANGE_COLUMNS))


def _rows(since: str, before: Mapping[str, Instances], chosen: Sequence[Labelled]) -> list[tuple]:
    rows = []
    for item in chosen:
        old = before.get(item.image_id)
        if old is not None and old.shape == item.instances.shape:
            rows.append((since, item.image_id, item.made_by, len(item.instances), *change(old, item.instances)))
    return rows


def write_rounds(
    stage: Any,
    images: CellDataset,
    proposals: Sequence[Instances],
    others: Sequence[Instances],
    chosen: Sequence[Labelled],
) -> str:
    """Write ``correct_first.csv`` and ``label_changes.csv``, and say which images to correct first: `tell_proposed`.

    Parameters
    ----------
    stage : cellkit.run.folder.Stage
    images, proposals, others, chosen
        As in `correct_first`; the labels of the round before are those that the run folder still has.
    """
    from cellkit.files import write_frame

    use = stage.settings["use"]
    first = correct_first(images, proposals, others, chosen)
    write_frame(stage.path("correct_first.csv"), first)
    beside = proposals_beside(images, corrections_folder(use))  # the model may be another one than proposed these
    opened = [beside.get(record.image_id, found) for record, found in zip(images.records, proposals, strict=True)]
    changes = label_changes(images, opened, chosen, stage.run.folder / "labels")
    write_frame(stage.path("label_changes.csv"), changes)
    return tell_proposed(chosen, first, use)


def write_to_correct(run: Any, use: str, images: CellDataset, proposals: Sequence[Instances]) -> str:
    """Write what a person opens to correct proposals, and say where it is, how to open it, and how to come back.

    The files are no output of a stage: nothing becomes out of date by a correction before ``label.use`` names the folder.
    An image one of whose files was saved by a person or another program, or that is confirmed, is left as it is.

    Parameters
    ----------
    run : cellkit.run.folder.Run
    use : str
        ``label.use``; where it is a folder already, that is where to go on, and of "truth" nothing is a proposal: nothing is
        written.
    images : CellDataset
    proposals : list of Instances
        One per image.
    """
    if use == "truth":
        return (
            "The labels came with the images: correct them where they lie, and run 01 again. (Images without any are not in\n"
            "this run. To have labels proposed for them, set label.use to the folder of your labels, such as\n"
            "my_cells/truth; with label.use: proposed all images have proposals.)"
        )
    if use != "proposed":
        return f"The labels come from {use}: go on there, save, and run 02 again."
    proposed = replace(images, instances=list(proposals)).sample(MOST_IMAGES)
    folder = run.folder / TO_CORRECT
    confirmed = confirmed_in(folder, images.records)
    kept = [
        record.image_id
        for record, cells in zip(proposed.records, proposed.instances, strict=True)
        if not write_proposal(folder, images.root / record.path, record.image_id, cells, confirmed)
    ]
    place, name = f"{run.name}/{TO_CORRECT}", next((record.image_id for record in proposed.records), "IMAGE")
    lines = [f"{counted(len(proposed), 'image')} with what the model proposes: {place}"]
    if kept:
        lines.append(f"{KEPT}: {', '.join(kept)}")
    if len(images) > MOST_IMAGES:
        lines.append(f"of {len(images)}, drawn at random; cellkit plan {run.name} -n N adds those to correct first")
    return "\n".join([*lines, *how_to_correct(name), f"Back: set label.use: {place} and run 02 again. {NOT_SAVED}"])


def how_to_correct(name: str) -> list[str]:
    """Say how the files of an image are opened and saved."""
    return [
        f"Cellpose: python -m cellpose ({INSTALL} in an environment of its own), and drag {name}.png into its window "
        f"(it finds {name}_seg.npy); save with Ctrl+S",
        f"Fiji: open {name}.png and then {name}_rois.zip; correct in the ROI Manager, and More > Save... over the zip",
    ]


def write_proposal(folder: Path, picture: Path, name: str, cells: Instances, kept: Container[str] = ()) -> bool:
    """Write picture, ``_seg.npy`` and ROI zip of one image; False, and nothing, where a person's work may stand in their place.

    That is where one of them is not as cellkit wrote it (a label image may have the name of the picture), or the image is among
    those `kept`: `confirmed_in` the folder.
    """
    files = {folder / f"{name}_seg.npy": seg, folder / f"{name}_rois.zip": roi}
    if name in kept or any(os.path.lexists(path) and not as_left(path) for path in files):
        return False
    shown, whole = folder / f"{name}.png", picture.read_bytes()
    if os.path.lexists(shown) and shown.read_bytes() != whole:  # a picture of an earlier round is in its _seg.npy too
        beside = folder / f"{name}_seg.npy"
        if not beside.is_file() or not seg.shows(beside, shown):
            return False
    with atomic_path(shown) as temporary:
        temporary.write_bytes(whole)
    for path, form in files.items():
        form.write_image(path, ImageToWrite(name, cells.with_classes(0), (), "proposed", picture))
    return True


def as_left(path: Path) -> bool:
    """Tell whether a ``_seg.npy`` file or a zip of ROIs is as cellkit wrote it; one that cannot be read is not."""
    try:
        return written_here(path) and (path.suffix != ".npy" or as_written(path))
    except UserError:
        return False
