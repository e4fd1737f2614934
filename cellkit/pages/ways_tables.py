"""Comparisons of ways as text for a terminal, as Markdown for a page, and as plain values for JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellkit.cells.records import SPLIT_TITLES
from cellkit.errors import Quarantined, UserError, counted
from cellkit.files import decoded, write_text
from cellkit.machine import GB
from cellkit.pages.costs import bounded
from cellkit.pages.results import in_words
from cellkit.pages.ways import Comparison

BEGIN, END = "<!-- ways:begin -->", "<!-- ways:end -->"
MISSING = "## Missing"
CONVENTIONS = (
    "MAP IoU: kaggle (IoU > 0.50:0.05:0.95, mean of images), with its 95 % interval. Against the chosen: the mean difference of "
    "the same images, drawn again together; each interval stands by itself. Class right: of matched cells (IoU > 0.5) whose "
    "class is known."
)
COSTS = (
    "CPU seconds are user and system time of a notebook's process, noted by the run: of a model's training; of finding the "
    "cells of a megapixel; of all notebooks from the images to that model's cells (where it has no training, without those "
    "of others in its notebook). Memory is the most that the model's notebook held. A dash: there is none, or it is not "
    "recorded."
)


@dataclass(frozen=True)
class Grid:
    """A table of texts, with what stands above it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def grids_of(comparison: Comparison) -> list[Grid]:
    """Return the tables of a comparison: how good and how dear; other conventions; counts of each class, where they are known."""
    titles = {name: way.title for name, way in comparison.ways.items()}
    main, more, counts = [], [], []
    for row in comparison.rows:
        title = titles[row["name"]]
        main.append(
            [
                title,
                with_ends(row["score"], row["interval"]),
                _gain(row, comparison.chosen),
                _classes(row),
                *_costs(row),
            ]
        )
        point = [in_words(row["point"][key]) for key in ("recall", "precision")]
        more.append(
            [
                title,
                *(in_words(row[key]) for key in ("f1_50", "ap50", "caicedo")),
                *point,
                *_voc(row, comparison.classes),
            ]
        )
        counts += [[title, *_count(line)] for line in row["counts"]]
    grids = [
        Grid(
            "Score, class, cost",
            [
                "way",
                "MAP IoU",
                "against the chosen",
                "class right",
                "CPU s, training",
                "CPU s a megapixel",
                "CPU s, all",
                "memory, GB",
            ],
            main,
        )
    ]
    voc = [f"VOC AP@.5, {name}" for name in comparison.classes]
    columns = [
        "way",
        "F1 at IoU > 0.5",
        "TP / (TP + FP + FN) at 0.5",
        "F1 caicedo",
        "point recall",
        "point precision",
        *voc,
    ]
    grids.append(Grid("Other conventions", columns, more))
    if counts:
        images = next(row["counts"][0]["images"] for row in comparison.rows if row["counts"])
        columns = ["way", "class", "true", "found", "off", "corrected", "corrected, off"]
        grids.append(Grid(f"Cells of each class in {counted(images, 'image')}", columns, counts))
    return grids


def with_ends(value: float | None, ends: Sequence[float | None], sign: str = "") -> str:
    """Return a number with its interval.

    Examples
    --------
    >>> with_ends(0.5, [0.4, 0.6]), with_ends(0.5, [None, None]), with_ends(0.02, [-0.01, 0.05], "+"), with_ends(None, [])
    ('0.500 [0.400, 0.600]', '0.500', '+0.020 [-0.010, +0.050]', '–')
    """
    if value is None:
        return "–"
    numbers = [f"{one:{sign}.3f}" for one in (value, *ends) if one is not None]
    return f"{numbers[0]} [{', '.join(numbers[1:])}]" if len(numbers) == 3 else numbers[0]


def share(value: float | None, sign: str = "") -> str:
    """Return a share as per cent.

    Examples
    --------
    >>> share(0.034, "+"), share(0.95), share(None)
    ('+3.4 %', '95.0 %', '–')
    """
    return "–" if value is None else f"{100 * value:{sign}.1f} %"


def _gain(row: dict[str, Any], chosen: str) -> str:
    return "chosen" if row["name"] == chosen else with_ends(row["gain"], row["gain_interval"], "+")


def _classes(row: dict[str, Any]) -> str:
    return "–" if row["class_right"] is None else f"{share(row['class_right'])} of {row['class_cells']}"


def _costs(row: dict[str, Any]) -> list[str]:
    return [
        bounded(row, "train_s"),
        in_words(row["find_s"], 1),
        bounded(row, "whole_s"),
        "–" if not row["peak_bytes"] else f"{row['peak_bytes'] / GB:.1f}",
    ]


def _voc(row: dict[str, Any], classes: Sequence[str]) -> list[str]:
    known = row["voc_ap50"] or {}
    mark = "" if row["voc_ranked"] else " (unranked)"
    return [in_words(known.get(name)) + (mark if known.get(name) is not None else "") for name in classes]


def _count(line: dict[str, Any]) -> list[str]:
    corrected = "–" if line["corrected"] is None else f"{line['corrected']:.0f}"
    told = [line["class_name"], str(line["truth"]), str(line["found"]), share(line["off"], "+")]
    return [*told, corrected, share(line["corrected_off"], "+")]


def about(comparison: Comparison) -> str:
    """Say what was compared: runs and their configurations, images, labels, arithmetic, versions."""
    runs = []
    for run in comparison.runs:
        asked = run.manifest.get("run") or {}
        last = next(reversed(run.stages.values()), {})
        how = sorted(
            {row["device"] for row in comparison.rows if row["run"] == run.folder.name and row["device"]}, key=len
        )
        made = f"`{command_of(asked)}`" if asked.get("config") else run.folder.name
        version = (last.get("versions") or {}).get("cellkit", "")
        runs.append(", ".join(filter(None, [made, f"cellkit {version}" if version else "", *how[-1:]])))
    labelled = [counted(count, f"{SPLIT_TITLES[split]} image") for split, count in comparison.labelled.items()]
    where = counted(comparison.images, f"{SPLIT_TITLES[comparison.split]} image")
    scored = f"{where}, intervals over {comparison.interval_of}"
    return f"{'; '.join(runs)}. Labelled: {', '.join(labelled) or 'none'}. Scored: {scored}."


def command_of(asked: Mapping[str, Any]) -> str:
    """Return the command that made a run, without folders of the machine it ran on.

    Examples
    --------
    >>> command_of({"config": "my/dkfz.yaml", "overrides": {"precision": "float32", "finetune.base": "w/my.safetensors"}})
    'cellkit run dkfz.yaml --set finetune.base=my.safetensors precision=float32'
    """
    values = {
        key: Path(value).name if "/" in str(value) else value for key, value in (asked.get("overrides") or {}).items()
    }
    told = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in sorted(values.items())]
    return shlex.join(["cellkit", "run", Path(asked["config"]).name, *(["--set", *told] if told else [])])


def title_of(comparison: Comparison) -> str:
    """Return what a comparison is called: its runs."""
    return ", ".join(dict.fromkeys(run.folder.name for run in comparison.runs))


def to_text(comparisons: Iterable[Comparison], missing: Sequence[Quarantined] = ()) -> str:
    """Return comparisons for a terminal."""
    lines: list[str] = []
    for one in comparisons:
        lines += [title_of(one), about(one), one.verdict, ""]
        for grid in grids_of(one):
            lines += [grid.title, *aligned([grid.columns, *grid.rows]), ""]
    lines += [f"missing: {item.item}: {item.reason}" for item in missing]
    return "\n".join([*lines, CONVENTIONS, COSTS])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of texts as lines whose columns stand below each other.

    Examples
    --------
    >>> aligned([["a", "bb"], ["ccc", "d"]])
    ['a    bb', 'ccc  d']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def to_markdown(
    comparisons: Iterable[Comparison], missing: Sequence[Quarantined] = (), others: Sequence[str] = ()
) -> str:
    """Return comparisons as Markdown: a part per set of labels, `others` that were written before, and what is missing last."""
    parts = [f"{CONVENTIONS} {COSTS}"]
    for one in comparisons:
        parts += [f"## {title_of(one)}", about(one), one.verdict]
        for grid in grids_of(one):
            head = [grid.columns, ["---"] * len(grid.columns)]
            parts += [
                f"### {grid.title}",
                "\n".join(f"| {' | '.join(map(_plain, row))} |" for row in [*head, *grid.rows]),
            ]
    parts += others
    if missing:
        parts += [MISSING, "\n".join(f"- {_plain(item.item)}: {_plain(item.reason)}" for item in missing)]
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """Return a text that ends no cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def read_parts(path: str | Path) -> tuple[list[str], list[Quarantined]]:
    """Return the parts of a page between its marks, one per set of labels, and what it says is missing; none without a page.

    A part begins with its heading, "## ", which names the runs that are compared.
    """
    if not Path(path).exists():
        return [], []
    text = decoded(Path(path).read_bytes()).partition(BEGIN)[2].partition(END)[0]
    parts = [f"## {part.strip()}" for part in f"\n{text}".split("\n## ")[1:]]
    lines = [line for part in parts if part.startswith(MISSING) for line in part.splitlines() if line.startswith("- ")]
    lacking = [Quarantined(*line.removeprefix("- ").split(": ", 1)) for line in lines]
    return [part for part in parts if not part.startswith(MISSING)], lacking


def write_markdown(
    path: str | Path,
    comparisons: Sequence[Comparison],
    missing: Sequence[Quarantined] = (),
    others: Sequence[str] = (),
) -> Path:
    """Write comparisons to a page: between its marks where it has them, else as a page of their own.

    Parameters
    ----------
    others : sequence of str
        Parts of the page, as `read_parts` returns them, that stay as they are.

    Raises
    ------
    UserError
        A file that is there and has no marks: it is not written over.
    """
    path, text = Path(path), to_markdown(comparisons, missing, others)
    if not path.exists():
        return write_text(path, f"# Which way wins\n\n{BEGIN}\n\n{text}\n\n{END}\n")
    page = decoded(path.read_bytes())
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(END) < page.index(BEGIN):
        raise UserError(
            f"{path} is there and has no place for the tables", f"put {BEGIN} and {END} into it, or name a new file"
        )
    before, _, rest = page.partition(BEGIN)
    return write_text(path, f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


def to_json(comparisons: Iterable[Comparison], missing: Sequence[Quarantined] = ()) -> dict[str, Any]:
    """Return comparisons as plain values."""
    sets = [
        {
            "runs": [str(run.folder) for run in one.runs],
            "split": one.split,
            "images": one.images,
            "interval_of": one.interval_of,
            "labelled": one.labelled,
            "chosen": one.chosen,
            "decided_on": one.decided_on,
            "verdict": one.verdict,
            "ways": one.rows,
        }
        for one in comparisons
    ]
    return {"sets": sets, "missing": [{"item": item.item, "reason": item.reason} for item in missing]}
