"""What a model costs on this machine, in seconds and memory: timed once on one labelled image."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cellkit.machine import peak_bytes

BATCH = 2  # crops of the step that is timed, unless told


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes, per crop of a training step and per megapixel at network scale, where cells are 30 px wide.

    Attributes
    ----------
    prepare_s : float
        To make the target of a training image, per megapixel.
    step_s : float
        To take a training step, per crop of the size that is set.
    find_s : float
        To find the cells of an image, per megapixel.
    search_s : float
        To search the thresholds on an image, where they are searched, per megapixel.
    step_bytes : float
        Memory that a step takes, per crop; of the device that the network is on.
    searches : int
        How often a training ends with a search: twice where its base is calibrated too.
    parameters, trained : int
        Numbers of a large network, and those that a training changes; 0 of one so small that they need no memory to speak of.
    device : str
        What it is computed on, "cpu" or "cuda"; "" where that makes no difference.
    weights_bytes, trained_bytes : int
        Of all numbers of the network as they are written, and of those that a training changes; 0 where nothing is.
    """

    prepare_s: float = 0.0
    step_s: float = 0.0
    find_s: float = 0.0
    search_s: float = 0.0
    step_bytes: float = 0.0
    searches: int = 1
    parameters: int = 0
    trained: int = 0
    device: str = ""
    weights_bytes: int = 0
    trained_bytes: int = 0


@dataclass(frozen=True)
class Course:
    """What a training with some settings does, beside the steps of one network; told by ``course_of(config, images)``.

    Attributes
    ----------
    networks : int
        That are trained, and each scored along on validation images.
    answers : int
        How often held-out images are looked at: by each of several networks that answer together.
    prepared : float
        How often the targets of all training images are made.
    unseen : float
        How often all training images are looked at afterwards.
    scored : bool
        Whether validation images are scored along the way.
    searched : bool
        Thresholds are searched on all training images, not on a few.
    most_mpx : float
        Of the training images, as the network sees them: more teach not.
    """

    networks: int = 1
    answers: int = 1
    prepared: float = 1.0
    unseen: float = 0.0
    scored: bool = True
    searched: bool = False
    most_mpx: float = float("inf")


def timed_cost(
    model: Any,
    loss_at: Callable,
    shape: tuple[int, int],
    prepare: Callable[[], Any],
    find: Callable[[], Any],
    search: Callable[[], Any],
    searches: int = 1,
    crops: int = BATCH,
    repeats: int = 2,
) -> Cost:
    """Time the parts of a training on one image; of two steps the first is not counted, as it also sets up.

    Parameters
    ----------
    model : torch.nn.Module
    loss_at : callable
        Step number -> scalar loss of that many `crops`; its gradients are computed here unless they have been.
    shape : (int, int)
        Height and width of the image at network scale.
    prepare, find, search : callable
        As in `Cost`, each of the one image.
    repeats : int
        How often a step and the finding of cells are timed; the best counts.
    """
    import torch

    def step() -> None:
        loss = loss_at(0)
        if loss.requires_grad:
            loss.backward()

    image = shape[0] * shape[1] / 1e6
    before, prepare_s = peak_bytes(), seconds_of(prepare)
    model.train()
    step_s = min(seconds_of(step) for _ in range(repeats))
    step_bytes = peak_bytes() - before
    model.eval()
    with torch.no_grad():
        find_s = min(seconds_of(find) for _ in range(repeats))
        search_s = seconds_of(search)
    per = prepare_s / image, step_s / crops, find_s / image, search_s / image, step_bytes / crops
    written = sum(bytes_of(one) for one in model.state_dict().values())
    trained = sum(bytes_of(one) for one in model.parameters() if one.requires_grad)
    return Cost(*per, searches, weights_bytes=written, trained_bytes=trained)


def bytes_of(tensor: Any) -> int:
    """Return how many bytes the numbers of a tensor are."""
    return tensor.numel() * tensor.element_size()


def seconds_of(call: Callable[[], Any]) -> float:
    """Return how long a call takes, in seconds."""
    begun = clock()
    call()
    return clock() - begun


def clock() -> float:
    """Return a time in seconds to take differences of: on one thread the processor's, which no other program disturbs."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
