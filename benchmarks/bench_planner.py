"""Compare the rules of `cellkit plan`: `python benchmarks/bench_planner.py --set dsb2018 --base WEIGHTS [--budget 1 2 3 5]`.

A set is split by group into a pool, whose labels are hidden, and images that are scored. In each draw a few candidates are
taken from the pool, every rule chooses among the same ones, and the base is adapted to what it chose: the same weights, steps and
seeds for all, so that rules are compared in pairs. Chance is the rival, and chance among the denser half. One homogeneous set
belongs in every comparison, where nothing should win: dkfz. All rows are printed, the losing ones too.

A finished training is a row of a CSV (`--trained`), by set, images, seed, steps, base and settings, and is never repeated: kill
and repeat the command as you like. For a budget of one, each image of the pool is trained on once; every draw and rule is then a
look-up, and chance is told exactly. `--report` trains nothing. A dense image costs more clicks, so rules are also compared at
equal cells, by what chance scores with as many.

Which sets the starter weights have learned from stands in cellkit/starter; give a base that has not seen the set. Data:
CELLKIT_DATA or --data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from planner_tables import (
    METRICS,
    Key,
    Pool,
    Result,
    add_trained,
    areas,
    by_chance,
    check_rules,
    compare,
    key_of,
    markdown,
    markdown_areas,
    pool_interval,
    read_trained,
    results,
)

from cellkit.cells.dataset import CellDataset, predict_all
from cellkit.config.reading import load_config, set_strings
from cellkit.files import sha256_file
from cellkit.labelling.budget import tell_budget
from cellkit.labelling.planner import DEFAULT_RULE, features_of
from cellkit.labelling.rules import RULES, Features

ROOT = Path(__file__).parents[1]
SETS = ("dsb2018", "two_lines", "dkfz")
HOMOGENEOUS = "dkfz"
HELD_OUT = 0.3  # share of the images (groups) that are scored


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, help="without it nothing is done: a comparison takes hours")
    parser.add_argument("--budget", type=int, nargs="+", default=[1], help="images labelled (default 1)")
    parser.add_argument("--draws", type=int, default=50, help="draws of candidates (default 50)")
    parser.add_argument("--candidates", type=int, default=15, help="images in a draw (default 15)")
    parser.add_argument("--pool", type=int, default=80, help="most images of the pool (default 80)")
    parser.add_argument("--test", type=int, default=30, help="most images that are scored (default 30)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each choice (default 1)")
    parser.add_argument("--rules", nargs="*", default=[], help=f"of {', '.join(RULES)} (default all)")
    parser.add_argument("--base", default="starter", help="weights to start from, and to look with: a path or a name")
    parser.add_argument("--steps", type=int, default=60, help="of a training (default 60)")
    parser.add_argument("--crop", type=int, help="height and width of a crop (px; default that of the configuration)")
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. finetune.batch_size=4")
    parser.add_argument("--data", default=os.environ.get("CELLKIT_DATA", str(ROOT.parent / "shared" / "data")))
    parser.add_argument("--work", type=Path, default=Path("planner"), help="folder of converted images and features")
    parser.add_argument("--trained", type=Path, help="CSV of finished trainings (default WORK/trained.csv)")
    parser.add_argument("--report", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--out", type=Path, help="also write the tables there")
    return parser.parse_args()


# ---- the set --------------------------------------------------------------------------------------------------------
def settings_of(given: argparse.Namespace):
    """Return the sections convert and finetune: the configuration of the set, and what the flags say."""
    from cellkit.fetch.find import find_weights

    overrides = {
        "data": str(Path(given.data).resolve()),
        "finetune.steps": given.steps,
        "finetune.eval_every": given.steps,
    }
    overrides |= {"finetune.crop_px": given.crop} if given.crop else {}
    overrides |= {"convert.max_images": None, "convert.published_split": False, "finetune.val_images": 1}
    cfg = load_config(ROOT / f"configs/{given.set}.yaml", overrides | set_strings(given.override))
    return cfg.convert, cfg.finetune.model_copy(update={"base": str(find_weights(given.base))})


def folder_of(given: argparse.Namespace, convert) -> Path:
    """Return the folder of the converted images: one for each way to convert them."""
    told = json.dumps(convert.fingerprint(), sort_keys=True, default=str)
    return given.work / f"{given.set}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def load_set(given: argparse.Namespace, convert) -> CellDataset:
    """Return all images of the set that are not flagged and no copies, with their labels; converted once."""
    from cellkit.formats.coco import write_coco
    from cellkit.formats.coco_reading import read_coco
    from cellkit.microscope.flags import check_quality
    from cellkit.sources.ingest import convert_images

    folder = folder_of(given, convert)
    if not (folder / "cells.json").is_file():
        whole = convert.model_copy(update={"mixed_images": 0})
        made = convert_images(whole, Path(given.data) / whole.path, folder)
        records = [replace(r, split="train") for r in made.images.records]
        records = check_quality(made._replace(images=made.images.with_records(records)), folder, whole).records
        used = made.images.with_records(records).subset([not r.flags and r.split != "" for r in records])
        used = used.subset([len(cells) > 0 for cells in used.instances])
        write_coco(folder / "cells.json", used.records, used.instances, used.classes)
    return read_coco(folder / "cells.json", folder)


def parted(images: CellDataset, given: argparse.Namespace) -> tuple[CellDataset, CellDataset]:
    """Return the pool and the images that are scored: by group, and at most so many, all at random."""
    from cellkit.labelling.rules import random_number

    scored = [random_number(record.group or record.image_id, 1) < HELD_OUT for record in images.records]
    parts = []
    for wanted, most in ((False, given.pool), (True, given.test)):
        part = images.subset(np.array([one == wanted for one in scored], bool))
        names = set(by_chance([r.image_id for r in part.records], most, 2))
        parts.append(part.subset(np.array([r.image_id in names for r in part.records], bool)))
    return parts[0], parts[1]


def features(pool: CellDataset, given: argparse.Namespace, finetune) -> Features:
    """Measure what rules look at, with the base, at the diameter it estimates; kept in the work folder."""
    from cellkit.labelling.annotate import diameter_for
    from cellkit.models import get_backend

    needs = sorted({need for rule in check_rules(given.rules) for need in RULES[rule].needs})
    backend, base = get_backend(finetune.backend), Path(finetune.base)
    about = [
        sha256_file(base),
        needs,
        [r.image_id for r in pool.records],
    ]
    path = pool.root / f"features_{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}.npz"
    if not path.is_file():
        hidden = replace(pool, instances=[cells[:0] for cells in pool.instances])
        settings = backend.Settings(channels=finetune.channels)
        settings = settings.model_copy(update={"diameter_px": diameter_for(backend, base, settings, hidden)})
        found = predict_all(backend.load(base, settings), hidden, "propose")
        made = features_of(hidden, found, (backend, base, settings), needs)
        arrays = {f"disagreement_{name}": values for name, values in made.disagreements.items()}
        arrays |= {} if made.style is None else {"style": made.style}
        np.savez(path, cells=made.cells, confidence=made.confidence, **arrays)
    with np.load(path, allow_pickle=False) as kept:
        told = {name.removeprefix("disagreement_"): kept[name] for name in kept if name.startswith("disagreement_")}
        style = kept.get("style")
        names = [record.image_id for record in pool.records]
        return Features(names, kept["cells"], kept["confidence"], told, style)


# ---- trainings ------------------------------------------------------------------------------------------------------
def wanted(pool: Pool, given: argparse.Namespace) -> Iterator[tuple[list[str], int]]:
    """Yield what has to be trained, (images, seed): single images first if a budget is one, then draw by draw."""
    if 1 in given.budget:
        for name in by_chance(list(pool.features.names), len(pool.records), 3):
            for seed in range(given.seeds):
                yield [name], seed
    for draw in range(given.draws):
        places = pool.candidates(draw, given.candidates)
        for budget in sorted(set(given.budget) - {1}):
            for rule in check_rules(given.rules):
                for seed in range(given.seeds):
                    yield pool.chosen(rule, places, budget, draw), seed


def adapt(train: CellDataset, test: CellDataset, finetune, seed: int) -> dict[str, float]:
    """Train on a few images and score on others. No image chooses weights: with so few the last ones are taken."""
    from cellkit.models import get_backend
    from cellkit.scores.iou import overlaps
    from cellkit.scores.kaggle import kaggle

    backend = get_backend(finetune.backend)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = backend.train(train, train, finetune.model_copy(update={"seed": seed}), Path(folder))
        found = predict_all(backend.load(checkpoint), test, "score")
    score = kaggle([overlaps(t, f) for t, f in zip(test.instances, found, strict=True)], bootstrap=0)
    ap50 = next(iter(score["by_threshold"].values()))
    return {"cells": float(train.cells), "map_iou": score["score"], "ap50": ap50}


def train_all(
    given: argparse.Namespace, pool: Pool, images: CellDataset, test: CellDataset, finetune, about: Key
) -> None:
    """Train what is not in the CSV yet, one after the other."""
    trained, places = read_trained(given.trained), {r.image_id: k for k, r in enumerate(images.records)}
    todo = {key_of(about, names, seed): names for names, seed in wanted(pool, given)}
    left = {key: names for key, names in todo.items() if key not in trained}
    print(f"{len(todo)} trainings, {len(todo) - len(left)} of them done before", flush=True)
    for number, (key, names) in enumerate(left.items(), 1):
        if number % 20 == 0 and key in read_trained(given.trained):  # by another process
            continue
        begun = time.monotonic()
        chosen = images.subset(sorted(places[name] for name in names))
        add_trained(given.trained, key, adapt(chosen, test, finetune, key.seed), time.monotonic() - begun)
        print(f"{number} of {len(left)}: {time.monotonic() - begun:.0f} s", flush=True)


def about_training(given: argparse.Namespace, finetune, test: CellDataset) -> Key:
    """Return the key of all trainings of this comparison but for images and seed: what else decides a score is hashed."""
    told = finetune.model_dump(mode="json", exclude={"seed", "steps", "base", "workers"})
    told["test"] = [record.image_id for record in test.records]
    base = (
        finetune.base
        if finetune.base == "scratch"
        else f"{Path(finetune.base).stem}-{sha256_file(Path(finetune.base))[:12]}"
    )
    settings = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    return Key(given.set, "", 0, finetune.steps, base, settings)


# ---- the report -----------------------------------------------------------------------------------------------------
def report(given: argparse.Namespace, pool: Pool, about: Key, test: int) -> str:
    """Return all tables of what is finished."""
    trained, rules = read_trained(given.trained), check_rules(given.rules)
    budgets, seeds = sorted(set(given.budget)), range(given.seeds)
    found = results(pool, trained, about, rules, budgets, given.draws, given.candidates, seeds)
    title = f"{given.set}, {about.base}, {about.steps} steps"
    kind = "homogeneous, nothing should win" if given.set == HOMOGENEOUS else "several kinds of images"
    lines = [
        f"{title}: a pool of {len(pool.records)} images ({kind}), {given.candidates} candidates a draw, {given.seeds} seed(s), "
        f"{test} images scored; the default rule is {DEFAULT_RULE}. p values hold for other draws from this pool; 'other "
        "pools' is what counts elsewhere."
    ]
    for metric in METRICS:
        singles = {name: _single(trained, about, name, metric, seeds) for name in pool.features.names}
        known = {name: value for name, value in singles.items() if value is not None}
        whole = 1 in budgets and len(known) == len(singles)
        scores = {name: score for name, (_, score) in known.items()}
        intervals = {rule: pool_interval(pool, scores, rule, given.candidates) for rule in rules} if whole else {}
        if known:
            spread = np.std([score for _, score in known.values()], ddof=1) if len(known) > 1 else 0.0
            lines.append(f"\n{len(known)} single images, {metric}: standard deviation {spread:.3f}")
        for budget in budgets:
            lines.append(markdown(compare(found, metric, budget, [*known.values()], intervals), metric, budget, title))
        lines.append(markdown_areas(areas(found, metric), metric, title) if len(budgets) > 1 else "")
    return "\n".join([*lines, *_budget_lines(found)])


def _single(trained, about: Key, name: str, metric: str, seeds: Sequence[int]) -> tuple[float, float] | None:
    rows = [trained.get(key_of(about, [name], seed)) for seed in seeds]
    return None if None in rows else (rows[0]["cells"], float(np.mean([row[metric] for row in rows])))


def _budget_lines(found: Sequence[Result]) -> list[str]:
    """Say what the learning curve of chance tells of more images, as `cellkit plan` would."""
    chance = [one for one in found if one.rule == "random"]
    rows = [(one.budget, one.map_iou) for one in chance]
    if len({n for n, _ in rows}) < 3:
        return []
    return ["\nlearning curve of images chosen at random, MAP IoU:", tell_budget(rows, max(n for n, _ in rows), 0)]


def main() -> None:
    given = arguments()
    if given.set is None:
        print(f"bench_planner: name a set (--set {'|'.join(SETS)}); a comparison takes hours, and resumes")
        return
    given.trained = given.trained or given.work / "trained.csv"
    convert, finetune = settings_of(given)
    images, test = parted(load_set(given, convert), given)
    pool = Pool(images.records, features(images, given, finetune))
    about = about_training(given, finetune, test)
    print(
        f"{given.set}: a pool of {len(images)} images with {images.cells} cells, {len(test)} images scored", flush=True
    )
    if not given.report:
        train_all(given, pool, images, test, finetune, about)
    text = report(given, pool, about, len(test))
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
