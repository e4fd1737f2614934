"""The stage under way in this process, known to whoever reads, spends or loops for it; without one nothing is noted."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellkit.machine import processor_s

_RUNNING: list[weakref.ref] = []  # the stage under way in this process, if there is one
_MEASURED: list[str] = []  # the model whose cost is being measured


def note_running(stage: Any) -> None:
    """Let `note_reading` tell this stage from here on; None = no stage."""
    _RUNNING[:] = [] if stage is None else [weakref.ref(stage)]


def _stage() -> Any:
    return _RUNNING[0]() if _RUNNING else None


def note_reading(path: str | Path, key: str = "", by: str = "", name: str = "") -> None:
    """Note a file or folder that is about to be read as an input of the stage under way; without one, do nothing.

    To be called before it is read, so that a change meanwhile is found. What is not there is noted as missing.

    Parameters
    ----------
    path : path
    key : str
        What it is to the stage; by default its path.
    by : str
        How a name in the configuration led to it, and will again when the stage is checked: "data", "weights" or "card";
        "" = it is a path, counted from the current folder.
    name : str
        That name; by default the path as it came.
    """
    stage = _stage()
    if stage is not None:
        stage.note_reading(Path(path), key, by, name)


def note_no_effect(*keys: str) -> None:
    """Note settings of the stage under way that made no difference to it: another value makes it no stale one."""
    stage = _stage()
    if stage is not None:
        stage.note_no_effect(keys)


def workers_of_stage() -> int:
    """Return how many processes share the images of the stage under way, as its section says; 1 without a stage."""
    return getattr(_stage(), "workers", 1)


@contextmanager
def measured(model: str, what: str, mpx: float = 0.0) -> Iterator[None]:
    """Note what is spent within on a model with the stage under way, as its manifest tells it; without a stage, do nothing.

    Within another measurement nothing is noted: what a training predicts on its way is part of that training.

    Parameters
    ----------
    model : str
        The model, by the name of its predictions.
    what : str
        "train" or "find".
    mpx : float
        Megapixels whose cells are found within.
    """
    stage = _stage()
    if stage is None or _MEASURED:
        yield
        return
    _MEASURED.append(model)
    began, spent = time.monotonic(), processor_s()
    try:
        yield
    finally:
        _MEASURED.clear()
    stage.note_cost(model, what, time.monotonic() - began, processor_s() - spent, mpx)
