"""Settings under which a run needs less, those first that change least of what is learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from cellkit.config.recipes import named_sections, section_at
from cellkit.forecast.costing import told
from cellkit.forecast.several import Folds, Search
from cellkit.forecast.stages import SIDES, Plan

Planned = Plan | Folds | Search
Change = dict[str, Any]  # dotted key -> value, as a YAML file or --set has them
SMALLEST_CROP_PX = 64
SHARES = (0.5, 0.25, 0.1)
UNTRAINED = ("convert", "label", "coco", "evaluate")


def smaller_in_memory(plan: Planned) -> Iterator[Change]:
    """Yield changes of settings that need less memory, from small ones to such as leave images out."""
    yield from _fewer_workers(plan)
    yield from _fewer_ranks(plan)
    steps: Change = {}
    for steps in _smaller_steps(plan):
        yield steps
    yield from _lighter(plan)
    for change in (*_smaller_pictures(plan), *_fewer_images(plan), *_no_larger_than(plan)):
        yield change
        if steps:
            yield steps | change


def smaller_on_disk(plan: Planned) -> Iterator[Change]:
    """Yield changes of settings that need less disk: no maps kept, smaller pictures, fewer images."""
    without = {"finetune.map_cache_gb": 0} if getattr(plan.cfg.finetune, "map_cache_gb", 0) else {}
    if without:
        yield without
    for change in (*_fewer_images(plan), *_smaller_pictures(plan)):
        yield without | change


def _fewer_workers(plan: Planned) -> Iterator[Change]:
    own = {name: part.workers for name, part in named_sections(plan.cfg).items()}
    most, together = max(own.values(), default=1), len(set(own.values())) == 1  # else the common key does not reach all
    while most > 1:
        most //= 2
        fewer: Change = {f"{name}.workers": most for name, workers in own.items() if workers > most}
        yield {"workers": most} if together else fewer


def _fewer_ranks(plan: Planned) -> Iterator[Change]:
    """Yield trainings in one process: each of several holds the images."""
    used = [section for section in dict.fromkeys(plan.wanted.values()) if section not in UNTRAINED]
    one = {f"{section}.gpus": 1 for section in used if getattr(section_at(plan.cfg, section), "gpus", 1) > 1}
    if one:
        yield one


def _smaller_steps(plan: Planned) -> Iterator[Change]:
    """Yield ever smaller steps of the trainings: fewer crops in memory at once, fewer crops, smaller ones."""
    change: Change = {}
    used = [section for section in dict.fromkeys(plan.wanted.values()) if section not in UNTRAINED]
    for what, least in (("at_once", 1), ("batch_size", 1), (SIDES, SMALLEST_CROP_PX)):
        for section in used:
            own = section_at(plan.cfg, section)
            name = next((side for side in SIDES if hasattr(own, side)), "") if what is SIDES else what
            value, unit = getattr(own, name, None), 8 if what is SIDES else 1
            end = max(least, getattr(own, "gpus", 1)) if what == "batch_size" else least
            while isinstance(value, int) and value > end:
                value = max(value // 2 // unit * unit, end)
                change = change | {f"{section}.{name}": value}
                yield change


def _lighter(plan: Planned) -> Iterator[Change]:
    """Yield the backends that large networks name as lighter."""
    lighter: Change = {}
    for section in ("label", "finetune"):
        other = told(section_at(plan.cfg, section), "LIGHTER")
        if other and section in plan.wanted.values():
            lighter = lighter | {f"{section}.backend": other}
    if lighter:
        yield lighter


def _smaller_pictures(plan: Planned) -> Iterator[Change]:
    for share in SHARES[:2]:
        yield {"convert.scale": plan.cfg.convert.scale * share}


def _fewer_images(plan: Planned) -> Iterator[Change]:
    counts = Counter(record.cell_type for record in plan.records if record.split)
    most = max(counts.values(), default=0)
    for count in dict.fromkeys(int(most * share) for share in SHARES):
        if 3 <= count < most:  # an image to train on, to choose by and to report on
            yield {"convert.max_images": count}


def _no_larger_than(plan: Planned) -> Iterator[Change]:
    """Yield the sizes below that of the largest images, which are left out then."""
    sizes = sorted({plan.file_px(record) for record in plan.records}, reverse=True)
    for size in sizes[1:4]:
        yield {"convert.max_plane_px": size}
