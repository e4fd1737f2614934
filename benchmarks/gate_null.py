"""How often the gate of notebook 03 keeps a model that is no better: thousands of draws from a few real trainings.

    python benchmarks/gate_null.py --packed packed --base starter_light --out runs/gate_null.csv

`gate_error.py --real` trains a base and its rivals anew for every trial, which takes minutes each. Here a few runs of one recipe
are trained with other seeds on what the start weights know (`same_recipe`): none of them is better but by chance. Every run, and
every step between two of them, is scored once on the images of a set, all read at the thresholds and the diameter that the start
weights are read with (searched on images that are not scored here). A trial then draws a base, images that judge, and for each
part that is held back another run as its rival; step and verdict follow as in `cellkit.evaluate.adaptation.adapt`. The gain of
what is kept is known too: on the other images of the set, of a run that judged nothing. Kept although no better there, it is an
error. What trials share, a few runs and a few images, no number of trials makes up for; the table says how many there were.
Quarters of a single image are not followed: scores are of whole images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import jobs
import numpy as np
import real_sets
import same_recipe
from gate_error import at_most

from cellkit.cells.dataset import CellDataset
from cellkit.models import cellpose_unet as unet
from cellkit.models.gate import CHOOSE_FROM, FOLDS
from cellkit.models.interpolation import STEPS, best_step, interpolate, nested_steps
from cellkit.scores.intervals import Difference

SETS, JUDGES = ("two_lines", "dkfz", "dsb2018"), (2, 3, 5, 8, 12)
SEARCHED = 4  # images that the start weights are read by
COLUMNS = ("set", "base", "steps", "one", "other", "step", "scores")


class Trial(NamedTuple):
    """What came of a trial: whether the rival was kept, and its gain on the other images."""

    kept: bool
    gain: float


# ---- trials --------------------------------------------------------------------------------------------------------
class Table:
    """The MAP IoU of each image at each step between two runs.

    Parameters
    ----------
    rows : sequence of dict
        Of one set.
    """

    def __init__(self, rows: Sequence[Mapping[str, str]]):
        self.of = {
            (int(row["one"]), int(row["other"]), float(row["step"])): np.array(row["scores"].split(), float)
            for row in rows
        }
        self.runs = sorted({run for run, *_ in self.of})
        self.images = len(next(iter(self.of.values()))) if self.of else 0

    def between(self, base: int, tuned: int) -> np.ndarray:
        """Return (images, steps) float: from one run, step 0, to another."""
        ends = {0.0: self.of[base, base, 0.0], 1.0: self.of[tuned, tuned, 0.0]}
        low, high = sorted((base, tuned))
        middle = {step: self.of[low, high, step if base < tuned else 1 - step] for step in STEPS[1:-1]}
        return np.stack([(ends | middle)[step] for step in STEPS], axis=1)


def is_better(gains: np.ndarray) -> bool:
    """Tell whether the gains of single images are kept: the rule of `keep_if_better`."""
    n = len(gains)
    error = float(gains.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    return Difference(float(gains.mean()), np.nan, np.nan, n, n, error).with_expected_spread().better


def trial(table: Table, images: int, rng: np.random.Generator) -> Trial:
    """Follow the gate once: cross-fitting while fewer than twelve images judge, else three parts."""
    base, *others = rng.permutation(table.runs).tolist()
    order = rng.permutation(table.images)
    known, fresh = order[:images], order[images:]
    if images >= CHOOSE_FROM:
        scores, chose = table.between(base, others[0]), known[: images // 3]
        step, judge, whole = best_step(scores[chose]), known[images // 3 :], others[0]
        judged = scores[judge, step] - scores[judge, 0]
    else:
        fold = np.arange(images) % min(FOLDS, images)
        each = [table.between(base, run) for run in others[: fold.max() + 1]]
        scores = np.stack([each[part][image] for part, image in zip(fold, known, strict=True)])
        step, whole = best_step(scores), others[fold.max() + 1]
        judged = scores[np.arange(images), nested_steps(scores, fold)] - scores[:, 0]
    truly = table.between(base, whole)[fresh]
    return Trial(bool(step) and is_better(judged), float((truly[:, step] - truly[:, 0]).mean()))


def summary(rows: Sequence[Mapping[str, str]], trials: int, judges: Sequence[int] = JUDGES) -> Iterator[str]:
    """Yield a Markdown table: how often a rival was kept, and how often one that is no better on other images."""
    yield "| set | runs | images | judge | trials | kept | 95 %: at most | kept and no better | mean gain of a rival |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name in dict.fromkeys(row["set"] for row in rows):
        table = Table([row for row in rows if row["set"] == name])
        for images in judges:
            if images >= table.images or len(table.runs) < min(FOLDS, images) + 2:
                continue
            found = [trial(table, images, np.random.default_rng([images, k])) for k in range(trials)]
            kept, wrong = (sum(one) for one in ([t.kept for t in found], [t.kept and t.gain <= 0 for t in found]))
            gain = np.mean([t.gain for t in found])
            yield (
                f"| {name} | {len(table.runs)} | {table.images} | {images} | {trials} | {100 * kept / trials:.1f} % "
                f"| {100 * at_most(kept, trials):.1f} % | {100 * wrong / trials:.1f} % | {gain:+.4f} |"
            )


# ---- trainings -----------------------------------------------------------------------------------------------------
def images_of(name: str, given: argparse.Namespace) -> tuple[CellDataset, CellDataset, Any]:
    """Return the images that the start weights are read by, those that are scored, and the section finetune."""
    sizes = (10**6, 10**6)
    train, test, config, _ = real_sets.images_of(name, Path(given.data), given.work, *sizes, given.packed, given.base)
    return train.subset(range(SEARCHED)), test.subset(range(min(len(test), given.tested))), config.finetune


def trained(run: int, given: argparse.Namespace) -> Path:
    """Return the weights of a run, trained once."""
    from cellkit.fetch.find import find_weights

    folder = given.out.with_suffix("") / f"{given.steps}_{run}"
    path = folder / "cellpose_tuned.safetensors"
    if not path.with_suffix(".json").is_file():
        fields = same_recipe.own_fields(given.out.with_suffix("") / "drawn")
        read = {key: unet.DEFAULTS[key] for key in unet.SEARCHED}
        base = given.base if Path(given.base).is_file() else str(find_weights(given.base))
        recipe = {"steps": given.steps, "eval_every": given.steps, "batch_size": given.batch_size, "seed": run}
        settings = unet.TrainSettings(base=base, precision="float32", **recipe, **read)
        path = unet.train(fields, fields.subset([]), settings, folder)
    return path


def scored(job: tuple[str, int, int, float], given: argparse.Namespace) -> str:
    """Return the MAP IoU of each image of a set at a step from one run to another."""
    from cellkit.fetch.find import find_weights
    from cellkit.models.weights import read_card

    name, one, other, step = job
    known, test, section = images_of(name, given)
    read = given.out.with_suffix("") / f"{name}_read"
    if not read.with_suffix(".json").is_file():
        base = given.base if Path(given.base).is_file() else str(find_weights(given.base))
        unet.calibrate(known, section.model_copy(update={"base": base, "precision": "float32"}), read)
    card = read_card(read.with_suffix(".safetensors")).config
    settings = unet.Settings(**{key: card[key] for key in unet.Settings.model_fields if key in card})
    path = trained(one, given)
    if one != other:
        path = interpolate(path, trained(other, given), step, given.out.with_suffix("") / "between.safetensors")
    each = real_sets.scores_of(_Read(settings), path, test)
    return " ".join(f"{score:.5f}" for score in each["map_iou"])


class _Read(NamedTuple):
    """The U-Net, read with these settings whatever its card says."""

    settings: unet.Settings

    def load(self, checkpoint: Path) -> Any:
        return unet.load(checkpoint, self.settings)


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=tuple(real_sets.SETS), default=list(SETS))
    parser.add_argument("--runs", type=int, default=8, help="of the recipe, with other seeds (default 8)")
    parser.add_argument("--steps", type=int, default=40, help="of a run (default 40)")
    parser.add_argument("--batch-size", type=int, default=4, help="crops of a step (default 4)")
    parser.add_argument("--tested", type=int, default=24, help="most images that are scored (default 24)")
    parser.add_argument("--trials", type=int, default=2000, help="of each set and number of judges (default 2000)")
    parser.add_argument("--base", default="starter", help="weights to start from: a name or a path")
    parser.add_argument("--out", type=Path, default=Path("runs/gate_null.csv"))
    parser.add_argument("--work", type=Path, default=Path("runs/real_sets"), help="folder of unpacked images")
    parser.add_argument("--table", action="store_true", help="train nothing, print what is there")
    real_sets.add_arguments(parser)
    jobs.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Train and score what is missing, and print the table of what is complete."""
    given = arguments()
    jobs.prepare(given.device)
    until = jobs.until_of(given.stop_after)
    known = {"base": real_sets.base_stamp(given.base), "steps": str(given.steps)}
    steps = [(run, run, 0.0) for run in range(given.runs)]
    steps += [(*pair, step) for pair in combinations(range(given.runs), 2) for step in STEPS[1:-1]]
    if not given.table:
        done = {tuple(row[key] for key in COLUMNS[:-1]) for row in jobs.rows_of(given.out)}
        todo = [(name, *one) for name in given.sets for one in steps]
        todo = [job for job in todo if (job[0], *known.values(), *map(str, job[1:])) not in done]
        for job, scores in jobs.run_all(lambda job: scored(job, given), todo, 1, until):
            values = dict(zip(("set", "one", "other", "step"), job, strict=True))
            jobs.add_rows(given.out, COLUMNS, [values | known | {"scores": scores}])
    rows = [row for row in jobs.rows_of(given.out) if all(row[key] == value for key, value in known.items())]
    whole = [name for name in given.sets if sum(row["set"] == name for row in rows) >= len(steps)]
    if not whole:
        sys.exit("no set is complete yet: repeat the command")
    print("\n".join(summary([row for row in rows if row["set"] in whole], given.trials)))


if __name__ == "__main__":
    main()
