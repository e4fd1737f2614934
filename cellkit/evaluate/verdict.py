"""The gate: whether a tuned model is handed on, by what rule, and what would change it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.dataset import NO_ACCURACY, CellDataset
from cellkit.cells.instances import Instances
from cellkit.errors import counted
from cellkit.files import read_stored
from cellkit.models.gate import CROSS_FITTING, IN_QUARTERS, judges
from cellkit.scores.intervals import EXPECTED, LEVEL, WORTH, Difference, reach
from cellkit.scores.table import bootstrap_draws, paired_bootstrap, score_table

if TYPE_CHECKING:
    import pandas

NO_BASE = "no base to compare with: this backend starts from nothing"
RULE = (
    f"the tuned model is kept where the lower end of the {100 * LEVEL:g} % interval of its gain in MAP IoU is above 0, as of a "
    "model that is no better it is once in twenty; the spread of the gains is averaged with an expected one of "
    f"{EXPECTED}, which counts like {WORTH} further images"
)
MOST = 1000  # images up to which it is told how many would be enough


@dataclass(frozen=True)
class Verdict:
    """Which model is kept ("base" or "tuned"), by what rule, the comparison in a sentence, and the verdict in words.

    Attributes
    ----------
    gain : Difference or None
        Tuned minus base, with the interval that decides; None where there is no base.
    draws : (2000,) float
        The mean gains of drawn images; (0,) where there is none.
    rule : str
        What had to be so for the tuned model to be kept; "" where there is no base.
    change : str
        What would have changed the verdict.
    """

    kept: str
    sentence: str
    text: str
    gain: Difference | None = None
    draws: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)
    rule: str = ""
    change: str = ""

    def __str__(self) -> str:
        """Say rule, numbers, verdict, and what would change it, a line each."""
        rule = f"Rule: {self.rule}." if self.rule else ""
        return "\n".join(
            filter(None, [rule, f"{self.sentence[0].upper()}{self.sentence[1:]}.", self.text, self.change])
        )


def score_judged(data: CellDataset, found: Sequence[Instances]) -> pandas.DataFrame:
    """Return `score_table` of the images whose labels no model proposed.

    Parameters
    ----------
    found : list of Instances
        One per image of `data`.
    """
    kept = [k for k, maker in enumerate(data.made_by) if maker != "proposed"]
    part = data.subset(kept)
    return score_table(part.instances, [found[k] for k in kept], part.records)


def keep_if_better(judge: CellDataset, found: Mapping[str, Sequence[Instances]], unit: str = "") -> Verdict:
    """Decide between a base and what was tuned from it: kept is what is better beyond doubt, else the base.

    Parameters
    ----------
    judge : CellDataset
        Images that neither trained nor chose what is judged on them.
    found : mapping
        "tuned", and "base" where there is one -> the cells found in each image of `judge`.
    unit : str, optional
        What is judged where it is no image of its own, e.g. "quarter".

    Returns
    -------
    Verdict
        "tuned" where the lower end of the interval of `Difference.with_expected_spread` is above 0, or where there is no
        base.
    """
    if "base" not in found:
        return Verdict("tuned", NO_BASE, f"kept: tuned. There is {NO_BASE}.")
    base, tuned = (score_judged(judge, found[name]) for name in ("base", "tuned"))
    gain = paired_bootstrap(base, tuned).with_expected_spread()
    why = "That tuning helped cannot be told; more labelled images might tell." if gain.n else NO_ACCURACY
    sentence = gain.sentence("base", "tuned")
    if unit:
        sentence = sentence.replace(f"{gain.n} image", f"{gain.n} {unit}").replace("of 1 group", "of one image")
    return Verdict(
        "tuned" if gain.better else "base",
        sentence,
        "kept: tuned" if gain.better else f"kept: base. {why}",
        gain,
        bootstrap_draws(base, tuned),
        RULE,
        what_would_change(gain),
    )


def what_would_change(gain: Difference) -> str:
    """Return how far a verdict is from the other one: the gain, or the number of images, at which it turns.

    Parameters
    ----------
    gain : Difference
        Of `Difference.with_expected_spread`.

    Examples
    --------
    >>> print(what_would_change(Difference(0.05, np.nan, np.nan, 4, 4, 0.03).with_expected_spread()))
    From as many images of this spread a gain above 0.086 is kept, and one of 0.050 from about 10 images or groups on.
    >>> print(what_would_change(Difference(0.15, np.nan, np.nan, 4, 4, 0.03).with_expected_spread()))
    From as many images of this spread a gain above 0.086 is kept.
    """
    if not gain.n or not gain.units:
        return ""
    needed, spread = reach(gain.error, gain.units + WORTH, LEVEL), gain.error * np.sqrt(gain.units)
    text = f"From as many images of this spread a gain above {needed:.3f} is kept"
    enough = next((n for n in range(2, MOST) if gain.difference > reach(spread / np.sqrt(n), n + WORTH, LEVEL)), None)
    if gain.better or enough is None:
        return f"{text}."
    return f"{text}, and one of {gain.difference:.3f} from about {enough} images or groups on."


def who_judged(decisions: Mapping[str, Path]) -> str:
    """Say who judged the Cellpose models of a run, what the scores of its validation images are, and what "tuned" is.

    Parameters
    ----------
    decisions : mapping
        ``run.find_all("decision")``: what notebook 03 wrote; empty where it has not run.
    """
    if not decisions:
        return "no model was adapted in this run"
    told = _told(decisions)
    text = f"Cellpose, {told.get('regime_in_words', 'three parts')}"
    return "; ".join(filter(None, [text, unseen_words(told), told.get("tuned_in_words", "")]))


def _told(decisions: Mapping[str, Path]) -> dict[str, Any]:
    """Return what notebook 03 wrote; empty where it has not run."""
    remedy = "repeat `cellkit run`: 03_finetune_cellpose writes it again"
    return read_stored(decisions["decision"], {"judges": list}, remedy=remedy) if decisions else {}


UNSEEN = "validation scores of Cellpose are of cells that runs found which had not seen the image"
UNSEEN_QUARTER = (
    "scores of Cellpose in the one labelled image are of cells that runs found which had not seen their quarter and had seen the "
    "other three"
)


def unseen_words(decision: Mapping) -> str:
    """Say what the Cellpose scores of labelled images are, where such images taught the model that is handed on; else ""."""
    return {CROSS_FITTING: UNSEEN, IN_QUARTERS: UNSEEN_QUARTER}.get(decision.get("regime", ""), "")


def images_to_decide(truth: CellDataset, decisions: Mapping[str, Path]) -> CellDataset:
    """Return the images that may decide which model is handed in: all, but for one that was judged by its quarters.

    Of that image every run of Cellpose saw three quarters, and other models saw none: no comparison there is fair.

    Parameters
    ----------
    truth : CellDataset
    decisions : mapping
        As for `who_judged`.
    """
    told = _told(decisions)
    seen = set(told.get("judges", ())) if told.get("regime") == IN_QUARTERS else set()
    return truth.subset([record.image_id not in seen for record in truth.records])


def who_decided(deciding: CellDataset, wanted: str) -> dict[str, Any]:
    """Return what decided which model is handed in, as `cellkit.evaluate.evaluation.choose_model` has it.

    Parameters
    ----------
    deciding : CellDataset
        From `images_to_decide`.
    wanted : str
        ``evaluate.submit``.

    Returns
    -------
    dict
        by ("evaluate.submit", "images" or "nothing"), images (how many decided), in_words.

    Examples
    --------
    >>> who_decided(CellDataset([], []), "maskrcnn")
    {'by': 'evaluate.submit', 'images': 0, 'in_words': 'named in evaluate.submit'}
    """
    images = 0 if wanted != "best" else len(judges(deciding))
    by = "evaluate.submit" if wanted != "best" else "images" if images else "nothing"
    words = {
        "evaluate.submit": "named in evaluate.submit",
        "images": f"decided on {counted(images, 'validation image')}",
        "nothing": "no image could decide, so it is what 03 kept of Cellpose, or the first model",
    }
    return {"by": by, "images": images, "in_words": words[by]}
