"""What stages took on this machine beside what was forecast, kept in the user's cache: it corrects the next forecast.

Kept are ratios, taken / counted, of the last runs, by machine, stage, backend and the images that a configuration names. The
median of them corrects, within bounds: one run beside other work must not make all later ones look long. Ratios of other images
are not taken over: measured, they made forecasts worse, see `docs/forecast.md`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from cellkit.config.recipes import section_at, section_name
from cellkit.config.sections import Config
from cellkit.errors import UserError
from cellkit.fetch.registry import cache_folder
from cellkit.files import read_json, write_json
from cellkit.forecast.costing import costing_name
from cellkit.forecast.speed import machine_key
from cellkit.manifest import sha256_json

KEPT_IN = "forecasts_2.json"  # another name where memory or disk are counted otherwise than before
LAST = 5  # runs that count
BOUNDS = {
    "seconds": (0.5, 2.0),
    "peak_bytes": (1.0, 1.5),
    "disk_bytes": (1.0, 1.5),
}  # too little is worse than too much


def factors_of(name: str, cfg: Config) -> dict[str, float]:
    """Return by what the seconds, memory and disk counted for a stage are multiplied."""
    ratios = read_ratios().get(key_of(name, cfg), {})
    return {key: correction(ratios.get(key, []), bounds) for key, bounds in BOUNDS.items()}


def correction(ratios: Sequence[float], bounds: tuple[float, float]) -> float:
    """Return by what a forecast is multiplied: the median of the last ratios, within bounds.

    Examples
    --------
    >>> bounds = (0.5, 2.0)
    >>> correction([], bounds), correction([1.2], bounds), correction([1.1, 9.0, 1.3], bounds), correction([40.0], bounds)
    (1.0, 1.2, 1.3, 2.0)
    """
    low, high = bounds
    return min(max(median(ratios[-LAST:]), low), high) if ratios else 1.0


def learn(name: str, cfg: Config, counted: Mapping[str, Any], took: Mapping[str, Any]) -> None:
    """Keep what a stage took, beside what was counted before any correction; a cache that cannot be written keeps nothing.

    Parameters
    ----------
    counted, took : mapping
        Of `seconds`, `peak_bytes` and `disk_bytes` those that are known. Seconds are those of a computer that does nothing
        else: on one thread the processor's.
    """
    known = read_ratios()
    ratios = known.setdefault(key_of(name, cfg), {})
    for key in BOUNDS:
        if counted.get(key) and took.get(key):
            ratios[key] = [*ratios.get(key, []), round(took[key] / counted[key], 3)][-LAST:]
    path = cache_folder() / KEPT_IN
    with contextlib.suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, known, indent=1)


def read_ratios() -> dict[str, dict[str, list[float]]]:
    """Return {key of a stage: {what: ratios}}; {} where nothing is kept, or what is kept cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        known = read_json(cache_folder() / KEPT_IN)
        if isinstance(known, dict):
            return {name: ratios for name, ratios in known.items() if isinstance(ratios, dict)}
    return {}


def key_of(name: str, cfg: Config) -> str:
    """Return what the ratios of a stage are kept under: stage, machine, backend, images."""
    section = section_name(cfg, name)
    backend = costing_name(section_at(cfg, section)) if section else ""
    images = [cfg.name, cfg.convert.source, cfg.convert.path]
    return f"{name} {sha256_json([machine_key(), backend, images])[:24]}"
