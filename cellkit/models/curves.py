"""The curves of a training for TensorBoard, while it is under way; ``history.csv`` has the same numbers."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cellkit.errors import UserError

FOLDER = "tensorboard"
MISSING = "tensorboard: true needs the package 'tensorboard'", 'pip install "tensorboard>=2.18", or leave it out'


class Curves:
    """Writes loss, score and learning rate to ``tensorboard/`` in the folder of a training, or nothing.

    Parameters
    ----------
    out : Path
        The folder of the training.
    wanted : bool
        If not, nothing is written.
    rows : sequence of mapping
        Of the history that the training goes on from. What an earlier process wrote beyond it is superseded; where there is
        none, curves of another training in that folder are removed.

    Raises
    ------
    UserError
        Curves are wanted, and the package tensorboard is not there.
    """

    def __init__(self, out: Path, wanted: bool, rows: list[Mapping[str, Any]]):
        self.writer = None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise UserError(*MISSING) from error
        folder = Path(out) / FOLDER
        if not rows:
            shutil.rmtree(folder, ignore_errors=True)
        self.writer = SummaryWriter(str(folder), purge_step=rows[-1]["step"] + 1 if rows else None)

    def add(self, row: Mapping[str, Any], rate: float) -> None:
        """Write a row of the history, and the learning rate, over its ``step``; what is no number is left out."""
        if self.writer is None:
            return
        told = {name: value for name, value in row.items() if name not in ("step", "seconds")} | {"learning rate": rate}
        for name, value in told.items():
            if math.isfinite(value):
                self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def close(self) -> None:
        """End the file."""
        if self.writer is not None:
            self.writer.close()


def check_curves(wanted: bool) -> None:
    """Refuse curves that could not be written, before anything is made ready for a training.

    Raises
    ------
    UserError
        As `Curves`.
    """
    if wanted and find_spec("tensorboard") is None:
        raise UserError(*MISSING)
