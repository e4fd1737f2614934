"""Which images are left out, and why: limits learned from the training images, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from fastcore.basics import groupby

from cellkit.cells.records import ImageRecord
from cellkit.errors import counted
from cellkit.microscope.duplicates import COPY, Duplicate, find_duplicates, handle_duplicates
from cellkit.microscope.quality import EMPTY_BELOW

FLAGS = ("out_of_focus", "saturated", "low_contrast", "uneven_light", "debris")
# The limits are checked by ``benchmarks/bench_quality.py`` on drawn frames with known defects, of the demo's microscope and of
# a new random one per field: of the out of focus and the saturated at least 95 % are to be flagged, of the good at most 3 %;
# and on the sets two_lines, dsb2018, dkfz, sartorius and hepg2_huh7, whose flags a person looks at.
DEVIATIONS = 4.0  # of the batch, scaled median absolute; odd above that
SMALLEST_BATCH = 8  # images with cells; of fewer no limit is learned
BLUR_LIMITS = (2.3, 3.0)  # px; never out of focus below the first, always above the second
STRUCTURE_LIMITS = (EMPTY_BELOW, 1.2)  # always too faint below the first, never above the second
UNEVEN_LIMITS = (0.2, 0.3)  # never uneven below the first, always above the second
DEBRIS_LIMITS = (2.7, 3.3)  # never debris below the first, always above the second
CLIPPED_ABOVE = 0.03  # share of pixels at the camera's limit
LEVELS_BELOW = 10  # grey levels in use


def flag_records(
    measurements: Sequence[dict], learned_from: Sequence[bool] | None = None, off: Collection[str] = ()
) -> tuple[list[str], dict[str, float]]:
    """Judge each image by limits learned from its batch.

    Parameters
    ----------
    measurements : sequence of dict
        As `measure` returns them.
    learned_from : sequence of bool, optional
        Which images the limits are learned from: the training images, so that no test image decides about another; default
        all.
    off : collection of str
        Flags that are not given (``convert.quality.<flag>: false``).

    Returns
    -------
    flags : list of str
        Out of `FLAGS`, joined by ";"; "" for a good image and for one without cells.
    thresholds : dict
        blur_px_max, structure_min, uneven_max, debris_max (learned within `BLUR_LIMITS`, `STRUCTURE_LIMITS`,
        `UNEVEN_LIMITS` and `DEBRIS_LIMITS`; their middle for a batch of fewer than 8 images), saturated_fraction_max,
        contrast_min, and batch, the number of images with cells that were learned from.

    Examples
    --------
    >>> good = {"blur_px": 1.4, "structure": 3.0, "empty": False, "saturated_fraction": 0, "contrast": 240, "debris": 1,
    ...         "uneven": 0.1}
    >>> flags, thresholds = flag_records([good, good | {"blur_px": 6.0}, good | {"saturated_fraction": 0.3}])
    >>> flags, thresholds["blur_px_max"]
    (['', 'out_of_focus', 'saturated'], 2.65)
    >>> flag_records([good | {"blur_px": 6.0}], off=["out_of_focus"])[0]
    ['']
    """
    taught = [m for m, yes in zip(measurements, learned_from or [True] * len(measurements), strict=True) if yes]
    blur_px_max, learned = _limit([m["blur_px"] for m in taught], DEVIATIONS, BLUR_LIMITS)
    seen = [math.nan if m["empty"] else m["structure"] for m in taught]
    structure_min, _ = _limit(seen, -DEVIATIONS, STRUCTURE_LIMITS)
    uneven_max, _ = _limit([m["uneven"] for m in taught], DEVIATIONS, UNEVEN_LIMITS)
    debris_max, _ = _limit([m["debris"] for m in taught], DEVIATIONS, DEBRIS_LIMITS)
    thresholds = {
        "blur_px_max": blur_px_max,
        "structure_min": structure_min,
        "uneven_max": uneven_max,
        "debris_max": debris_max,
        "saturated_fraction_max": CLIPPED_ABOVE,
        "contrast_min": float(LEVELS_BELOW),
        "batch": float(learned),
    }
    return [_flags(m, thresholds, off) for m in measurements], thresholds


def _limit(values: Sequence[float], deviations: float, bounds: tuple[float, float]) -> tuple[float, int]:
    """Return median + deviations * 1.4826 * MAD of the finite values, within bounds, and how many there are."""
    known = np.array([v for v in values if math.isfinite(v)])
    if len(known) < SMALLEST_BATCH:
        return round(sum(bounds) / 2, 3), len(known)
    middle = float(np.median(known))
    scale = 1.4826 * float(np.median(np.abs(known - middle)))
    return round(float(np.clip(middle + deviations * scale, *bounds)), 3), len(known)


def _flags(m: dict, limits: dict[str, float], off: Collection[str] = ()) -> str:
    dim = not m["empty"] and m["structure"] < limits["structure_min"]
    found = {
        "out_of_focus": m["blur_px"] > limits["blur_px_max"],
        "saturated": m["saturated_fraction"] > limits["saturated_fraction_max"],
        "low_contrast": dim or m["contrast"] < limits["contrast_min"],
        "uneven_light": m["uneven"] > limits["uneven_max"],
        "debris": m["debris"] > limits["debris_max"],
    }
    return ";".join(name for name in FLAGS if found[name] and name not in off)


def exclude_flagged(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Take the flagged training and validation images out of their splits: split becomes "", everything else stays.

    A flagged test image stays a test image: it is predicted and handed in, since a competition wants an answer for every
    image; what is scored leaves it out (`records.is_scored`).

    Examples
    --------
    >>> good = ImageRecord("a", "a.png", 1, 1, split="val")
    >>> [record.split for record in exclude_flagged([good, replace(good, flags="debris")])]
    ['val', '']
    >>> [record.split for record in exclude_flagged([replace(good, flags="debris", split="test")])]
    ['test']
    """
    return [replace(r, split="") if r.flags and r.split != "test" else r for r in records]


RULES = {  # flag: what is measured, by which key, in which words, the number's format, its limit's key, sign and bounds
    "out_of_focus": ("blur_px", "blurred by {}", "{:.2g} px", "blur_px_max", ">", BLUR_LIMITS),
    "saturated": ("saturated_fraction", "{} of the pixels saturated", "{:.2g} %", "saturated_fraction_max", ">", None),
    "low_contrast": ("structure", "signal {} times the noise", "{:.2g}", "structure_min", "<", STRUCTURE_LIMITS),
    "uneven_light": ("uneven", "{} of the light lost across the field", "{:.2g} %", "uneven_max", ">", UNEVEN_LIMITS),
    "debris": ("debris", "a glow in both channels {} times as bright as cells", "{:.2g}", "debris_max", ">", DEBRIS_LIMITS),
}  # fmt: skip


def _number_text(key: str, form: str, number: float) -> str:
    """Return a measured number or a limit as text: shares in percent, powers of ten as plain numbers.

    Examples
    --------
    >>> _number_text("saturated_fraction", "{:.2g} %", 0.089), _number_text("structure", "{:.2g}", 3)
    ('8.9 %', '1000')
    """
    if key in ("saturated_fraction", "uneven"):
        number *= 100
    elif key == "structure":
        number = 10**number
    return form.format(number) if abs(number) < 100 else form.replace(".2g", ".0f").format(number)


def explain(thresholds: Mapping[str, float], flags: Sequence[str] = (), off: Collection[str] = ()) -> list[str]:
    """Say in words by which limits images are flagged, how many images they flagged, and which key switches each off.

    Examples
    --------
    >>> _, thresholds = flag_records([])
    >>> lines = explain(thresholds, ["debris", "debris;saturated", ""], ["uneven_light"])
    >>> lines[1].split(" (")[0], lines[3]
    ('saturated: 1 image flagged: more than 3 % of the pixels saturated', 'uneven light: switched off by convert.quality.uneven_light: false')
    """  # noqa: E501
    learned, lines = int(thresholds["batch"]), []
    for flag, (key, words, form, limit, sign, bounds) in RULES.items():
        name, switch = flag.replace("_", " "), f"convert.quality.{flag}: false"
        if flag in off:
            lines.append(f"{name}: switched off by {switch}")
            continue
        if not bounds:
            origin = "a fixed limit"
        elif learned >= SMALLEST_BATCH:
            origin = f"learned from {learned} training images with cells"
        else:
            origin = f"a fixed limit: {SMALLEST_BATCH} training images with cells or more are needed to learn one"
        count = sum(flag in one.split(";") for one in flags)
        than = "more than " if sign == ">" else "less than "
        what = words.format(than + _number_text(key, form, thresholds[limit]))
        what = than + words.format(_number_text(key, form, thresholds[limit])) if words.startswith("{") else what
        lines.append(f"{name}: {counted(count, 'image')} flagged: {what} ({origin}; {switch} keeps such images)")
    return lines


def reasons(row: Mapping, thresholds: Mapping[str, float], flags: str) -> list[str]:
    """Say why one image is flagged: what was measured, and the limit.

    Examples
    --------
    >>> _, limits = flag_records([])
    >>> reasons({"blur_px": 6.23, "saturated_fraction": 0.089}, limits, "out_of_focus;saturated;copy")
    ['out of focus: blurred by 6.2 px, limit 2.6 px', 'saturated: 8.9 % of the pixels saturated, limit 3 %', 'copy: shows the field of another image']
    """  # noqa: E501
    lines = []
    for flag in filter(None, flags.split(";")):
        if flag == COPY:
            lines.append("copy: shows the field of another image")
            continue
        key, words, form, limit, _, _ = RULES[flag]
        number, most = float(row[key]), float(thresholds[limit])
        if flag == "low_contrast" and (row.get("empty") or not number < most):
            key, words, form = "contrast", "{} grey levels", "{:.0f}"
            number, most = float(row["contrast"]), float(thresholds["contrast_min"])
        measured = words.format(_number_text(key, form, number))
        lines.append(f"{flag.replace('_', ' ')}: {measured}, limit {_number_text(key, form, most)}")
    return lines


def name_flagged(
    records: Sequence[ImageRecord],
    quality: Sequence[Mapping],
    thresholds: Mapping[str, float],
    copies: Sequence[Duplicate],
) -> list[str]:
    """Name every flagged image with its reason, and what becomes of it.

    Parameters
    ----------
    records : sequence of ImageRecord
        After `exclude_flagged`.
    quality : sequence of mapping
        Of each record, in the same order.
    """
    both = [pair for copy in copies for pair in ((copy.first, copy.second), (copy.second, copy.first))]
    other = groupby(both, 0, 1)
    lines = []
    for record, row in zip(records, quality, strict=True):
        if record.flags:
            why = "; ".join(reasons(row, thresholds, record.flags))
            if COPY in record.flags.split(";") and record.image_id in other:
                why += f" ({', '.join(other[record.image_id])}; convert.duplicates: keep keeps both)"
            fate = "predicted and handed in, not scored" if record.split == "test" else "not used"
            lines.append(f"{record.image_id}: {why}: {fate}")
    return lines


def quality_summary(
    thresholds: Mapping[str, float], flags: Sequence[str], copies: Sequence[Duplicate] = (), off: Collection[str] = ()
) -> dict[str, object]:
    """Return the summary of a batch's quality for quality.json: the limits, in numbers and words, and the duplicates."""
    return {
        "thresholds": {name: float(value) for name, value in thresholds.items()},
        "words": explain(thresholds, flags, off),
        "copies": [asdict(copy) for copy in copies],
    }


@dataclass(frozen=True)
class QualityCheck:
    """Which images of a batch are flagged, by which limits, and which show one and the same field.

    Attributes
    ----------
    records : list of ImageRecord
        With their flags; flagged training and validation images are out of their splits.
    measurements : list of mapping
        Of each record: rows of quality.csv.
    thresholds : mapping
        As `flag_records` returns them.
    duplicates : list of Duplicate
    off : collection of str
        Flags that are not given.
    """

    records: list[ImageRecord]
    measurements: Sequence[Mapping]
    thresholds: Mapping[str, float]
    duplicates: list[Duplicate]
    off: Collection[str] = ()

    @property
    def limits(self) -> str:
        """The limits in words, a line each: see `explain`."""
        return "\n".join(explain(self.thresholds, [record.flags for record in self.records], self.off))

    @property
    def flagged(self) -> str:
        """How many images are flagged, and a line for each: see `name_flagged`."""
        names = name_flagged(self.records, self.measurements, self.thresholds, self.duplicates)
        return "\n  ".join([f"{len(names)} of {counted(len(self.records), 'image')} flagged", *names])

    @property
    def summary(self) -> dict[str, object]:
        """What is kept of it in quality.json: see `quality_summary`."""
        return quality_summary(self.thresholds, [r.flags for r in self.records], self.duplicates, self.off)


def check_quality(converted: Any, root: str | Path, config: Any) -> QualityCheck:
    """Look for images that show one field, and take what is flagged out of training and validation.

    Parameters
    ----------
    converted : cellkit.sources.ingest.ConvertedImages
        The images with their flags, what was measured, and the limits.
    root : path
        The folder that the records' paths count from.
    config : ConvertConfig

    Raises
    ------
    UserError
        Copies in two splits, where ``convert.duplicates`` is "refuse".
    """
    records = converted.images.records
    duplicates = find_duplicates(records, converted.quality, root)
    if config.pseudo_held_out:  # asked for: a model labelled a test image, and it teaches
        made = dict(
            zip([r.image_id for r in records], zip(records, converted.images.made_by, strict=True), strict=True)
        )
        duplicates = [copy for copy in duplicates if not _teaches_as_asked(made[copy.first], made[copy.second])]
    kept = exclude_flagged(handle_duplicates(records, duplicates, config.duplicates))
    return QualityCheck(kept, converted.quality, converted.thresholds, duplicates, config.quality.off)


def _teaches_as_asked(*pair: tuple[ImageRecord, str]) -> bool:
    """Tell whether one of two images was labelled by a model to teach, and the other is a test image without labels."""
    kinds = {
        "teaches" if made_by == "proposed" else "asked" if r.split == "test" and not made_by else ""
        for r, made_by in pair
    }
    return kinds == {"teaches", "asked"}
