"""The gate: a tuned model is kept only where it is better than its base beyond doubt, on images that chose nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.dataset import NO_ACCURACY
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.evaluate.evaluation import score_judged
from cellkit.models import if_able
from cellkit.scores.table import bootstrap_draws, paired_bootstrap

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset
    from cellkit.scores.intervals import Difference

LEAST_CEILING = 0.8  # MAP IoU of labels that became targets and labels again; below that a training is in vain
NO_BASE = "no base to compare with: this backend starts from nothing"


@dataclass(frozen=True)
class Verdict:
    """Which model is kept ("base" or "tuned"), the comparison in a sentence, and the verdict in words.

    Attributes
    ----------
    gain : Difference or None
        Tuned minus base; None where there is no base.
    draws : (2000,) float
        The mean gains of drawn images behind its interval; (0,) where there is none.
    """

    kept: str
    sentence: str
    text: str
    gain: Difference | None = None
    draws: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)


def keep_if_better(judge: CellDataset, found: Mapping[str, Sequence[Instances]]) -> Verdict:
    """Decide between a base and what was tuned from it: kept is what is better beyond doubt, else the base.

    Parameters
    ----------
    judge : CellDataset
        Validation images that neither trained nor chose.
    found : mapping
        "tuned", and "base" where there is one -> the cells found in each image of `judge`.

    Returns
    -------
    Verdict
        "tuned" where the lower end of the interval of the difference is above 0, or where there is no base.
    """
    if "base" not in found:
        return Verdict("tuned", NO_BASE, f"kept: tuned. There is {NO_BASE}.")
    base, tuned = (score_judged(judge, found[name]) for name in ("base", "tuned"))
    gain = paired_bootstrap(base, tuned)
    why = "That tuning helped cannot be told; more labelled images might tell." if gain.n else NO_ACCURACY
    text = "kept: tuned" if gain.better else f"kept: base. {why}"
    sentence = gain.sentence("base", "tuned")
    return Verdict("tuned" if gain.better else "base", sentence, text, gain, bootstrap_draws(base, tuned))


def check_ceiling(backend: ModuleType, train: CellDataset, config: Any) -> str:
    """Say how well labels survive as the targets of a network: what is lost there no training can win.

    Parameters
    ----------
    backend : module of cellkit.models
    train : CellDataset
    config : TrainSettings

    Raises
    ------
    UserError
        They score less than `LEAST_CEILING` against themselves.
    """
    ceiling = if_able(backend, "ceiling", train, config)
    if ceiling is None:
        return "it has no targets to lose cells"
    if not ceiling > LEAST_CEILING:
        problem = f"the targets lose cells: {ceiling:.3f}, not {LEAST_CEILING}"
        raise UserError(problem, "check finetune.diameter_px and the labels")
    return f"decode(encode(labels)) scores {ceiling:.3f} against the labels"
