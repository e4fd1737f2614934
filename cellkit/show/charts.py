"""Charts of scores: by threshold, by model, along a training; what is gained, and which classes are confused."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.records import SPLIT_IMAGES
from cellkit.errors import UserError, counted
from cellkit.models import model_name, order_models
from cellkit.models.weights import read_card
from cellkit.scores.attribution import gains
from cellkit.scores.intervals import Difference
from cellkit.show.style import (
    FAINT,
    INK,
    QUIET,
    axes_or_new,
    dress,
    figure_or_new,
    model_looks,
    rows_only,
    shortened,
    styled,
    words_only,
)

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _all_objects(table: pandas.DataFrame) -> pandas.DataFrame:
    """Keep the rows about all objects, whatever their class and size."""
    plain = table["class_name"].fillna("").astype(str) == ""
    return table[plain & (table["size"].fillna("").astype(str) == "")] if "size" in table else table[plain]


def _by_model(table: pandas.DataFrame | Mapping[str, pandas.DataFrame]) -> dict[str, pandas.DataFrame]:
    if isinstance(table, Mapping):
        return {name: table[name] for name in order_models(table)}
    if "model" not in table:
        return {"": table}
    return {name: table[table["model"] == name] for name in order_models(table["model"].unique())}


def splits_of(table: Any) -> list[str]:
    """Return the splits a table tells apart; [] for one, or none."""
    known = list(dict.fromkeys(table["split"])) if hasattr(table, "columns") and "split" in table else []
    return [name for name in ("train", "val", "test") if name in known] if len(known) > 1 else []


@styled
def show_curves(
    table: pandas.DataFrame | Mapping[str, pandas.DataFrame], ax: Axes | None = None, title: str = ""
) -> Axes | np.ndarray:
    """Show TP / (TP + FP + FN) over the IoU thresholds, one line per model; its mean is the MAP IoU in the legend.

    Parameters
    ----------
    table : DataFrame or dict
        Of `score_table`, with a column `model`; or name -> table. Mean of the images; an image with nothing on
        either side counts 1. A table of several splits gets Axes for each, unless `ax` is given.

    Raises
    ------
    UserError
        Scores of several splits are given for one Axes.
    """
    splits = splits_of(table)
    if splits and ax is not None:
        raise UserError(f"scores of the splits {', '.join(splits)} for one picture", "give those of one split")
    if splits:
        axes = figure_or_new(None, (5.4 * len(splits), 4.2)).subplots(1, len(splits), sharey=True)
        for one, split in zip(axes, splits, strict=True):
            show_curves(table[table["split"] == split], one, f"{title} {SPLIT_IMAGES[split]}".strip())
            one.label_outer()
        return axes
    ax, tables = axes_or_new(ax, (5.6, 4.2)), _by_model(table)
    looks = model_looks(tables)
    curves = {name: curve_of(rows) for name, rows in tables.items() if len(_all_objects(rows))}
    for name in sorted(curves, key=lambda key: -curves[key].mean()):
        curve, label = curves[name], f"{model_name(name)}  {curves[name].mean():.3f}".strip()
        ax.plot(curve.index, curve, label=label, lw=2, ms=5, clip_on=False, zorder=3, **looks[name])
    ax.set(xlabel="IoU threshold (a hit is above it)", ylabel="TP / (TP + FP + FN), mean of images", ylim=(0, 1))
    if curves:
        where = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 3.4}
        ax.legend(title="MAP IoU", ncols=2, title_fontsize=9, handlelength=3.2, **where)
    ax.set_title(title)
    return dress(ax, "y")


def curve_of(table: pandas.DataFrame) -> pandas.Series:
    """Return the mean over images of TP / (TP + FP + FN) at each threshold; nothing on either side counts 1."""
    rows = _all_objects(table)
    total = rows["tp"] + rows["fp"] + rows["fn"]
    share = (rows["tp"] / total.where(total > 0, 1)).where(total > 0, 1.0)
    return share.groupby(rows["threshold"]).mean()


@styled
def show_scores(frame: pandas.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Show scores as points with their intervals: a row per model, where there are several splits in each of them.

    Parameters
    ----------
    frame : DataFrame
        `summary` of several models, with a column `model`: model, split, score, low, high.
    """
    parts = list(dict.fromkeys(frame["split"])) if splits_of(frame) else [""]
    models = order_models(frame["model"].unique())
    looks = model_looks(models)
    ax = axes_or_new(ax, (6.2, 0.7 + 0.38 * len(parts) * len(models)))
    places, labels, place = [], [], 0.0
    for part in parts:
        rows = frame[frame["split"] == part] if part else frame
        if part:
            ax.text(
                0.0, place - 0.62, SPLIT_IMAGES.get(part, part), ha="left", va="center", fontsize=9.5, weight="bold"
            )
        for name in models:
            for line in rows[rows["model"] == name].itertuples():
                _point(ax, line, place, looks[name])
                places.append(place)
                labels.append(model_name(name))
                place += 1
        place += 0.9
    if not places:
        ax.text(0.5, 0.0, "nothing is scored: no image was labelled by a person", ha="center", va="center", color=QUIET)
    ax.set_yticks(places, labels)
    ax.set(xlim=(0, 1), ylim=(max(places, default=0) + 0.6, -1.0 if parts[0] else -0.6), xlabel="MAP IoU")
    ax.set_title(title)
    rows_only(ax).tick_params(axis="y", pad=8)  # a marker at 0 stands beside the name
    return ax


def _point(ax: Axes, line: Any, place: float, look: Mapping[str, str]) -> None:
    if not np.isfinite(line.score):
        return
    reach = line.score
    if np.isfinite(line.low) and np.isfinite(line.high):
        ax.plot([line.low, line.high], [place, place], color=look["color"], lw=3, alpha=0.45, solid_capstyle="butt")
        reach = max(line.high, line.score)
    ax.plot([line.score], [place], color=look["color"], marker=look["marker"], ms=7, ls="none", clip_on=False)
    least = line.low if np.isfinite(line.low) else line.score
    if reach < 0.88:
        beside, (shift, up), how = reach, (7, 0), {"ha": "left", "va": "center"}
    elif least > 0.12:
        beside, (shift, up), how = least, (-9, 0), {"ha": "right", "va": "center"}
    else:  # no room on either side of the interval
        beside, (shift, up), how = line.score, (0, 4), {"ha": "center", "va": "bottom"}
    ax.annotate(f"{line.score:.3f}", (beside, place), (shift, up), textcoords="offset points", **how)


@styled
def show_history(history: Any, figure: Figure | None = None, score: str = "MAP IoU") -> np.ndarray:
    """Show a training: loss above, validation score below with the weights that were kept marked.

    Parameters
    ----------
    history : path or DataFrame, or name -> path or DataFrame, or None
        ``history.csv``: step, loss (mean since the row before), score, seconds, and ``iou_<class>`` where classes of pixels are
        learned. None: the model did not learn step by step.
    score : str
        What the score is.

    Returns
    -------
    (2,) Axes
        A third where one training tells the IoU of each class of pixels. Of None one, which says so.
    """
    from matplotlib.ticker import MaxNLocator

    if history is None:
        return np.array([words_only("this model does not learn step by step: there is no curve", figure=figure)])
    histories = history if isinstance(history, Mapping) else {"": history}
    kinds = [name for name in _history_rows(history) if name.startswith("iou_")] if "" in histories else []
    figure = figure_or_new(figure, (5.6, 6.6 if kinds else 4.6))
    axes = figure.subplots(3 if kinds else 2, 1, sharex=True)
    looks = model_looks(histories)
    for name, one in histories.items():
        rows = _history_rows(one)
        look = looks[name] if name else {"color": "#0072B2", "marker": "o", "linestyle": "-"}
        label = model_name(name)
        lossy = rows[rows["loss"].notna()]
        whole = {"label": label, "lw": 2, "ms": 4, "clip_on": False, "zorder": 3}
        axes[0].plot(lossy["step"], lossy["loss"], **whole, **look)
        axes[1].plot(rows["step"], rows["score"], **whole, **look)
        if rows["score"].notna().any():
            kept = rows["kept"].astype(bool) if "kept" in rows else rows["score"] == rows["score"].max()
            best = rows[kept].iloc[0] if kept.any() else rows.iloc[-1]
            ring = {"mfc": "none", "mec": look["color"], "mew": 1.6, "clip_on": False, "zorder": 4}
            axes[1].plot([best["step"]], [best["score"]], "o", ms=13, **ring)
            low = best["score"] < 0.25  # then the words stand above
            axes[1].annotate(
                f"kept: step {best['step']:.0f}, {best['score']:.3f}", (best["step"], best["score"]), (0, 12 if low else -12),
                textcoords="offset points", fontsize=9, va="bottom" if low else "top",
                ha="right" if best["step"] > rows["step"].mean() else "left",
            )  # fmt: skip
    axes[0].set(ylabel="training loss", ylim=(0, 1.08 * max(axes[0].get_ylim()[1], 1e-9)))
    scored = any(_history_rows(one)["score"].notna().any() for one in histories.values())
    note = next((text for one in histories.values() if scored and (text := _read_at(one))), "")
    if not scored:
        axes[1].text(0.5, 0.5, "no image was scored along the way", ha="center", transform=axes[1].transAxes)
    axes[1].set(ylabel=textwrap.fill(f"validation {score}", 28), ylim=(0, 1))
    if kinds:
        _draw_classes(axes[2], _history_rows(history), kinds)
    axes[-1].set(xlabel=f"training step{note}")
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes:
        dress(ax, "y").margins(x=0.03)
    if "" not in histories:
        axes[0].legend()
    return axes


def _draw_classes(ax: Axes, rows: pandas.DataFrame, columns: Sequence[str]) -> None:
    """Draw the IoU of each class of pixels along a training."""
    looks = model_looks(columns)
    for name in columns:
        ax.plot(rows["step"], rows[name], lw=2, ms=4, clip_on=False, label=name.removeprefix("iou_"), **looks[name])
    ax.set(ylabel="IoU of pixels", ylim=(0, 1))
    ax.legend(ncols=3, fontsize=8)


@styled
def show_interval(draws: np.ndarray, gain: Difference | None, ax: Axes | None = None, title: str = "") -> Axes:
    """Show where a bootstrap interval comes from: the mean gains of drawn images, and the interval that their spread gives.

    Parameters
    ----------
    draws : (B,) float
        As `scores.table.bootstrap_draws` returns them.
    gain : Difference, optional
        The difference and its interval; None where there are no two models to compare.
    """
    if gain is None or not len(draws):
        return words_only("no interval: it takes two models, and two images or groups that judge", ax)
    ax = axes_or_new(ax, (5.2, 2.2))
    ax.hist(draws, bins=40, color=FAINT)
    top = ax.get_ylim()[1]
    ax.plot([gain.low, gain.high], [top / 2] * 2, color=INK, lw=2)
    ax.plot([gain.difference], [top / 2], "o", color=INK, ms=7)
    ax.axvline(0, color=INK, lw=1, ls="--")
    ax.set(xlabel="MAP IoU, tuned minus base", ylabel=f"of {len(draws)} draws", title=title)
    return ax


def _read_at(history: Any) -> str:
    """Say why the curve's first and kept points are not the scores of base and tuned in the tables beside it."""
    if not isinstance(history, str | Path):
        return ""
    cards = {path.stem: read_card(path) for path in sorted(Path(history).parent.glob("cellpose_*.safetensors"))}
    if "cellpose_tuned" not in cards:
        return ""
    read_at = cards["cellpose_tuned"].metrics.get("read_at", {})
    own = {
        name.removeprefix("cellpose_"): {key: card.config[key] for key in read_at if key in card.config}
        for name, card in cards.items()
    }
    if all(one == read_at for one in own.values()):
        return ""
    word = lambda value: value if isinstance(value, str) else f"{value:g}"  # noqa: E731
    others = ", ".join(f"{name} at {' and '.join(map(word, one.values()))}" for name, one in own.items())
    note = (
        f"the curve is read at {' and '.join(f'{key} {word(value)}' for key, value in read_at.items())}; "
        f"the scores in the tables are not the curve's: each model is read there at the settings that suit it ({others})"
    )
    return "\n" + textwrap.fill(note, 62)


def _history_rows(history: Any) -> pandas.DataFrame:
    import pandas as pd

    rows = history if isinstance(history, pd.DataFrame) else pd.read_csv(history)
    missing = [name for name in ("step", "loss", "score") if name not in rows]
    if missing:
        raise UserError(
            f"{history} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}",
            "give the history.csv of a training",
        )
    return rows


@styled
def show_gains(attribution: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """Show what the MAP IoU would gain if one kind of fault were repaired: `attribution.attribute` of one model."""
    rows = gains(attribution)
    ax = axes_or_new(ax, (5.6, 0.8 + 0.4 * len(rows)))
    ax.barh(np.arange(len(rows)), rows["gain"], 0.62, color="#0072B2")
    for place, line in enumerate(rows.itertuples()):
        where = f"{counted(line.cells, 'cell')} in {counted(line.images, 'image')}"
        text = f"{line.gain:.3f}   {where}" if line.cells else "no such cell"
        ax.annotate(text, (line.gain, place), (6, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(rows)), rows["kind"])
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlabel="MAP IoU given back by repairing this kind alone")
    room_beside(ax, rows["gain"], 1.0, 2.4, 0.1)
    return rows_only(ax)


def room_beside(ax: Axes, lengths: Sequence[float], most: float, times: float, least: float) -> None:
    """Leave room for the words beside bars, `times` the longest (`least` at least), with no tick beyond `most`."""
    limit = max(least, times * max(lengths, default=0.0))
    ax.set_xlim(0, limit)
    ax.set_xticks([tick for tick in ax.get_xticks() if 0 <= tick <= min(most, limit)])


WIDE_NAME = 13  # letters that stand below a column


def confusion_size(confusion: pandas.DataFrame) -> tuple[float, float]:
    """Return width and height (inches) of a confusion matrix: of its cells, and of names that are long."""
    longest = max(len(shortened(str(name))) for name in [*confusion.columns, *confusion.index])
    tilted = 0.045 * longest if longest > WIDE_NAME else 0.0
    return 1.8 + 1.1 * len(confusion.columns) + 0.07 * max(longest - WIDE_NAME, 0), 1.2 + 0.75 * len(confusion) + tilted


@styled
def show_confusion(confusion: pandas.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Show the confusion matrix of the classes of matched cells: rows truth, columns found (`class_accuracy`)."""
    ax = axes_or_new(ax, confusion_size(confusion))
    values = confusion.to_numpy(float)
    share = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    for (row, column), n in np.ndenumerate(values):
        text = f"{n:.0f}\n{100 * share[row, column]:.0f} %"
        ax.text(column, row, text, ha="center", va="center", color="white" if share[row, column] > 0.62 else INK)
    found, true = ([shortened(str(name)) for name in names] for names in (confusion.columns, confusion.index))
    tilted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, found)) > WIDE_NAME else {}
    ax.set_xticks(range(len(found)), found, color=INK, **tilted)
    ax.set_yticks(range(len(true)), true, color=INK)
    ax.set(xlabel="found as", ylabel="truth")
    ax.set_title(title)
    dress(ax).tick_params(length=0, labelcolor=INK)
    ax.spines[:].set_visible(False)
    return ax
