"""How often the gate of notebook 03 keeps a model that is no better, and how often one that is: simulated and real.

    python benchmarks/gate_error.py                      # simulated, two minutes on one core
    python benchmarks/gate_error.py --no-simulation --real runs/gate 300 --workers 16 --minutes 9    # and real trainings

Simulated: gains of single images are drawn, evenly to both sides or with the longer tail towards gains, spread by 0.03 to
0.15 as in real tunings (drawn cells, two_lines, dkfz: 0.03 to 0.15), with an effect that all images of one short run share
(0.01: runs of other seeds differ by 0.005 to 0.02) and for each step from base to tuned a noise of its own. Then the regime
of that many images is followed: choosing the step, by others, and the rule.

Real: a small network is adapted to drawn cells with `cellkit.evaluate.adaptation.adapt`, COUNT times each way:

- **labels of other images**: nothing of these images can be learned, and the training does harm;
- **same recipe, other seed**: base and tuned are both trained from one start, on the fields that the start has learned from, by
  one recipe with other seeds, in each part held back too: none of both is better but by chance. Sides are swapped in turn, so
  that the expected gain is 0. (Weights between two such runs can be better than both; then it is right to keep them.)

- **same recipe, U-Net** (`--packed`): the same with the starter weights and drawn nuclei, judged on 3, 5 and 8 images of real
  sets; COUNT times each set, on a GPU.

Base and tuned are also scored on 40 fresh images of the same kind (of a real set those that are scored), which nothing saw: kept
although no better there is an error.
A finished training is a row of FOLDER/real.csv and is not made again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jobs
import numpy as np
import real_sets
import same_recipe
import small_network

from cellkit.models.gate import FOLDS, QUARTERS
from cellkit.models.interpolation import STEPS, best_step, nested_steps
from cellkit.scores.intervals import Difference

JUDGES, GAINS, SPREADS = (1, 2, 3, 5, 10, 20), (0.03, 0.05, 0.10, 0.20), (0.03, 0.07, 0.12, 0.15)
SHAPES = ("even", "longer tail of gains", "longer tail of losses")
OF_RUN, OF_STEP = 0.01, 0.3
KINDS = OTHER_LABELS, SAME_RECIPE = "labels of other images", "same recipe, other seed"
REAL_SETS, REAL_IMAGES, REAL_STEPS = ("two_lines", "dkfz", "dsb2018"), (3, 5, 8), 60
IMAGES, TEACH, FRESH = (
    (1, 2, 3, 5, 8, 20),
    8,
    40,
)  # labelled; of these the first teach, the others are for validation; fresh
COLUMNS = ("kind", "number", "images", "regime", "step", "gain", "low", "kept", "true_gain", "true_error")


# ---- simulated -----------------------------------------------------------------------------------------------------
def drawn_gains(
    rng: np.random.Generator, images: int, runs: np.ndarray, gain: float, spread: float, shape: str
) -> np.ndarray:
    """Return gains of each image at each step from the base, (images, steps) float; the first column is 0.

    Half of the way brings three quarters of the gain, as interpolated weights do.
    """
    steps = np.array(STEPS)
    way = steps * (2 - steps)
    own = {
        "even": lambda: rng.normal(0, 1, images),
        "longer tail of gains": lambda: rng.gamma(2, 1, images) / np.sqrt(2) - np.sqrt(2),
        "longer tail of losses": lambda: np.sqrt(2) - rng.gamma(2, 1, images) / np.sqrt(2),
    }[shape]()
    of_run = rng.normal(0, OF_RUN, runs.max() + 1)[runs]
    noise = OF_STEP * spread * rng.normal(0, 1, (images, len(steps))) * np.sqrt(steps)
    return (gain + np.sqrt(1 - OF_STEP**2) * spread * own + of_run)[:, None] * way + noise


def is_kept(rng: np.random.Generator, images: int, gain: float, spread: float, shape: str, regime: str) -> bool:
    """Follow a regime once; return whether the tuned model is kept.

    Parameters
    ----------
    images : int
        That judge; in quarters one image.
    """
    if regime == "three parts":
        chose = drawn_gains(rng, max(images // 2, 1), np.zeros(max(images // 2, 1), int), gain, spread, shape)
        step, runs = best_step(chose), np.zeros(images, int)
        judged = drawn_gains(rng, images, runs, gain, spread, shape)[:, step]
        chosen = step
    elif regime == "cross-fitting":
        runs = rng.permutation(np.arange(images) % min(FOLDS, images))
        scores = drawn_gains(rng, images, runs, gain, spread, shape)
        judged = scores[np.arange(images), nested_steps(scores, runs)]
        chosen = best_step(scores)
    else:  # quarters share what their image is like, and each has half as much again of its own
        image = drawn_gains(rng, 1, np.zeros(1, int), gain, spread, shape)
        scores = image + drawn_gains(rng, QUARTERS, np.arange(QUARTERS), 0.0, spread, "even")
        judged = scores[np.arange(QUARTERS), nested_steps(scores, np.arange(QUARTERS))]
        chosen = best_step(scores)
    error = float(judged.std(ddof=1) / np.sqrt(len(judged))) if len(judged) > 1 else np.nan
    difference = Difference(float(judged.mean()), np.nan, np.nan, len(judged), len(judged), error, regime == "quarters")
    return bool(chosen) and difference.with_expected_spread().better


def regimes_of(images: int) -> tuple[str, ...]:
    """Return the regimes in which so many images judge."""
    return ("quarters",) if images == 1 else ("cross-fitting", "three parts") if images >= 8 else ("cross-fitting",)


def simulate(trials: int, progress=print) -> list[dict]:
    """Return how often the tuned model is kept, a row per regime, number of judges, spread, shape and true gain."""
    rows = []
    for images, regime in [(n, name) for n in JUDGES for name in regimes_of(n)]:
        for shape, spread, gain in product(SHAPES, SPREADS, (0.0, *GAINS)):
            if gain and shape != SHAPES[0]:
                continue
            seed = [images, len(regime), SHAPES.index(shape), round(1000 * spread), round(1000 * gain)]
            rng = np.random.default_rng(seed)
            kept = np.mean([is_kept(rng, images, gain, spread, shape, regime) for _ in range(trials)])
            row = {"regime": regime, "judges": images, "shape": shape, "spread": spread, "gain": gain}
            rows.append(row | {"kept": float(kept)})
        progress(f"{regime}, {images} judge(s): done")
    return rows


def show_simulated(rows: list[dict]) -> None:
    """Print two tables: kept although no better, and kept where better."""
    at = {(r["regime"], r["judges"], r["shape"], r["spread"], r["gain"]): 100 * r["kept"] for r in rows}
    pairs = list(dict.fromkeys((r["regime"], r["judges"]) for r in rows))
    spreads = "".join(f"{spread:7.2f}" for spread in SPREADS)
    print("\nkept although no better, % (spread of gains between images, and their shape)")
    print(" " * 22 + "".join(f"{shape:>28}" for shape in SHAPES))
    print(f"{'regime':14} judges " + spreads * len(SHAPES))
    for regime, n in pairs:
        cells = [at[regime, n, shape, spread, 0.0] for shape, spread in product(SHAPES, SPREADS)]
        print(f"{regime:14} {n:6} " + "".join(f"{cell:7.1f}" for cell in cells))
    print("\nkept where better by ..., % (spread of gains between images)")
    print(" " * 22 + "".join(f"{f'+{gain:.2f}':>28}" for gain in GAINS))
    print(f"{'regime':14} judges " + spreads * len(GAINS))
    for regime, n in pairs:
        cells = [at[regime, n, SHAPES[0], spread, gain] for gain, spread in product(GAINS, SPREADS)]
        print(f"{regime:14} {n:6} " + "".join(f"{cell:7.0f}" for cell in cells))


# ---- real trainings ------------------------------------------------------------------------------------------------
class Job(NamedTuple):
    """One adaptation: of `KINDS`, and its number."""

    kind: str
    number: int


def real(
    folder: Path,
    count: int,
    workers: int,
    until: float,
    packed: Path | None = None,
    base: str = "starter",
    sets: Sequence[str] = REAL_SETS,
    kinds: Sequence[str] = KINDS,
) -> list[dict[str, str]]:
    """Adapt and judge `count` times each way; return the rows of those that are finished.

    Parameters
    ----------
    packed : Path, optional
        Folder of packed sets: the U-Net is judged on these, instead of the small network on drawn cells.
    """
    table = folder / "real.csv"
    if packed is not None:
        same_recipe.own_fields(folder / "drawn")
        for name in sets:
            real_images(name, packed, folder, base)
        done = {(row["kind"], row["number"]) for row in jobs.rows_of(table)}
        todo = [Job(f"same recipe, U-Net, {name}", number) for number in range(count) for name in sets]
        todo = [job for job in todo if (job.kind, str(job.number)) not in done]
        for _, row in jobs.run_all(partial(unet_row, packed=packed, folder=folder, base=base), todo, workers, until):
            jobs.add_rows(table, COLUMNS, [row])
        return jobs.rows_of(table)
    small_network.base(folder / "base")
    done = {(row["kind"], row["number"]) for row in jobs.rows_of(table)}
    todo = [Job(kind, number) for number in range(count) for kind in kinds if (kind, str(number)) not in done]
    for _, row in jobs.run_all(partial(adapted_row, base=folder / "base"), todo, workers, until):
        jobs.add_rows(table, COLUMNS, [row])
    return jobs.rows_of(table)


def adapted_row(job: Job, base: Path) -> dict[str, Any]:
    """Adapt once, judge, and score base and tuned on fresh images; return the row."""
    from cellkit.evaluate.adaptation import adapt

    images, start = IMAGES[job.number // 2 % len(IMAGES)], small_network.base(base)
    with tempfile.TemporaryDirectory() as place:
        data = small_network.fields(Path(place), images + FRESH, [job.number // 2, len(job.kind)])
        if images == 1:  # the one with most cells: its quarters need some
            data = data.subset(np.argsort([-len(cells) for cells in data.instances], kind="stable"))
        records = [replace(r, split="val") if k >= TEACH else r for k, r in enumerate(data.records)]
        some, fresh = data.with_records(records).subset(range(images)), data.subset(range(images, images + FRESH))
        if job.kind == OTHER_LABELS:
            some = replace(some, instances=small_network.turned(some.instances))
            settings = small_network.TrainSettings(base=str(start), learning_rate=3e-3, seed=job.number)
        else:
            seeds = sides(job.number)
            recipe = {"start": str(start), "own_fields": str(base), "fold_steps": 1.0}
            first = small_network.TrainSettings(base=str(start), seed=seeds[0], **recipe)
            one = small_network.train(some, some.subset([]), first, Path(place) / "one")
            settings = small_network.TrainSettings(base=str(one), seed=seeds[1], **recipe)
        adapted = adapt(small_network, some, settings, Path(place) / "run")
        scores = [real_sets.scores_of(small_network, path, fresh)["map_iou"] for path in (adapted.base, adapted.tuned)]
    return row_of(job, images, adapted, scores)


def row_of(job: Job, images: int, adapted: Any, scores: list[list[float]]) -> dict[str, Any]:
    """Return the row of an adaptation; scores are those of base and tuned in fresh images."""
    truly = np.subtract(*scores[::-1])
    told = {name: adapted.decision.get(name, "nan") for name in ("gain", "low")}
    row = {
        "kind": job.kind,
        "number": job.number,
        "images": images,
        "regime": adapted.regime.name,
        "step": adapted.step,
    }
    row |= told | {"kept": adapted.verdict.kept, "true_gain": round(float(truly.mean()), 5)}
    return row | {"true_error": round(float(truly.std(ddof=1) / np.sqrt(len(truly))), 5)}


def real_images(name: str, packed: Path, folder: Path, base: str) -> tuple[Any, Any, Any]:
    """Return the images of a packed set to adapt to, those that are fresh, and the configuration."""
    train, fresh, config, _ = real_sets.images_of(name, Path(), folder / "sets", 10**6, 10**6, packed, base)
    return train, fresh, config.finetune


def unet_row(job: Job, packed: Path, folder: Path, base: str) -> dict[str, Any]:
    """Do the same with the U-Net on some images of a real set."""
    from cellkit.evaluate.adaptation import adapt
    from cellkit.fetch.find import find_weights

    train, fresh, section = real_images(job.kind.rsplit(", ", 1)[1], packed, folder, base)
    images, seeds = REAL_IMAGES[job.number // 2 % len(REAL_IMAGES)], sides(job.number)
    some = train.subset(np.random.default_rng([job.number // 2, 3]).permutation(len(train))[:images])
    start = base if Path(base).is_file() else str(find_weights(base))
    kept = {name: getattr(section, name) for name in ("channels", "learning_rate", "min_area_px")}
    recipe = kept | {"start": start, "own_fields": str(folder / "drawn"), "steps": REAL_STEPS, "eval_every": REAL_STEPS}
    with tempfile.TemporaryDirectory() as place:
        first = same_recipe.TrainSettings(base=start, seed=seeds[0], **recipe)
        one = same_recipe.train(some, some.subset([]), first, Path(place) / "one")
        settings = same_recipe.TrainSettings(base=str(one), seed=seeds[1], **recipe)
        adapted = adapt(same_recipe, some, settings, Path(place) / "run")
        scores = [real_sets.scores_of(same_recipe, path, fresh)["map_iou"] for path in (adapted.base, adapted.tuned)]
    return row_of(job, images, adapted, scores)


def sides(number: int) -> tuple[int, int]:
    """Return the seeds of base and tuned: of an even number, and swapped of the next.

    Examples
    --------
    >>> sides(6), sides(7)
    ((6, 7), (7, 6))
    """
    return (number, number + 1) if number % 2 == 0 else (number, number - 1)


def at_most(errors: int, of: int) -> float:
    """Return the upper end of the 95 % interval of a share (Clopper and Pearson, Biometrika 26 (1934) 404).

    Examples
    --------
    >>> round(at_most(0, 100), 4), at_most(3, 3)
    (0.0362, 1.0)
    """
    from scipy.stats import beta

    return 1.0 if errors == of else float(beta.ppf(0.975, errors + 1, of - errors))


def show_real(rows: list[dict[str, str]]) -> None:
    """Print how often the tuned model was kept, and how often where it is no better on fresh images."""
    print(
        "\nreal trainings: tuned kept / of all; and of those whose tuned model is no better on fresh images (95 %: at most)"
    )
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        for images in (*sorted({int(row["images"]) for row in own}), "all"):
            some = [row for row in own if images in ("all", int(row["images"]))]
            wrong = [row["kept"] == "tuned" for row in some if float(row["true_gain"]) <= 0]
            share = f"{sum(wrong):3} / {len(wrong):4}  {100 * at_most(sum(wrong), len(wrong)):5.1f} %" if wrong else ""
            kept, mean = sum(row["kept"] == "tuned" for row in some), np.mean([float(row["true_gain"]) for row in some])
            print(f"{kind:24} {images!s:>4} image(s) {kept:4} / {len(some):4}  {share:22} mean true gain {mean:+.4f}")


def main() -> None:
    """Simulate, and train where a folder is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--real", nargs=2, metavar=("FOLDER", "COUNT"))
    parser.add_argument("--no-simulation", action="store_true")
    parser.add_argument(
        "--packed", type=Path, help="folder of packed sets (real_sets.py): the U-Net is judged on these"
    )
    parser.add_argument("--base", default="starter", help="weights that both runs of the U-Net start from")
    parser.add_argument("--sets", nargs="+", default=list(REAL_SETS), help="packed sets")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of trainings on drawn cells")
    jobs.add_arguments(parser)
    told = parser.parse_args()
    jobs.prepare(told.device)
    until = jobs.until_of(told.stop_after)
    if not told.no_simulation:
        show_simulated(simulate(told.trials, lambda text: print(text, file=sys.stderr, flush=True)))
    if told.real:
        places = (Path(told.real[0]), int(told.real[1]), told.workers, until)
        show_real(real(*places, told.packed, told.base, told.sets, told.kinds))


if __name__ == "__main__":
    main()
