"""What a model costs on this machine: seconds and memory per megapixel, timed once on one labelled image."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cellkit.machine import peak_bytes

BATCH, CROP_PX = 4, 128  # of the step that is timed


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes per megapixel at network scale, where cells are 30 px wide.

    Attributes
    ----------
    prepare_s : float
        To make the target of a training image.
    step_s : float
        To take a training step, per megapixel of its crops.
    find_s : float
        To find the cells of an image.
    search_s : float
        To search the thresholds on an image, where they are searched.
    step_bytes : float
        Memory that a step takes, per megapixel of its crops.
    searches : int
        How often a training ends with a search: twice where its base is calibrated too.
    """

    prepare_s: float
    step_s: float
    find_s: float
    search_s: float
    step_bytes: float
    searches: int = 1


def timed_cost(
    model: Any,
    loss_at: Callable,
    shape: tuple[int, int],
    prepare: Callable[[], Any],
    find: Callable[[], Any],
    search: Callable[[], Any],
    searches: int = 1,
) -> Cost:
    """Time the parts of a training on one image; the first step is not counted, as it also sets up.

    Parameters
    ----------
    model : torch.nn.Module
    loss_at : callable
        Step number -> scalar loss of `BATCH` crops of `CROP_PX`.
    shape : (int, int)
        Height and width of the image at network scale.
    prepare, find, search : callable
        As in `Cost`, each of the one image.
    """
    import torch

    crops, image = BATCH * CROP_PX**2 / 1e6, shape[0] * shape[1] / 1e6
    before, prepare_s = peak_bytes(), _seconds(prepare)
    model.train()
    step_s = min(_seconds(lambda: loss_at(0).backward()) for _ in range(2))
    step_bytes = peak_bytes() - before
    model.eval()
    with torch.no_grad():
        find_s = min(_seconds(find) for _ in range(2))
        search_s = _seconds(search)
    return Cost(prepare_s / image, step_s / crops, find_s / image, search_s / image, step_bytes / crops, searches)


def _seconds(call: Callable[[], Any]) -> float:
    begun = clock()
    call()
    return clock() - begun


def clock() -> float:
    """Return a time in seconds to take differences of: on one thread the processor's, which no other program disturbs."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
