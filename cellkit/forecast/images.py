"""The images of a run, as far as they are known before it: pixels, splits, the size of cells, who teaches and judges."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.cluster.kinds import default_workers
from cellkit.config.recipes import section_at
from cellkit.config.sections import Config, Section
from cellkit.forecast.costing import scale_px, told
from cellkit.forecast.sample import USUAL, Sample
from cellkit.models.gate import Regime, regime_of
from cellkit.models.shared.diameter import middle_of, own_diameter_of
from cellkit.models.shared.inputs import CELL_PX, bytes_for
from cellkit.sources.loading import is_perhaps

COVERED = 0.3  # of an image, by cells


class RunImages:
    """The images of a run, as far as they are known before it: how many pixels of each split."""

    def __init__(
        self,
        cfg: Config,
        records: Sequence[ImageRecord],
        instances: Sequence[Instances | None],
        sample: Sample = USUAL,
    ):
        self.sample = sample
        self._sizes: dict[str, dict[str, float]] = {}
        self.cfg, self.records = cfg, [record for record in records if record.split]
        labels = instances or [None] * len(records)
        self.labels = [cells for cells, record in zip(labels, records, strict=True) if record.split]
        drawn = cfg.convert.source == "drawn"  # of drawn images smaller ones stand in
        side = cfg.convert.drawn.size_px * cfg.convert.scale
        self.shapes = [(round(side),) * 2 if drawn else (one.height_px, one.width_px) for one in self.records]
        self.px = [height * width for height, width in self.shapes]
        real = [cells for cells in instances if cells is not None and not drawn and not is_perhaps(cells)]
        areas = [cells.areas_px for cells in real]
        self.areas = [None if drawn or one is None or is_perhaps(one) else one.areas_px for one in self.labels]
        known = np.concatenate(areas) if areas else np.zeros(0)
        self.diameter_px = float(np.median(np.sqrt(known)) * 2 / np.sqrt(np.pi)) if known.size else CELL_PX
        if drawn:
            self.diameter_px = cfg.convert.drawn.diameter_px * cfg.convert.scale
        self.cells = self._counted(real)

    def _counted(self, real: Sequence[Instances]) -> float:
        """Return how many cells the images hold: as densely as those whose labels are known; else they cover a third."""
        seen = sum(cells.shape[0] * cells.shape[1] for cells in real)
        if seen:
            return sum(len(cells) for cells in real) / seen * sum(self.px)
        return COVERED * sum(self.px) / (np.pi / 4 * self.diameter_px**2)

    def section(self, name: str) -> Section:
        """Return a section by its name, ``finetune`` or ``recipes.<name>``."""
        return section_at(self.cfg, name)

    def shared(self, section: str) -> int:
        """Return how many workers share the images of a section at once: of a cluster, else of this machine as many as cores."""
        if not self.cfg.cluster.is_none:
            return default_workers(self.cfg.cluster, self.cfg.workers)
        return max(min(self.section(section).workers, os.cpu_count() or 1), 1)

    def processes(self, section: str) -> int:
        """Return how many processes beside its own a section has on this machine."""
        cluster, workers = self.cfg.cluster, self.section(section).workers
        if cluster.kind == "local":
            return default_workers(cluster, workers)
        return workers if cluster.is_none and workers > 1 else 0

    def diameter(self, section: str) -> float:
        """Return the diameter of cells (px) that a section is told, else that of the labels, else 30.

        Where each image will be looked at again it is the one that they are looked at with first.
        """
        first_px = middle_of(self.areas) if self.looks_twice(section) else None
        return getattr(self.section(section), "diameter_px", None) or first_px or self.diameter_px

    def looks_twice(self, section: str) -> bool:
        """Tell whether a section's model may look at an image again, at the diameter of the cells that it found there."""
        own = self.section(section)
        return hasattr(own, "diameter_of") and own.diameter_of != "batch" and not getattr(own, "diameter_px", None)

    def differ(self, section: str) -> bool:
        """Tell whether a section's model is expected to look at each image by its own diameter: told so, or as labels differ."""
        if not self.looks_twice(section):
            return False
        asked = section in ("label", "finetune") and middle_of(self.areas) is not None
        return asked or self.section(section).diameter_of == "image"

    def times_searched(self, section: str) -> int:
        """Return how often a search reads its images: with one diameter for all, and with their own where that is not told."""
        return 2 if self.differ(section) and self.section(section).diameter_of is None else 1

    def own_diameters(self, assumed_px: float) -> list[float]:
        """Return the diameter of the cells of each image (px), as a model that looks again takes it; else the one assumed."""
        return [assumed_px if areas is None else own_diameter_of(areas, assumed_px) for areas in self.areas]

    def largest_bytes(self, section: str, bytes_per_px: int) -> int:
        """Return the most memory that finding the cells of one image takes (bytes), at its own diameter where it is looked at."""
        assumed, at_px = self.diameter(section), scale_px(self.section(section))
        each = self.own_diameters(assumed) if self.looks_twice(section) else [assumed] * len(self.shapes)
        return max(
            (bytes_for(shape, own, bytes_per_px, at_px) for shape, own in zip(self.shapes, each, strict=True)),
            default=0,
        )

    def mpx(self, section: str, *splits: str) -> float:
        """Return the megapixels, at network scale, of the images of these splits."""
        sizes = self.sizes(section)
        return sum(sizes[one.image_id] for one in self.records if one.split in splits)

    def sizes(self, section: str) -> dict[str, float]:
        """Return the megapixels that the network sees, at its scale, of each image by its image_id."""
        if section not in self._sizes:
            self._sizes[section] = self._counted_px(section)
        return self._sizes[section]

    def _counted_px(self, section: str) -> dict[str, float]:
        own = self.section(section)
        seen, at_px = told(own, "seen_px"), scale_px(own)
        scale = (at_px / self.diameter(section)) ** 2 if at_px else 1.0
        each = zip(self.shapes, self.cells_of_images, strict=True)
        px = [seen(shape, own, cells) if seen else scale * shape[0] * shape[1] for shape, cells in each]
        return {one.image_id: count / 1e6 for count, one in zip(px, self.records, strict=True)}

    def found_sizes(self, section: str) -> dict[str, float]:
        """Return the same of finding cells: of a model that is told to look again, at the cells' own diameter, both looks."""
        sizes, assumed, at_px = self.sizes(section), self.diameter(section), scale_px(self.section(section))
        if not self.differ(section) or not at_px:
            return sizes
        each = zip(self.records, self.px, self.own_diameters(assumed), strict=True)
        again = {one.image_id: (at_px / px) ** 2 * count / 1e6 for one, count, px in each if px != assumed}
        return {name: size + again.get(name, 0) for name, size in sizes.items()}

    @cached_property
    def cells_of_images(self) -> list[float]:
        """Return how many cells each image holds: of its labels, where they are known, else as densely as the others."""
        each = self.cells / max(sum(self.px), 1)
        return [each * px if areas is None else len(areas) for areas, px in zip(self.areas, self.px, strict=True)]

    @cached_property
    def regime(self) -> Regime:
        """Who will teach, choose and judge in notebook 03."""
        finetune = self.cfg.finetune
        return regime_of(self.labelled, finetune.folds, finetune.min_train_masks, finetune.seed)

    @cached_property
    def labelled(self) -> CellDataset:
        """The images, as far as it is known which have labels, and whose; where it is not, all have as many as are needed."""
        use, drawn = self.cfg.label.use, self.cfg.convert.source == "drawn"
        told = use == "truth" and not drawn and any(cells is not None for cells in self.labels)
        taught = [self.cfg.label.teacher and record.split == "train" for record in self.records]
        chosen = [k for k, cells in enumerate(self.labels) if not told or taught[k] or cells is not None]
        enough = Instances.from_boxes([[0, 0, 1, 1]] * max(self.cfg.finetune.min_train_masks, 1), (1, 1))
        unread = [not told or taught[k] or is_perhaps(self.labels[k]) for k in chosen]
        cells = [enough if one else self.labels[k] for k, one in zip(chosen, unread, strict=True)]
        made_by = ["proposed" if use == "proposed" or taught[k] else "truth" for k in chosen]
        return CellDataset([self.records[k] for k in chosen], cells, made_by=made_by)

    def file_mpx(self, split: str) -> float:
        """Return the megapixels of a split, as its pictures are."""
        return sum(px for px, one in zip(self.px, self.records, strict=True) if one.split == split) / 1e6

    def count(self, split: str) -> int:
        """Return how many images a split has."""
        return sum(one.split == split for one in self.records)
