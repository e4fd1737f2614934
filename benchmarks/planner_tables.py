"""What `bench_planner.py` makes of finished trainings: choices of the rules, pairs, intervals, tables. Nothing is trained."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cellkit.cells.records import ImageRecord
from cellkit.labelling.planner import ranked
from cellkit.labelling.rules import RULES, Features

CHANCE, DENSER = "random", "random_denser_half"
METRICS = ("map_iou", "ap50")
COLUMNS = ("set", "images", "seed", "steps", "base", "settings", "cells", "map_iou", "ap50", "seconds")
FLIPS = 20_000  # of signs, for a p value
POOLS, DRAWS_OF_POOL = 200, 10  # resampled pools, and draws of candidates from each


# ---- finished trainings ---------------------------------------------------------------------------------------------
class Key(NamedTuple):
    """What makes a training the same training."""

    set: str
    images: str  # names in order, joined by a blank
    seed: int
    steps: int
    base: str
    settings: str


def key_of(about: Key, images: Sequence[str], seed: int) -> Key:
    return about._replace(images=" ".join(sorted(images)), seed=seed)


def read_trained(path: Path) -> dict[Key, dict[str, float]]:
    """Return cells, map_iou and ap50 of every finished training; a row that was cut off by a kill is left out."""
    found = {}
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if None not in row.values() and None not in row and row["seconds"].endswith("s"):
                    key = Key(
                        row["set"], row["images"], int(row["seed"]), int(row["steps"]), row["base"], row["settings"]
                    )
                    found[key] = {name: float(row[name]) for name in ("cells", *METRICS)}
    return found


def add_trained(path: Path, key: Key, values: Mapping[str, float], seconds: float) -> None:
    """Append a row, whole and on the disk; another process may append too."""
    import os

    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"), open(path, "a+", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not path.stat().st_size:
            writer.writerow(COLUMNS)
        elif not _ends_with_a_line(path):
            file.write("\n")
        numbers = [f"{values['cells']:.0f}", *(f"{values[name]:.6f}" for name in METRICS), f"{seconds:.0f}s"]
        writer.writerow([*key, *numbers])
        file.flush()
        os.fsync(file.fileno())


def _ends_with_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"


# ---- what a rule chooses --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Pool:
    """Images whose labels are hidden until they are chosen: records and features of all of them."""

    records: Sequence[ImageRecord]
    features: Features

    def take(self, places: Sequence[int], seed: int) -> tuple[list[ImageRecord], Features]:
        """Return the records and features of some images, and the seed of random choices."""
        f, places = self.features, list(places)
        part = replace(
            f,
            names=[f.names[k] for k in places],
            cells=f.cells[places],
            confidence=f.confidence[places],
            disagreements={name: values[places] for name, values in f.disagreements.items()},
            style=None if f.style is None else f.style[places],
            seed=seed,
        )
        return [self.records[k] for k in places], part

    def candidates(self, draw: int, most: int) -> list[int]:
        """Draw the candidates of one draw, without replacement."""
        n = len(self.records)
        return sorted(np.random.default_rng([7, draw]).permutation(n)[: min(most, n)].tolist())

    def chosen(self, rule: str, places: Sequence[int], budget: int, seed: int) -> list[str]:
        """Return the names a rule takes from the candidates."""
        records, features = self.take(places, seed)
        return [records[k].image_id for k in ranked(records, features, rule, budget)[:budget]]


def chances(pool: Pool, places: Sequence[int]) -> dict[str, list[int]]:
    """Return the images among which the two rules of chance draw, so that a budget of one can be told without a draw."""
    order = sorted(places, key=lambda k: (-pool.features.cells[k], pool.features.names[k]))
    return {CHANCE: list(places), DENSER: order[: (len(order) + 1) // 2]}


class Result(NamedTuple):
    """The outcome of one rule in one draw: mean over seeds; `cells` are true ones, those that were labelled.

    Where chance is told exactly, all are means over the images it may draw, that of the logarithm of 1 + cells too.
    """

    rule: str
    budget: int
    draw: int
    cells: float
    log_cells: float
    map_iou: float
    ap50: float
    best: float  # MAP IoU of the best single candidate of the draw, nan where it is not known


def results(
    pool: Pool, trained: Mapping[Key, Mapping], about: Key, rules: Sequence[str], budgets: Sequence[int],
    draws: int, candidates: int, seeds: Sequence[int],
) -> list[Result]:  # fmt: skip
    """Look up every draw that is complete: all rules at that budget are trained with all seeds."""

    def look(images: Sequence[str]) -> np.ndarray | None:
        rows = [trained.get(key_of(about, images, seed)) for seed in seeds]
        if None in rows:
            return None
        return np.mean(
            [[row["cells"], np.log1p(row["cells"]), *(row[name] for name in METRICS)] for row in rows], axis=0
        )

    found = []
    for draw in range(draws):
        places = pool.candidates(draw, candidates)
        single = [look([pool.features.names[k]]) for k in places]
        best = np.nan if any(one is None for one in single) else max(one[2] for one in single)
        of = dict(zip(places, single, strict=True))
        for budget in budgets:
            mine = {}
            for rule in rules:
                numbers = chances(pool, places).get(rule) if budget == 1 else None
                if numbers is None:
                    mine[rule] = look(pool.chosen(rule, places, budget, draw))
                else:
                    ones = [of[k] for k in numbers]
                    mine[rule] = None if any(one is None for one in ones) else np.mean(ones, axis=0)
            if all(value is not None for value in mine.values()):
                found += [Result(rule, budget, draw, *value, best) for rule, value in mine.items()]
    return found


# ---- statistics -----------------------------------------------------------------------------------------------------
def holm(p: Sequence[float]) -> np.ndarray:
    """Correct p values for their number (Holm, Scandinavian Journal of Statistics 6 (1979) 65)."""
    p = np.asarray(p, float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(steps, 1)
    return corrected


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """Return the p value of paired differences by flipping their signs: how often chance makes as large a mean."""
    d = np.asarray(differences, float)
    if len(d) < 2 or not np.abs(d).sum():
        return 1.0
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (FLIPS, len(d)))
    return float((1 + (np.abs(signs @ d) >= abs(d.sum()) - 1e-12).sum()) / (1 + FLIPS))


def at_equal_cells(cells: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Fit score = a + b log(1 + cells) to trainings that chance chose; return a, b."""
    x = np.log1p(cells)
    if len(x) < 3 or np.ptp(x) < 1e-9:
        return float(np.mean(scores)), 0.0
    b, a = np.polyfit(x, scores, 1)
    return float(a), float(b)


def area(x: Sequence[float], y: Sequence[float], within: tuple[float, float] | None = None) -> float:
    """Return the mean height of a curve over its x, or within two bounds of x; nan where that is no stretch."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    order = np.argsort(x, kind="stable")
    low, high = within or (x.min(), x.max())
    if not high > low:
        return float("nan")
    at = np.linspace(low, high, 101)
    height = np.interp(at, x[order], y[order])
    return float((height[1:] + height[:-1]).mean() / 2)


def pool_interval(
    pool: Pool, score_of: Mapping[str, float], rule: str, candidates: int, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of a rule's gain over chance at a budget of one, over other pools of the same kind.

    Draws share the images of one pool, so more draws make a p value smaller without a new image being seen. Here the images of
    the pool are drawn anew (with replacement), and candidates from those.
    """
    rng, names = np.random.default_rng([11, seed]), pool.features.names
    scores, gains = np.array([score_of[name] for name in names]), []
    for _ in range(POOLS):
        weight = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names)).astype(float)
        size = min(candidates, int((weight > 0).sum()))
        own = []
        for draw in range(DRAWS_OF_POOL):
            places = sorted(rng.choice(len(names), size, replace=False, p=weight / weight.sum()).tolist())
            numbers = chances(pool, places).get(rule)
            if numbers is None:
                (name,) = pool.chosen(rule, places, 1, draw)
                value = score_of[name]
            else:
                value = scores[numbers].mean()
            own.append(value - scores[places].mean())
        gains.append(np.mean(own))
    low, high = np.percentile(gains, (2.5, 97.5))
    return float(low), float(high)


# ---- tables ---------------------------------------------------------------------------------------------------------
def compare(
    found: Sequence[Result], metric: str, budget: int, singles: Sequence[tuple[float, float]] = (),
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> list[dict]:  # fmt: skip
    """Return a row for each rule at a budget, all against chance in the same draws; the losing ones too.

    Parameters
    ----------
    singles : sequence of (float, float)
        Cells and score of trainings on one image each: at a budget of one, what score goes with how many cells. At others
        the choices of chance tell that.
    intervals : dict, optional
        `pool_interval` of each rule.
    """
    mine = [one for one in found if one.budget == budget]
    by_rule: dict[str, list[Result]] = {}
    for one in sorted(mine, key=lambda one: one.draw):
        by_rule.setdefault(one.rule, []).append(one)
    chance = by_rule.get(CHANCE, [])
    if not chance:
        return []
    told = singles if budget == 1 and len(singles) else [(one.cells, getattr(one, metric)) for one in chance]
    _, b = at_equal_cells(*np.array(told, float).T)
    at_chance = np.array([getattr(one, metric) for one in chance])
    best_rule = np.max([[getattr(one, metric) for one in ones] for ones in by_rule.values()], axis=0)
    rows = []
    for rule, ones in by_rule.items():
        scores, cells = (np.array([getattr(one, name) for one in ones]) for name in (metric, "cells"))
        gain = scores - at_chance
        fair = gain - b * (np.array([one.log_cells for one in ones]) - [one.log_cells for one in chance])
        best = np.array([one.best for one in ones]) if metric == "map_iou" and budget == 1 else best_rule
        rows.append({
            "rule": rule, "score": scores.mean(), "gain": gain.mean(), "p": sign_flip(gain), "cells": cells.mean(),
            "gain at equal cells": fair.mean(), "p at equal cells": sign_flip(fair), "regret": (best - scores).mean(),
            "interval": (intervals or {}).get(rule, (np.nan, np.nan)), "draws": len(ones),
        })  # fmt: skip
    others = [row for row in rows if row["rule"] != CHANCE]
    for name in ("p", "p at equal cells"):
        for row, value in zip(others, holm([row[name] for row in others]), strict=True):
            row[name] = float(value)
    return sorted(rows, key=lambda row: -row["score"])


def areas(found: Sequence[Result], metric: str) -> list[dict]:
    """Return the area under each rule's curve in draws that have all budgets: over log2 images, and over log cells where the
    curves of all rules lie."""
    budgets = sorted({one.budget for one in found})
    of = {(one.rule, one.draw, one.budget): one for one in found}
    draws = [d for d in sorted({one.draw for one in found}) if all((CHANCE, d, n) in of for n in budgets)]
    rules = list(dict.fromkeys(one.rule for one in found))
    lines = {rule: [[of[rule, draw, n] for n in budgets] for draw in draws] for rule in rules}
    log_cells = {rule: [np.array([one.log_cells for one in line]) for line in lines[rule]] for rule in rules}
    shared = [
        (max(log_cells[rule][k].min() for rule in rules), min(log_cells[rule][k].max() for rule in rules))
        for k in range(len(draws))
    ]
    rows = []
    for rule in rules:
        scores = [[getattr(one, metric) for one in line] for line in lines[rule]]
        by_images = [area(np.log2(budgets), y) for y in scores]
        by_cells = [area(x, y, within) for x, y, within in zip(log_cells[rule], scores, shared, strict=True)]
        rows.append({"rule": rule, "images": np.array(by_images), "cells": np.array(by_cells)})
    return rows


def markdown(rows: Sequence[Mapping], metric: str, budget: int, title: str) -> str:
    """Return the table of one metric and budget."""
    if not rows:
        return f"\n{title}, {metric}, {budget} image(s): no draw is complete yet"
    what = "the best single candidate" if metric == "map_iou" and budget == 1 else "the best rule of the draw"
    lines = [
        f"\n{title}, {metric}, {budget} image(s), {rows[0]['draws']} draws; regret to {what}\n",
        "| rule | score | over chance | other pools, 95 % | p (Holm) | cells | over chance at equal cells | p (Holm) | regret |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        low, high = row["interval"]
        pools = "" if np.isnan(low) else f"{low:+.3f}, {high:+.3f}"
        values = [f"{row['score']:.3f}", f"{row['gain']:+.3f}", pools, f"{row['p']:.3f}", f"{row['cells']:.0f}"]
        values += [f"{row['gain at equal cells']:+.3f}", f"{row['p at equal cells']:.3f}", f"{row['regret']:.3f}"]
        if row["rule"] == CHANCE:
            values = [values[0], "", "", "", values[4], "", "", values[7]]
        lines.append(f"| {row['rule']} | {' | '.join(values)} |")
    return "\n".join(lines)


def markdown_areas(rows: Sequence[Mapping], metric: str, title: str) -> str:
    """Return the table of areas; "" where there is one budget only, or no draw that has all."""
    rows = [row for row in rows if len(row["images"]) and not np.isnan(row["images"]).any()]
    chance = next((row for row in rows if row["rule"] == CHANCE), None)
    if chance is None:
        return ""
    gains = {row["rule"]: row["images"] - chance["images"] for row in rows if row is not chance}
    corrected = dict(zip(gains, holm([sign_flip(gain) for gain in gains.values()]), strict=True))
    lines = [f"\n{title}, {metric}, area under the curve, {len(chance['images'])} draws\n"]
    lines += ["| rule | by log2 images | over chance | p (Holm) | by log cells |", "|---|---:|---:|---:|---:|"]
    for row in sorted(rows, key=lambda row: -row["images"].mean()):
        over = f"{gains[row['rule']].mean():+.3f} | {corrected[row['rule']]:.3f}" if row is not chance else " | "
        lines.append(f"| {row['rule']} | {row['images'].mean():.3f} | {over} | {np.nanmean(row['cells']):.3f} |")
    return "\n".join(lines)


def check_rules(names: Sequence[str]) -> list[str]:
    """Return the rules to compare, chance always among them."""
    from cellkit.labelling.rules import rule_of

    for name in names:
        rule_of(name)
    return list(dict.fromkeys([CHANCE, *(names or RULES)]))
