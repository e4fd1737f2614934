"""How often the gate of notebook 03 keeps a model that is no better, and how often one that is: simulated and real.

    python benchmarks/gate_error.py                      # simulated, two minutes on one core
    python benchmarks/gate_error.py --real runs/gate 40  # and forty real trainings each way; repeat to go on

Simulated: gains of single images are drawn, evenly to both sides or with the longer tail towards gains, spread by 0.03 to
0.15 as in real tunings (drawn cells, two_lines, dkfz: 0.03 to 0.15), with an effect that all images of one short run share
(0.01: runs of other seeds differ by 0.005 to 0.02) and for each step from base to tuned a noise of its own. Then the regime
of that many images is followed: choosing the step, by others, and the rule. Real: a small network is trained on drawn cells
with `cellkit.evaluate.adaptation.adapt`; its labels are those of another image, or its rate is next to nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from cellkit.files import read_json, write_json
from cellkit.models.gate import FOLDS, QUARTERS
from cellkit.models.interpolation import STEPS, best_step, nested_steps
from cellkit.scores.intervals import Difference

JUDGES, GAINS, SPREADS = (1, 2, 3, 5, 10, 20), (0.03, 0.05, 0.10, 0.20), (0.03, 0.07, 0.12, 0.15)
SHAPES = ("even", "longer tail of gains", "longer tail of losses")
OF_RUN, OF_STEP, CHECKPOINTS = 0.01, 0.3, 6


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
def real(folder: Path, count: int) -> list[dict]:
    """Train and judge `count` times each with labels of other images, and with a rate next to nothing; finished ones are read."""
    import small_network

    from cellkit.evaluate.adaptation import adapt

    rows = []
    for kind, rate in (("labels of other images", 3e-3), ("rate next to nothing", 1e-9)):
        for number in range(count):
            images = (1, 2, 3, 5, 8)[number % 5]
            place = folder / f"{kind.replace(' ', '_')}_{number}"
            path = place / "row.json"
            if not path.is_file():
                data = small_network.fields(place / "images", images, [number, len(kind)])
                base = small_network.base(folder / "base")
                if "labels" in kind:
                    data = replace(data, instances=small_network.turned(data.instances))
                settings = small_network.TrainSettings(base=str(base), learning_rate=rate, seed=number)
                adapted = adapt(small_network, data, settings, place / "run")
                row = {"kind": kind, "images": images, "regime": adapted.regime.name, "kept": adapted.verdict.kept}
                row |= {"gain": adapted.decision.get("gain"), "low": adapted.decision.get("low"), "step": adapted.step}
                write_json(path, row)
            rows.append(read_json(path))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def show_real(rows: list[dict]) -> None:
    """Print how many real trainings that can teach nothing were kept."""
    print("\nreal trainings that can teach nothing: kept tuned / of, largest gain")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for images in sorted({row["images"] for row in rows}):
            some = [row for row in rows if row["kind"] == kind and row["images"] == images]
            if some:
                kept = sum(row["kept"] == "tuned" for row in some)
                print(
                    f"{kind:24} {images:3} image(s) {kept:3} / {len(some):3}   {max(row['gain'] for row in some):+.3f}"
                )
        some = [row for row in rows if row["kind"] == kind]
        print(f"{kind:24} all          {sum(row['kept'] == 'tuned' for row in some):3} / {len(some):3}")


def main() -> None:
    """Simulate, and train where a folder is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--real", nargs=2, metavar=("FOLDER", "COUNT"))
    parser.add_argument("--no-simulation", action="store_true")
    told = parser.parse_args()
    if not told.no_simulation:
        show_simulated(simulate(told.trials, lambda text: print(text, file=sys.stderr, flush=True)))
    if told.real:
        show_real(real(Path(told.real[0]), int(told.real[1])))


if __name__ == "__main__":
    main()
