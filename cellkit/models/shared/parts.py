"""Networks that each leave out a part of the training images: what they say of it is as of new images, and chooses thresholds.

Together they answer for new images, by the mean of their answers. So every labelled image teaches, and every one chooses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.errors import UserError, counted
from cellkit.models.gate import unit_of
from cellkit.models.training_state import History, read_history

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset


def held_parts(train: CellDataset, parts: int, seed: int) -> np.ndarray:
    """Return which images each network leaves out, (parts, N) bool: every image is left out by one, and no group is divided.

    Fewer parts where there are fewer images or groups; a single row of False, one network that leaves out nothing, for one.

    Examples
    --------
    >>> from cellkit.cells.dataset import CellDataset
    >>> from cellkit.cells.instances import Instances
    >>> from cellkit.cells.records import ImageRecord
    >>> images = CellDataset([ImageRecord(str(k), "", 4, 4) for k in range(7)], [Instances.empty((4, 4))] * 7)
    >>> held_parts(images, 3, seed=0).sum(axis=1).tolist(), held_parts(images, 1, seed=0).any()
    ([3, 2, 2], np.False_)
    """
    from cellkit.cells.splits import k_folds

    most = min(parts, len({unit_of(record) for record in train.records}))
    if most < 2:
        return np.zeros((1, len(train)), bool)
    folds = k_folds(train.records, most, seed, by="group")
    names = [{record.image_id for record in fold} for fold in folds]
    return np.array([[record.image_id in own for record in train.records] for own in names])


def train_parts(backend: ModuleType, train: CellDataset, config: Any, out: Path) -> list[Path]:
    """Train a network on all images but one part, for each part, and return their checkpoints; no image chooses weights.

    Parameters
    ----------
    config
        Settings of the backend's training, with `parts`, `diameter_px` (null = that of all images) and `seed`, from which each
        network has one of its own.
    out : Path
        Folder for a folder of each network, ``part_1`` and so on, and ``history.csv``, the mean of theirs.

    Raises
    ------
    UserError
        Fewer than two images, or groups of images: none can be left out.
    """
    from cellkit.models.shared.diameter import diameter_of

    held = held_parts(train, config.parts, config.seed)
    if len(held) < 2:
        groups = len({unit_of(record) for record in train.records})
        raise UserError(
            f"{counted(groups, 'training image')} or group of images, and {counted(config.parts, 'part')}: none can be left out",
            "give two images or more, of two groups or more",
        )
    paths, same = [], {"diameter_px": config.diameter_px or diameter_of(train.instances)}
    for number, own in enumerate(held):
        settings = config.model_copy(update=same | {"seed": config.seed + number})
        paths.append(backend.train(train.subset(~own), train.subset([]), settings, Path(out) / f"part_{number + 1}"))
    history_of([read_history(path.parent / "history.csv") for path in paths]).write(Path(out) / "history.csv")
    return paths


def history_of(histories: Sequence[History]) -> History:
    """Return the mean history of several trainings: of each step, the mean of those that came so far.

    The best step and how it ended are those of most of them.
    """
    if len(histories) == 1:
        return histories[0]
    rows = []
    for step in sorted({row["step"] for history in histories for row in history.rows}):
        own = [row for history in histories for row in history.rows if row["step"] == step]
        rows.append({name: float(np.mean([row[name] for row in own])) for name in own[0]} | {"step": step})
    best, stopped = (Counter(values).most_common(1)[0][0] for values in zip(*_ends(histories), strict=True))
    return History(rows, best, float(np.mean([history.best_score for history in histories])), stopped)


def _ends(histories: Sequence[History]) -> list[tuple[int, str]]:
    return [(history.best_step, history.stopped) for history in histories]
