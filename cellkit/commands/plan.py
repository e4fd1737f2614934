"""The command `cellkit plan`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from cellkit.commands.shared import (
    Answer,
    channel_flags,
    cluster_flag,
    exit_code,
    json_flag,
    list_quarantined,
    skips_flag,
    workers_flag,
    workers_of,
)
from cellkit.errors import UserError

ABOUT = "say which images to label next, and how many more are worth it"
ORDER = 4


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    from cellkit.labelling.planner import DEFAULT_RULE, SECONDS_PER_CELL
    from cellkit.labelling.rules import RULES

    parser.add_argument("images", metavar="RUN|IMAGES", nargs="+", help="a run folder; or files, folders, patterns")
    models = "of files: a checkpoint, RUN:NAME or starter; of a run: default the one that 03 kept, else that of 02"
    parser.add_argument("--model", metavar="MODEL", help=models)
    parser.add_argument("-o", "--out", metavar="DIR", help="folder for the files to correct (of a run: its to_correct)")
    parser.add_argument("-n", "--count", type=int, default=5, metavar="N", help="images to write (default 5)")
    rules = f"{', '.join(RULES)} (default {DEFAULT_RULE})"
    parser.add_argument("--rule", default=DEFAULT_RULE, metavar="RULE", help=rules)
    parser.add_argument("--labelled", metavar="DIR", action="append", help="also labelled: what a person saved there")
    curve = "CSV with the columns images, score: models trained on 1, 2, 3, 5 ... images"
    parser.add_argument("--curve", metavar="FILE", help=curve)
    rate = f"time that correcting a cell takes you, for the minutes (default {SECONDS_PER_CELL:g})"
    parser.add_argument("--seconds-per-cell", type=float, default=SECONDS_PER_CELL, metavar="S", help=rate)
    channel_flags(parser)
    workers_flag(parser, "processes, each with a model of its own; on a GPU one does it")
    cluster_flag(parser)
    json_flag(parser)
    skips_flag(parser)


def run(given: argparse.Namespace) -> Answer:
    """Say which images to label next, and how many more are worth it.

    Raises
    ------
    UserError
        An unknown rule, a count or rate that is none, no image, or no model to look with.
    """
    import tempfile
    from pathlib import Path

    from cellkit.commands.planning import pool_of_files, pool_of_run
    from cellkit.labelling.rules import rule_of
    from cellkit.microscope.folders import is_run_folder

    rule_of(given.rule)
    workers_of(given)
    if given.count < 1 or not 0 < given.seconds_per_cell < 3600:
        what = f"--count {given.count}, --seconds-per-cell {given.seconds_per_cell:g}"
        raise UserError(what, "give 1 image or more, and a time above 0 and below an hour")
    if len(given.images) == 1 and is_run_folder(Path(given.images[0])):
        return _plan(given, pool_of_run(given), _left_out(given.images[0]))
    with tempfile.TemporaryDirectory(prefix="cellkit-plan-") as folder:
        return _plan(given, pool_of_files(given, Path(folder)))


def _left_out(run_dir: str) -> list[str]:
    """Return the images of the source that notebook 01 left out, since they have no labels and others have."""
    from cellkit.run.folder import Run
    from cellkit.sources.unlabelled import NO_TRUTH

    skipped = Run(run_dir).stages().get("01_convert", {}).get("quarantined", [])
    return [one["item"] for one in skipped if one["reason"] == NO_TRUTH]


def _plan(given: argparse.Namespace, pool: Any, left_out: Sequence[str] = ()) -> Answer:
    """Rank, write the top ones, and say it; `left_out` are images that are left to label too, and in no run yet."""
    from cellkit.commands.shared import json_text
    from cellkit.errors import counted
    from cellkit.files import write_frame
    from cellkit.formats.sides import first_names
    from cellkit.labelling.budget import read_curve, tell_budget
    from cellkit.labelling.label_files import PLAN_FILE
    from cellkit.labelling.planner import to_rank

    train, held_out = to_rank(pool.images, pool.by_person)
    done = pool.images.subset([r.image_id in pool.by_person and r.split == "train" for r in pool.images.records])
    rows, kept, cells = [], [], pool.cells
    if len(train):
        table, kept = _ranked(given, pool, train, done)
        write_frame(pool.out / PLAN_FILE, table)
        top = table.head(given.count)
        rows, cells = top.astype(object).where(top.notna(), None).to_dict("records"), float(top["cells"].mean())
    curve = given.curve or pool.curve
    budget = tell_budget(read_curve(curve) if curve else [], len(done), cells, given.seconds_per_cell)
    judges = _judges(pool, held_out)
    list_quarantined(pool.quarantined)
    code = exit_code(pool.quarantined, given.allow_skips)
    if given.json:
        told = {"rule": given.rule, "images": rows, "folder": str(pool.out) if rows else None, "left_as_saved": kept}
        told |= {"labelled": len(done), "not_in_run": list(left_out), "to_judge_by": judges, "budget": budget}
        return Answer(json_text(told), code)
    flagged = sum(bool(record.flags) for record in pool.images.records)
    lines = [
        f"{len(train)} training images to label, {len(done)} labelled by a person, {flagged} flagged and not offered; "
        f"ranked by the rule {given.rule}"
    ]
    lines += _lines(given, pool, rows, kept) if rows else [] if left_out else ["nothing is left to label"]
    if left_out:
        lines += [
            f"{counted(len(left_out), 'image has', 'images have')} no labels, and {'is' if len(left_out) == 1 else 'are'} not "
            f"in the run: {first_names(left_out)}; label them where your labels are, or set label.use to the folder of your "
            "labels: 02 then proposes for these, and cellkit plan ranks them"
        ]
    lines += [f"to judge by, chosen at random: {', '.join(judges)}"] if judges else []
    return Answer("\n".join([*lines, budget]), code)


def _ranked(given: argparse.Namespace, pool: Any, train: Any, done: Any) -> tuple[Any, list[str]]:
    """Rank the images and write the files of the top ones; return the table, and the images whose files somebody saved."""
    from cellkit.cells.dataset import predict_all
    from cellkit.labelling.annotate import diameter_for
    from cellkit.labelling.corrections import confirmed_in
    from cellkit.labelling.planner import features_of, plan_table
    from cellkit.labelling.rounds import write_proposal
    from cellkit.labelling.rules import rule_of
    from cellkit.models import get_backend
    from cellkit.models.shared.diameter import as_settings

    backend, checkpoint = get_backend(pool.model.backend), pool.model.checkpoint
    settings = backend.Settings(**pool.model.config)
    diameter_px = diameter_for(backend, checkpoint, settings, pool.images)
    if diameter_px is not None:
        settings = settings.model_copy(update=as_settings(diameter_px, settings, checkpoint))
    proposals = predict_all(backend.load(checkpoint, settings), train, "propose", given.workers)
    model, needs = (backend, checkpoint, settings), rule_of(given.rule).needs
    features = features_of(train, proposals, model, needs, done, workers=given.workers)
    table = plan_table(train, features, given.rule, given.count, done.records, given.seconds_per_cell)
    kept, confirmed = [], confirmed_in(pool.out, train.records)
    for name in table["image_id"].head(given.count):
        k = train.index(name)
        if not write_proposal(pool.out, train.root / train.records[k].path, name, proposals[k], confirmed):
            kept.append(name)
    return table, kept


def _judges(pool: Any, held_out: Any) -> list[str]:
    """Return validation images to label too, chosen at random, as long as fewer than `NAMED_JUDGES` are labelled."""
    from cellkit.labelling.planner import in_random_order
    from cellkit.labelling.rounds import NAMED_JUDGES

    known = [r for r in pool.images.records if r.image_id in pool.by_person and r.split == "val"]
    left = held_out.select("val")
    return [record.image_id for record in in_random_order(left, known)[: max(0, NAMED_JUDGES - len(known))]]


def _lines(given: argparse.Namespace, pool: Any, rows: list[dict[str, Any]], kept: list[str]) -> list[str]:
    """Say which images, what they take, where their files are, and how those come back."""
    from cellkit.labelling.label_files import PLAN_FILE
    from cellkit.labelling.rounds import KEPT, NOT_SAVED, how_to_correct

    lines = [f"{row['rank']:>3}  {row['image_id']}  {row['minutes']:.0f} min  {row['why']}" for row in rows]
    cells, minutes = (sum(row[name] for row in rows) for name in ("cells", "minutes"))
    total = f"about {cells} cells, {minutes:.0f} minutes at {given.seconds_per_cell:g} s a cell and a minute an image"
    lines += [f"to correct: {pool.out} ({total}; {PLAN_FILE} there ranks all)"]
    lines += [f"{KEPT}: {', '.join(kept)}"] if kept else []
    return [*lines, *how_to_correct(rows[0]["image_id"]), f"{pool.comes_back} {NOT_SAVED}"]
