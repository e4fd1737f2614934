"""Cellpose-SAM, the vision transformer of Cellpose 4: a foundation model of 305 million parameters, for a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from cellkit.cells.instances import Instances
from cellkit.models.map_cache import FOLDER, cache_in
from cellkit.models.sam_maps import DEFAULTS, KEPT_AS, segment_images
from cellkit.models.shared.contract import SMALLEST, Area, BatchSegmenter, Computed, Diameter, merged
from cellkit.models.shared.inputs import CELL_PX, Doubts, bytes_for
from cellkit.models.shared.thresholds import FlowError, Logit, stricter  # noqa: F401 - stricter: an ability
from cellkit.settings import Percentiles

NAME = "cellpose_sam"
TITLE = "Cellpose-SAM"
REQUIRES = ("torch", "cellpose", "segment_anything")
BYTES_PER_PX = 150  # of memory, at network scale
CHANNELS = (
    "what the network is shown, in any order, each channel as the run's channel map has it: all three, both = cytoplasm and "
    "nuclei, or one"
)


class Settings(Computed):
    """What may change from prediction to prediction; null = as the checkpoint's card says."""

    diameter_px: Diameter | None = Field(
        None, description="typical cell diameter (px), which becomes 30; null = images are taken as they are"
    )
    channels: Literal["all", "both", "nuclei", "cytoplasm"] | None = Field(None, description=CHANNELS)
    flow_threshold: FlowError | None = Field(
        None, description="largest error of a mask's flows; 0 = no check; null = the model's own"
    )
    cellprob_threshold: Logit | None = Field(
        None, description="logit above which a pixel belongs to a cell; null = the model's own"
    )
    min_area_px: Area | None = Field(None, description=SMALLEST)
    normalise: Percentiles | None = Field(
        None, description="percentiles of a channel that the network is shown as 0 and 1; null = the model's own"
    )
    squares_at_once: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="squares of 256 px that the network is shown together; null = 1 on a processor, 32 on a GPU",
    )


def load(checkpoint: Path, settings: Settings | None = None) -> BatchSegmenter:
    """Return a function from a stream of (H, W, 3) uint8 images to their cells, in order.

    On a GPU images are taken ahead, until there are squares enough for the network.

    Parameters
    ----------
    checkpoint : Path
        Ours (safetensors with a card) or one of Cellpose 4.
    settings : Settings, optional
        What is None comes from the card.

    Raises
    ------
    UserError
        No checkpoint there, or one of another network.
    """
    from cellkit.models.sam_network import applied_only, load_network

    network, card = load_network(checkpoint, getattr(settings, "precision", None))
    used = merged(settings, card, DEFAULTS)
    kept = (Path(checkpoint).parent / FOLDER).is_dir()  # so it is while the stage that made the checkpoint is under way
    cache = cache_in(Path(checkpoint).parent, network, card.get("map_cache_gb", 0), KEPT_AS) if kept else None
    network = applied_only(network)
    at_once, doubts = getattr(settings, "squares_at_once", None), Doubts(used["channels"])

    def find_each(images: Iterable[np.ndarray]) -> Iterator[tuple[Instances, Counter[str]]]:
        for image, found, left_out in segment_images(network, images, **used, cache=cache, at_once=at_once):
            doubts.note(image, found, left_out)
            yield found, left_out

    diameter_px = used["diameter_px"] or CELL_PX
    return BatchSegmenter(find_each, used, lambda shape: bytes_for(shape, diameter_px, BYTES_PER_PX))
