"""What a backend costs on this machine: a training step and a labelled megapixel, timed once, and kept in the user's cache.

A process of its own times them, for this processor, number of threads, version and settings.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.config.recipes import costing_module
from cellkit.errors import UserError
from cellkit.fetch.registry import cache_folder
from cellkit.files import read_json, write_json
from cellkit.log import LOG
from cellkit.machine import arithmetic, peak_bytes
from cellkit.manifest import sha256_json
from cellkit.models import get_backend, is_backend
from cellkit.models.shared.contract import Schedule
from cellkit.models.shared.cost import Cost
from cellkit.models.shared.inputs import CELL_PX

TIMED_PX = 192  # side of the image that is timed
TIMEOUT_S = 600
COUNTED = {"diameter_px", *Schedule.model_fields} - {
    "crop_px"
}  # settings that do not change what a crop or a pixel costs
KEPT = "speed_3.json"  # in the cache


@dataclass(frozen=True)
class Speed:
    """What a backend costs, what a process takes to begin with it (s), and its memory then, and at most when timed (bytes)."""

    cost: Cost
    start_s: float
    start_bytes: int
    sample_bytes: int = 0


def speed_of(backend: str, settings: Mapping[str, Any]) -> Speed | None:
    """Return what a backend costs on this machine; from the cache, else timed now by a process of its own.

    So does any other module that says what the training of a recipe costs, ``package.module``.

    Parameters
    ----------
    settings : mapping
        Of a training, as plain values; weights are paths.

    Returns
    -------
    Speed or None
        None where the backend does not say what it costs, or cannot be run here.
    """
    if not hasattr(costing_module(backend), "cost"):
        return None
    path, key = cache_folder() / KEPT, _key(backend, settings)
    known = _known(path)
    if key not in known:
        command = [sys.executable, "-m", "cellkit.forecast.speed", backend, json.dumps(dict(settings))]
        LOG.info(f"timing {backend} once, for a forecast")
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        except subprocess.SubprocessError as error:
            told = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else ""
            why = (told or str(error)).splitlines()[-1][:200]
            LOG.info(f"no forecast: {backend} could not be timed: {why}")
            return None
        known = _known(path) | {key: json.loads(done.stdout.splitlines()[-1])}
        with contextlib.suppress(OSError, UserError):  # no cache: timed again next time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known, indent=1)
    return _as_kept(known[key])


def speed_before(backend: str, settings: Mapping[str, Any]) -> Speed | None:
    """Return what `speed_of` does where the backend was timed before, with these settings on this machine; else None."""
    found = _known(cache_folder() / KEPT).get(_key(backend, settings))
    return None if found is None else _as_kept(found)


def _key(backend: str, settings: Mapping[str, Any]) -> str:
    return sha256_json([backend, {k: v for k, v in settings.items() if k not in COUNTED}, machine_key()])


def _as_kept(found: Mapping[str, Any]) -> Speed:
    return Speed(Cost(**found["cost"]), found["start_s"], found["start_bytes"], found["sample_bytes"])


def _known(path: Path) -> dict[str, Any]:
    """Return what is kept; {} where nothing is, or where it cannot be read: it is timed again then."""
    with contextlib.suppress(OSError, ValueError):
        known = read_json(path)
        return known if isinstance(known, dict) else {}
    return {}


@lru_cache
def machine_key() -> list[Any]:
    """Return what the speed depends on beside the settings: processor, threads, versions."""
    versions = {name: metadata.version(name) for name in ("cellkit", "torch")}
    threads = [os.environ.get("OMP_NUM_THREADS"), os.cpu_count()]
    return [_processor(), os.environ.get("CUDA_VISIBLE_DEVICES"), threads, versions]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return " ".join(line for line in lines[:40] if line.startswith(("model name", "flags", "Features")))
    except OSError:
        return f"{platform.node()} {platform.processor() or platform.machine()}"


def time_backend(backend: str, settings: str) -> Speed:
    """Time a backend in this process, on a drawn image; `settings` are JSON."""
    import matplotlib.pyplot  # noqa: F401  what a notebook imports, too
    import pandas  # noqa: F401

    module = get_backend(backend) if is_backend(backend) else costing_module(backend)
    config = module.TrainSettings.model_validate_json(settings)
    arithmetic(getattr(config, "precision", "auto"))
    start_s, start_bytes = time.process_time(), peak_bytes()  # since this process began
    cost = module.cost(config, *_drawn())
    return Speed(cost, start_s, start_bytes, peak_bytes())


def _drawn() -> tuple[np.ndarray, Instances]:
    """Return a drawn image (H, W, 3) uint8 whose cells are about 30 px wide, and its cells."""
    from cellkit.cells.drawn.camera import expose
    from cellkit.cells.drawn.field import draw_field
    from cellkit.cells.drawn.style import FieldStyle

    style = FieldStyle(size_px=(TIMED_PX, TIMED_PX), diameter_px=CELL_PX)
    field = draw_field(("HEK", "N2a"), style, 0)
    image = np.zeros((TIMED_PX, TIMED_PX, 3), np.uint8)
    for colour, plane in zip((2, 1), expose(field, style, 1), strict=True):
        low, high = np.percentile(plane, (0.3, 99.8))
        image[..., colour] = np.clip((plane - low) / (high - low), 0, 1) * 255
    cells = Instances.from_labels(field.labels)
    return image, cells.with_classes(1 + np.arange(len(cells)) % 2)


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(asdict(time_backend(*sys.argv[1:]))))
    except UserError as error:
        sys.exit(str(error))
