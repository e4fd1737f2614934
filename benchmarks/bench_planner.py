"""Compare the rules of `cellkit plan`: `python benchmarks/bench_planner.py --set dsb2018 --base WEIGHTS [--budget 1 2 3 5]`.

A set (`real_sets`) is split by group into a pool, whose labels are hidden, and images that are scored. In each draw a few
candidates are taken from the pool, every rule chooses among the same ones, and the base is adapted to what it chose: the same
weights, steps and seeds for all, so that rules are compared in pairs. Chance is the rival, and chance among the denser half. One
homogeneous set belongs in every comparison, where nothing should win: dkfz. All rows are printed, the losing ones too.

A finished training is a row of a CSV (`--trained`), by set, images, seed, steps, base and settings, and is never repeated: kill
and repeat the command as you like. For a budget of one, each image of the pool is trained on once; every draw and rule is then a
look-up, and chance is told exactly. `--report` trains nothing; `--workers`, `--device` and `--minutes` say how much is done
at once, where, and for how long: singles come first, then whole draws. A dense image costs more clicks, so rules are also
compared at equal cells, by what chance scores with as many.

Of DSB2018 only pictures take part that the starter weights have not learned from. Data: --packed, --data or CELLKIT_DATA.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import real_sets
from planner_tables import (
    METRICS,
    Key,
    Pool,
    Result,
    add_trained,
    areas,
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
from cellkit.config.reading import set_strings
from cellkit.files import sha256_file
from cellkit.labelling.budget import tell_budget
from cellkit.labelling.planner import DEFAULT_RULE, features_of
from cellkit.labelling.rules import RULES, Features

ROOT = Path(__file__).parents[1]
HOMOGENEOUS = "dkfz"
AT_ONCE = 4  # images whose features are measured in one go


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--set", choices=tuple(real_sets.SETS), help="without it nothing is done: a comparison takes hours"
    )
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
    parser.add_argument("--work", type=Path, default=Path("planner"), help="folder of converted images and features")
    parser.add_argument("--trained", type=Path, help="CSV of finished trainings (default WORK/trained.csv)")
    parser.add_argument("--report", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--out", type=Path, help="also write the tables there")
    real_sets.add_arguments(parser)
    jobs.add_arguments(parser)
    return parser.parse_args()


# ---- the set --------------------------------------------------------------------------------------------------------
def images_of(given: argparse.Namespace) -> tuple[CellDataset, CellDataset, Any, str]:
    """Return the pool, the images that are scored, the section finetune as the flags have it, and what the base has seen."""
    from cellkit.fetch.find import find_weights

    overrides = {"finetune.steps": given.steps, "finetune.eval_every": given.steps, "finetune.val_images": 1}
    overrides |= {"finetune.crop_px": given.crop} if given.crop else {}
    overrides |= set_strings(given.override)
    places = (given.set, Path(given.data), given.work, given.pool, given.test, given.packed, given.base, overrides)
    pool, test, config, words = real_sets.images_of(*places)
    return pool, test, config.finetune.model_copy(update={"base": str(find_weights(given.base))}), words


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
        diameter_px = diameter_for(backend, base, settings, hidden)
        parts = [range(first, min(first + AT_ONCE, len(pool))) for first in range(0, len(pool), AT_ONCE)]
        measure = partial(measured, given=given, needs=needs, diameter_px=diameter_px)
        made = dict(jobs.run_all(measure, parts, given.workers, 0.0))
        np.savez(path, **{name: np.concatenate([made[part][name] for part in parts]) for name in made[parts[0]]})
    with np.load(path, allow_pickle=False) as kept:
        told = {name.removeprefix("disagreement_"): kept[name] for name in kept if name.startswith("disagreement_")}
        style = kept.get("style")
        names = [record.image_id for record in pool.records]
        return Features(names, kept["cells"], kept["confidence"], told, style)


def measured(
    places: range, given: argparse.Namespace, needs: Sequence[str], diameter_px: float
) -> dict[str, np.ndarray]:
    """Return the features of some images of the pool, by name, read at one diameter."""
    from cellkit.models import get_backend

    pool, _, finetune, _ = images_of(given)
    backend, base, some = get_backend(finetune.backend), Path(finetune.base), pool.subset(places)
    hidden = replace(some, instances=[cells[:0] for cells in some.instances])
    settings = backend.Settings(channels=finetune.channels).model_copy(update={"diameter_px": diameter_px})
    found = predict_all(backend.load(base, settings), hidden, "propose")
    made = features_of(hidden, found, (backend, base, settings), needs)
    arrays = {f"disagreement_{name}": values for name, values in made.disagreements.items()}
    return (
        arrays
        | ({} if made.style is None else {"style": made.style})
        | {"cells": made.cells, "confidence": made.confidence}
    )


# ---- trainings ------------------------------------------------------------------------------------------------------
def wanted(pool: Pool, given: argparse.Namespace) -> Iterator[tuple[list[str], int]]:
    """Yield what has to be trained, (images, seed): single images first if a budget is one, then draw by draw."""
    if 1 in given.budget:
        for name in real_sets.by_chance(list(pool.features.names), len(pool.records), 3):
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

    backend = get_backend(finetune.backend)
    with tempfile.TemporaryDirectory() as folder:
        settings = finetune.model_copy(update={"seed": seed})
        checkpoint = backend.train(train, train.subset([]), settings, Path(folder))
        scores = real_sets.scores_of(backend, checkpoint, test)
    return {"cells": float(train.cells)} | {name: float(np.mean(values)) for name, values in scores.items()}


def train_one(job: tuple[tuple[str, ...], int], given: argparse.Namespace) -> tuple[dict[str, float], float]:
    """Train on the images of these names, with a seed; return the scores, and the seconds it took."""
    pool, test, finetune, _ = images_of(given)
    names, seed, begun = set(job[0]), job[1], time.monotonic()
    chosen = pool.subset([record.image_id in names for record in pool.records])
    return adapt(chosen, test, finetune, seed), time.monotonic() - begun


def train_all(given: argparse.Namespace, pool: Pool, about: Key, until: float) -> None:
    """Train what is not in the CSV yet."""
    trained = read_trained(given.trained)
    todo = {key_of(about, names, seed): (tuple(names), seed) for names, seed in wanted(pool, given)}
    left = [job for key, job in todo.items() if key not in trained]
    print(f"{len(todo)} trainings, {len(todo) - len(left)} of them done before", flush=True)
    for (names, seed), (values, seconds) in jobs.run_all(partial(train_one, given=given), left, given.workers, until):
        add_trained(given.trained, key_of(about, names, seed), values, seconds)


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
def report(given: argparse.Namespace, pool: Pool, about: Key, test: int, words: str) -> str:
    """Return all tables of what is finished."""
    trained, rules = read_trained(given.trained), check_rules(given.rules)
    budgets, seeds = sorted(set(given.budget)), range(given.seeds)
    found = results(pool, trained, about, rules, budgets, given.draws, given.candidates, seeds)
    title = f"{given.set}, {about.base}, {about.steps} steps"
    kind = "homogeneous, nothing should win" if given.set == HOMOGENEOUS else "several kinds of images"
    lines = [
        f"{title}: a pool of {len(pool.records)} images ({kind}), {given.candidates} candidates a draw, {given.seeds} seed(s), "
        f"{test} images scored; {words}; the default rule is {DEFAULT_RULE}. p values hold for other draws from this "
        "pool; 'other pools' is what counts elsewhere."
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
    return ["\nlearning curve of images chosen at random, MAP IoU:", tell_budget(rows, max(n for n, _ in rows), None)]


def main() -> None:
    given = arguments()
    if given.set is None:
        print(f"bench_planner: name a set (--set {'|'.join(real_sets.SETS)}); a comparison takes hours, and resumes")
        return
    jobs.prepare(given.device)
    until = jobs.until_of(given.stop_after)
    given.trained = given.trained or given.work / "trained.csv"
    images, test, finetune, words = images_of(given)
    pool = Pool(images.records, features(images, given, finetune))
    about = about_training(given, finetune, test)
    print(f"{given.set}: a pool of {images}, {len(test)} images scored; {words}", flush=True)
    if not given.report:
        train_all(given, pool, about, until)
    text = report(given, pool, about, len(test), words)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
