"""The gate: a tuned model is kept only where it is better than its base beyond doubt, on images that chose nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellkit.cells.instances import Instances

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

NO_BASE = "no base to compare with: this backend starts from nothing"


@dataclass(frozen=True)
class Verdict:
    """Which model is kept ("base" or "tuned"), the comparison in a sentence, and the verdict in words."""

    kept: str
    sentence: str
    text: str


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
    from cellkit.cells.dataset import NO_ACCURACY
    from cellkit.evaluate.evaluation import score_judged
    from cellkit.scores.table import paired_bootstrap

    if "base" not in found:
        return Verdict("tuned", NO_BASE, f"kept: tuned. There is {NO_BASE}.")
    gain = paired_bootstrap(*(score_judged(judge, found[name]) for name in ("base", "tuned")))
    why = "That tuning helped cannot be told; more labelled images might tell." if gain.n else NO_ACCURACY
    text = "kept: tuned" if gain.better else f"kept: base. {why}"
    return Verdict("tuned" if gain.better else "base", gain.sentence("base", "tuned"), text)
