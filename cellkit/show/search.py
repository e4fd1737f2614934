"""The picture of a search: what every trial scored with few steps and with more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellkit.show.style import dress, figure_or_new, styled

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEST, OTHER = "#0072B2", "#A8ADB5"


@styled
def show_search(table: pandas.DataFrame, figure: Figure | None = None) -> Axes:
    """Show the trials of a search: a line for each, from rung to rung; the best one named.

    Parameters
    ----------
    table : DataFrame
        ``search.csv``: trial, rung, steps, images, score, goes_on, and a column for each setting.

    Returns
    -------
    Axes
    """
    ax = figure_or_new(figure, (6.0, 3.8)).subplots()
    last = table[table["rung"] == table["rung"].max()].iloc[0]
    ticks = table.drop_duplicates("rung").sort_values("rung")
    for trial, rows in table.groupby("trial"):
        is_best = trial == last["trial"]
        ax.plot(rows["rung"], rows["score"], "-o", lw=2.2 if is_best else 1.2, ms=5 if is_best else 3,
                color=BEST if is_best else "#000000" if trial == 0 else OTHER, zorder=4 if is_best else 3)  # fmt: skip
    names = [name for name in table.columns if "." in name]
    told = ", ".join(f"{name.partition('.')[2]} {last[name]}" for name in names)
    where = {"textcoords": "offset points", "ha": "right" if len(ticks) > 1 else "center"}
    text = f"trial {last['trial']}: {told}\n{last['score']:.3f}"
    ax.annotate(text, (last["rung"], last["score"]), (0, 9), fontsize=9, color=BEST, **where)
    ax.set(xlabel="training steps (black: the configuration as it is)", ylabel="MAP IoU, images that choose")
    ax.set_xticks(ticks["rung"], ["" if steps != steps else f"{steps:g}" for steps in ticks["steps"].astype(float)])
    ax.margins(y=0.18)
    return dress(ax, "y")
