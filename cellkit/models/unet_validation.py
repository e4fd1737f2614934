"""How a U-Net scores on whole images while it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.log import LOG
from cellkit.models.map_cache import cache_in
from cellkit.models.shared.fine_tuning import map_iou
from cellkit.models.shared.processes import of_first
from cellkit.models.unet_batches import SCRATCH
from cellkit.models.unet_maps import segment_image
from cellkit.models.unet_search import unpromising


class Scorer:
    """() -> MAP IoU (kaggle convention, mean of whole images) of the network on the validation images.

    Parameters
    ----------
    settings : dict
        As for `segment_image`.
    base : str
        Name of the weights that training starts from.
    folder : Path
        Of the checkpoints; the maps are kept there for who predicts the same images with the same weights.
    map_cache_gb : float
        Disk space for them; 0 = none are kept.
    """

    def __init__(
        self,
        network,
        pairs: Sequence[tuple[np.ndarray, Instances]],
        settings: dict,
        base: str = "",
        folder: Path = Path(),
        map_cache_gb: float = 0,
    ):
        self.network, self.pairs, self.settings, self.base = network, pairs, settings, base
        self.folder, self.map_cache_gb = folder, map_cache_gb

    def __call__(self) -> float:
        """Return the score; once, say where the weights that training starts from find nothing."""
        from cellkit.parallel import progress

        cache = cache_in(self.folder, self.network, self.map_cache_gb)
        settings = {**self.settings, "cache": cache}
        found = [segment_image(self.network, image, **settings) for image, _ in progress(self.pairs, "validation")]
        score = of_first(map_iou(zip([truth for _, truth in self.pairs], found, strict=True)))
        if self.base not in ("", SCRATCH) and not score and any(len(truth) for _, truth in self.pairs):
            LOG.info(unpromising(self.base, sum(map(len, found)), len(self.pairs), self.settings))
        self.base = ""  # said once, of the weights that training starts from
        return score
