"""Two models on the same images: is one better?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cellkit.errors import UserError
from cellkit.scores.intervals import BOOTSTRAP, Difference, Units, reach, standard_error
from cellkit.scores.table import per_image

if TYPE_CHECKING:
    import pandas


def paired_bootstrap(
    table_a: pandas.DataFrame, table_b: pandas.DataFrame, n: int = BOOTSTRAP, seed: int = 0
) -> Difference:
    """Compare two models on the same images: MAP IoU of B minus that of A, drawing whole groups of images.

    Returns
    -------
    Difference
        With its 95 % interval (nan for fewer than two images or groups), and whether B is better beyond doubt.

    Raises
    ------
    UserError
        The tables are not of the same images.
    """
    tables = [per_image(table).set_index("image_id") for table in (table_a, table_b)]
    a, b = (table["score"] for table in tables)
    if set(a.index) != set(b.index):
        only = sorted(set(a.index) ^ set(b.index))
        raise UserError(
            f"{len(only)} image(s) are in one table only, e.g. '{only[0]}'", "score both models on the same images"
        )
    gain = (b.loc[a.index] - a).to_numpy(float)
    units = Units.of(list(tables[0]["group"]), len(gain))
    error = standard_error(lambda weights: weights @ gain / weights.sum(axis=1), units, n, seed)
    value, half = float(gain.mean()) if len(gain) else np.nan, reach(error, units.count)
    low, high, alone = max(value - half, -1.0), min(value + half, 1.0), units.kind == "image of one group"
    return Difference(value, low, high, len(gain), units.count, error, alone)
