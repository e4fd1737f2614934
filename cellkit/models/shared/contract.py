"""What every backend is made of: fields of its settings, and what its `load` returns: images in, cells out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal
from uuid import uuid4

import numpy as np
from pydantic import Field

from cellkit.cells.instances import Instances
from cellkit.finding import opened_here
from cellkit.models.shared.in_windows import AsPictures, InWindows, WholeImage
from cellkit.settings import Frozen, Number

Diameter = Annotated[Number, Field(ge=2, le=2000)]
Area = Annotated[int, Field(ge=0, le=10**9)]
Share = Annotated[Number, Field(ge=0, le=1)]
Channels = Literal["both", "nuclei", "cytoplasm"]
Precision = Literal["auto", "float32", "bfloat16"]
SMALLEST = "smaller objects are dropped (px)"
PRECISION = "number type of convolutions; auto = bfloat16 where the processor or GPU has it, else float32"


class Segmenter:
    """A loaded model: a stream of (H, W, 3) uint8 images -> their `Instances`, in order, each image taken when needed.

    Parameters
    ----------
    find : callable
        (image, Counter) -> Instances; the counter takes the number of cells that are left out, cut or doubtful, by reason.
    settings : mapping
        What the model is read with, by name.
    bytes_for : callable, optional
        (height, width) -> bytes of memory that finding the cells of one image takes.
    in_windows : callable, optional
        `WholeImage` -> `InWindows`: the same model on an image that is larger than the memory. Unless given, each window is
        shown to it as a picture.
    whole_only : str, optional
        Why it needs whole images: then there are no windows.

    Attributes
    ----------
    left_out : Counter
        Cells by reason since somebody last took the counts, see `cellkit.cells.leftout.LeftOut`.
    opener : callable or None
        Opens the same model again, in another process; picklable, see `cellkit.finding.opens_again`.
    """

    opener: Callable[[], Segmenter] | None = None

    def __init__(
        self,
        find: Callable[[np.ndarray, Counter[str]], Instances],
        settings: Mapping[str, Any],
        bytes_for: Callable[[tuple[int, int]], int] = lambda shape: 0,
        in_windows: Callable[[WholeImage], InWindows] | None = None,
        whole_only: str = "",
    ):
        self.find, self.settings, self.bytes_for, self.left_out = find, dict(settings), bytes_for, Counter()
        self.whole_only, self._in_windows = whole_only, in_windows

    @property
    def diameter_px(self) -> float | None:
        """Of the cells that it is told to look for (px)."""
        return self.settings.get("diameter_px")

    def in_windows(self, whole: WholeImage) -> InWindows:
        """Return the same model on an image that is larger than the memory."""
        return AsPictures(self, whole) if self._in_windows is None else self._in_windows(whole)

    def __call__(self, images: Iterable[np.ndarray]) -> Iterator[Instances]:
        """Yield the cells of each image."""
        for image in images:
            yield self.find(image, self.left_out)

    def __reduce__(self) -> tuple[Callable, tuple[Any, ...]]:
        """Be, in another process, the model that is opened there, once however often it is sent."""
        if self.opener is None:
            raise TypeError("this model cannot be opened in another process: its load lacks @opens_again")
        self.key = getattr(self, "key", "") or uuid4().hex
        return opened_here, (self.opener, self.key, os.getcwd())


class BatchSegmenter(Segmenter):
    """A loaded model that looks at several images together: it may take images ahead of the cells that it yields.

    Parameters
    ----------
    find_each : callable
        Stream of images -> (`Instances`, Counter) of each, in order; the counter as for `Segmenter`.
    settings, bytes_for, in_windows, whole_only
        As for `Segmenter`.
    """

    def __init__(
        self,
        find_each: Callable[[Iterable[np.ndarray]], Iterator[tuple[Instances, Counter[str]]]],
        settings: Mapping[str, Any],
        bytes_for: Callable[[tuple[int, int]], int] = lambda shape: 0,
        in_windows: Callable[[WholeImage], InWindows] | None = None,
        whole_only: str = "",
    ):
        self.find_each, self.settings, self.bytes_for, self.left_out = find_each, dict(settings), bytes_for, Counter()
        self.whole_only, self._in_windows = whole_only, in_windows

    def __call__(self, images: Iterable[np.ndarray]) -> Iterator[Instances]:
        """Yield the cells of each image."""
        for found, left_out in self.find_each(images):
            self.left_out.update(left_out)
            yield found


def merged(settings: Any, card: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return, for each of the defaults: what the caller set, else what the card of the checkpoint says, else the default.

    Parameters
    ----------
    settings : Settings or None
        None, as a whole or in a field = not set.

    Examples
    --------
    >>> merged(None, {"b": 2}, {"a": 1, "b": 1})
    {'a': 1, 'b': 2}
    """
    given = {name: getattr(settings, name, None) for name in defaults}
    return {
        name: next((value for value in (given.get(name), card.get(name)) if value is not None), default)
        for name, default in defaults.items()
    }


class Computed(Frozen):
    """What a network computes in, see `cellkit.machine.arithmetic`."""

    precision: Precision = Field("auto", description=f"{PRECISION}; the top-level one unless set")


class SharesBatches(Frozen):
    """In how many processes a network is trained, see `cellkit.models.shared.processes`."""

    gpus: int = Field(
        1,
        ge=1,
        le=64,
        description="GPUs that share each batch, or processes where there is none; changes a result by rounding alone; needs "
        "accelerate",
        json_schema_extra={"hash": False},
    )


class SharesCrops(Frozen):
    """In how many processes a network is trained that each look at crops of their own, see `cellkit.models.shared.shares`."""

    gpus: int = Field(
        1,
        ge=1,
        le=64,
        description="GPUs that share each batch, or processes where there is none; what is drawn and normalised depends on how "
        "many, so a result differs as with another seed; needs accelerate",
    )


class KeepsMaps(Frozen):
    """Where a network's maps are kept while they are needed again, see `cellkit.models.map_cache`."""

    map_cache_gb: Number = Field(
        1.0,
        ge=0,
        le=1000,
        description="most disk space that the network's maps take while a training is under way (GB); 0 = none are kept",
        json_schema_extra={"hash": False},
    )


class Schedule(Frozen):
    """How long and how fast a network is trained, see `cellkit.models.training.Plan`; and on which crops and images."""

    seed: int = Field(0, ge=0, lt=2**63, description="random seed; the top-level seed unless set here")
    steps: int = Field(300, ge=1, description="most optimiser steps")
    batch_size: int = Field(8, ge=1, description="crops per step")
    crop_px: int = Field(160, ge=32, multiple_of=8, description="height and width of a crop (px)")
    learning_rate: Number = Field(1e-3, gt=0, le=1, description="largest learning rate")
    weight_decay: Number = Field(1e-4, ge=0, le=1, description="AdamW weight decay")
    warmup_steps: int = Field(20, ge=0, description="steps over which the learning rate rises from 0")
    warmup_share: Share = Field(
        1.0, description="most of the steps that the learning rate may rise over; 1 = warmup_steps alone count"
    )
    hold_share: Share = Field(
        0.0, description="of the steps after that, those at the largest rate; during the others it falls along a cosine"
    )
    average_steps: int = Field(
        0,
        ge=0,
        le=10**6,
        description="steps over which the weights are averaged, exponentially, to be scored and kept; 0 = not averaged",
    )
    eval_every: int = Field(50, ge=1, description="steps between two scores on validation images")
    patience: int = Field(6, ge=1, description="evaluations without a better score before training stops")
    min_area_px: Area = Field(15, description=SMALLEST)
    val_images: int = Field(0, ge=0, description="most whole images scored during training; 0 = all")
    tensorboard: bool = Field(
        False,
        description="write the curves for TensorBoard too, to the stage's folder tensorboard/; needs the package tensorboard",
        json_schema_extra={"hash": False},
    )
