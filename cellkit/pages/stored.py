"""Files of a run that its pages read, as notebooks leave them; a damaged one is refused by name, with who writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellkit.errors import UserError
from cellkit.files import from_cell, read_stored
from cellkit.formats.measured import read_cells_table

if TYPE_CHECKING:
    import pandas

# What making a part of a page from files that are odd may end with: that part is left out, and says why.
FAULTS = (UserError, ValueError, LookupError, TypeError, AttributeError, OSError)
TEXTS = {"model", "image_id", "cell_type", "group", "split", "class_name", "size", "line", "class", "kind", "made_by",
         "since"}  # columns of text, also where all of it are digits  # fmt: skip
STAGE_OF = {
    "records.csv": "01_convert",
    "quality.csv": "01_convert",
    "quality.json": "01_convert",
    "coco": "04_cells_to_coco",
    "sheet.json": "04_cells_to_coco",
    "predictions": "02 to 05",
    "scores.csv": "06_evaluate_map_iou",
    "counts.csv": "06_evaluate_map_iou",
    "attribution.csv": "06_evaluate_map_iou",
    "cells.csv": "06_evaluate_map_iou",
    "summary.json": "06_evaluate_map_iou",
    "correct_first.csv": "02_label_with_cellpose",
    "label_changes.csv": "02_label_with_cellpose",
    "labels.csv": "02_label_with_cellpose",
    "decision.json": "03_finetune_cellpose",
}


@dataclass(frozen=True)
class Columns:
    """What a table must hold to be shown: columns; `numbers` are such, `whole` ones are in every row, `maybe` may be missing."""

    texts: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    maybe: tuple[str, ...] = ()


TABLES = {
    "scores.csv": Columns(("model", "image_id", "split", "class_name", "size"), (), ("threshold", "tp", "fp", "fn")),
    "counts.csv": Columns(("image_id", "class_name"), ("share",), ("found",)),
    "attribution.csv": Columns(("image_id", "cell_type", "group", "split", "kind"), (), ("score", "cells", "gain")),
    "correct_first.csv": Columns(("image_id", "split", "made_by"), ("confidence", "disagreement"), ("cells",)),
    "label_changes.csv": Columns(
        ("since", "image_id", "made_by"), ("iou",), ("cells", "same", "changed", "added", "removed")
    ),
    "labels.csv": Columns(("image_id", "made_by"), (), ("cells",)),
    "quality.csv": Columns(("image_id",)),
    "cells.csv": Columns(("image", "line", "class", "at_border"), ("area_px",), ("label",)),
    "history.csv": Columns((), (), ("step",), ("loss", "score")),
}
PARTS = {  # of what kind the parts of a JSON file are that pages read
    "summary.json": {"scores": list, "best": str, "decided": dict, "classes": dict, "namer": str, "measured": str},
    "quality.json": {"words": list, "copies": list, "thresholds": dict},
    "decision.json": {"kept": str, "sentence": str},
}


def refused(shown: str, why: str) -> UserError:
    """Return what to say of a damaged file of a run, called `shown`: RUN/NAME."""
    name = shown.partition("/")[2]
    maker = STAGE_OF.get(name.split("/")[0], name.split("/")[0] if "/" in name else "its notebook")
    return UserError(f"{shown} is damaged: {why}; {maker} writes it", "repeat `cellkit run`: it is written again")


def stored_json(path: Path, shown: str, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Read a JSON file that a notebook wrote; `needed` are parts that have to be there.

    Raises
    ------
    UserError
        It is damaged, or lacks what is needed.
    """
    try:
        return read_stored(path, PARTS.get(path.name, {}), needed)
    except UserError as error:
        raise refused(shown, error.problem.removeprefix(f"{path} is damaged: ")) from error


def stored_table(path: Path, shown: str) -> pandas.DataFrame:
    """Read a CSV as it was before it was written; text stays text, an empty cell of text is "".

    Raises
    ------
    UserError
        It is damaged: no table, without a column that is needed, or with text where numbers belong.
    """
    import pandas as pd

    try:
        if path.name == "history.csv":
            table = pd.read_csv(path)
        elif path.name == "cells.csv":
            table = read_cells_table(path)
        else:
            kinds = dict.fromkeys(TEXTS, str)
            table = pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=[""])
    except pd.errors.EmptyDataError as error:
        raise refused(shown, "it is empty") from error
    except ValueError as error:
        raise refused(shown, str(error).strip().split("\n")[0]) from error
    if why := lacking(table, TABLES.get(path.name, Columns())):
        raise refused(shown, why)
    if path.name not in ("history.csv", "cells.csv"):
        for column in table:
            if column in TEXTS or not pd.api.types.is_numeric_dtype(table[column].dtype):
                table[column] = table[column].astype(object).fillna("").astype(str).map(from_cell)
    return table


def lacking(table: pandas.DataFrame, wanted: Columns) -> str:
    """Say what a table lacks of what is wanted; "" where it lacks nothing.

    Examples
    --------
    >>> import pandas as pd
    >>> lacking(pd.DataFrame({"kind": ["missed"], "score": ["high"]}), Columns(("kind",), ("score",)))
    "column score holds 'high', no number"
    >>> lacking(pd.DataFrame({"score": [1.0, float("nan")]}), Columns(whole=("score",)))
    'column score is empty in row 2'
    >>> lacking(pd.DataFrame({"a": []}), Columns(("kind",)))
    'it has no column kind'
    """
    import pandas as pd

    numbers = (*wanted.numbers, *wanted.whole)
    if missing := [name for name in (*wanted.texts, *numbers) if name not in table]:
        return f"it has no column {missing[0]}"
    there = [name for name in wanted.maybe if name in table]
    for name in [*numbers, *there] if len(table) else ():
        values = pd.to_numeric(table[name], errors="coerce")
        wrong = values.isna() & table[name].notna()
        if wrong.any():
            return f"column {name} holds '{str(table[name][wrong].iloc[0])[:40]}', no number"
        if name in wanted.whole and values.isna().any():
            return f"column {name} is empty in row {int(values.isna().to_numpy().argmax()) + 1}"
    return ""


def why_left_out(error: BaseException) -> str:
    """Return in one line why a part of a page was left out; of what no file is named by, the kind of the error too.

    Examples
    --------
    >>> why_left_out(UserError("r has no scores.csv", "run 06")), why_left_out(KeyError("kind"))
    ('r has no scores.csv', "'kind' (KeyError)")
    """
    reason = str(error).split("\n")[0] or type(error).__name__
    return reason if isinstance(error, UserError) else f"{reason} ({type(error).__name__})"
