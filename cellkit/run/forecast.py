"""How long a run takes on this machine, and how much memory: told before it begins, compared with what it took.

A training step and a labelled megapixel of each backend are timed once, by a process of their own; what they take is kept in
the user's cache, for this processor, number of threads, version and settings. The rest is counting: images, pixels at network
scale, steps, scores along the way, searches of thresholds; where few images are labelled, those of each short run.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.config.sections import STAGES, Config
from cellkit.errors import UserError
from cellkit.evaluate.folds import fold_settings
from cellkit.fetch.find import locate_weights, named_for
from cellkit.fetch.registry import cache_folder
from cellkit.files import read_json, write_json
from cellkit.log import LOG
from cellkit.machine import GB, arithmetic, peak_bytes
from cellkit.manifest import sha256_json
from cellkit.models import backend_module, get_backend, title_of
from cellkit.models.gate import CROSS_FITTING, IN_QUARTERS, NOBODY, QUARTERS, THREE_PARTS, Regime, choosers, regime_of
from cellkit.models.interpolation import STEPS
from cellkit.models.shared.contract import Schedule
from cellkit.models.shared.cost import Cost
from cellkit.models.shared.fine_tuning import SEARCHED_ON
from cellkit.models.shared.inputs import CELL_PX, bytes_for
from cellkit.modules import optional
from cellkit.run.notebooks import Notebook
from cellkit.settings import weights_fields
from cellkit.sources.loading import is_perhaps

TIMED_PX = 192  # side of the image that is timed
TIMEOUT_S = 600
WORTH_MPX = 8.0  # a run whose trainings see fewer megapixels takes hardly longer than timing it
STARTS = {"convert": 3, "label": 3, "finetune": 3, "coco": 3, "maskrcnn": 3, "evaluate": 5}  # times all imports
CONVERT_S = 0.3  # a megapixel, of a file of three planes
DIAMETER_MPX = 13 * 4 * (8 * CELL_PX) ** 2 / 1e6  # looked at to estimate a diameter, see `models.shared.diameter`
OTHERS_MPX = 0.2  # of the cells of other kinds that 03 scores its models on
KEPT_BYTES = 28  # of a pixel of a training image
ADAM_BYTES = 12  # of a number that is trained: its gradient, and what the optimiser keeps of it
FLOOR = "threshold"  # finds cells in notebook 02, beside the backend that is named
COUNTED = {"diameter_px", *Schedule.model_fields} - {
    "crop_px"
}  # settings that do not change what a crop or a pixel costs


@dataclass(frozen=True)
class Speed:
    """What a backend costs, what a process takes to begin with it (s), and the memory it holds then (bytes)."""

    cost: Cost
    start_s: float
    start_bytes: int


@dataclass(frozen=True)
class Forecast:
    """What a stage will take: seconds, and bytes of memory at most, of this computer and of its GPU."""

    seconds: float
    peak_bytes: float
    gpu_bytes: float = 0.0


# ---- timing ----------------------------------------------------------------------------------------------------------
def speed_of(backend: str, settings: Mapping[str, Any]) -> Speed | None:
    """Return what a backend costs on this machine; from the cache, else timed now by a process of its own.

    Parameters
    ----------
    settings : mapping
        Of a training, as plain values; weights are paths.

    Returns
    -------
    Speed or None
        None where the backend does not say what it costs, or cannot be run here.
    """
    if not hasattr(backend_module(backend), "cost"):
        return None
    path = cache_folder() / "speed.json"
    key = sha256_json([backend, {k: v for k, v in settings.items() if k not in COUNTED}, _machine()])
    known = read_json(path) if path.is_file() else {}
    if key not in known:
        command = [sys.executable, "-m", "cellkit.run.forecast", backend, json.dumps(dict(settings))]
        LOG.info(f"timing {backend} once, for a forecast")
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        except subprocess.SubprocessError as error:
            told = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else ""
            why = (told or str(error)).splitlines()[-1][:200]
            LOG.info(f"no forecast: {backend} could not be timed: {why}")
            return None
        known = (read_json(path) if path.is_file() else {}) | {key: json.loads(done.stdout.splitlines()[-1])}
        with contextlib.suppress(OSError):  # no cache: timed again next time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known, indent=1)
    found = known[key]
    return Speed(Cost(**found["cost"]), found["start_s"], found["start_bytes"])


@lru_cache
def _machine() -> list[Any]:
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

    module = get_backend(backend)
    config = module.TrainSettings.model_validate_json(settings)
    arithmetic(getattr(config, "precision", "auto"))
    start_s, start_bytes = time.process_time(), peak_bytes()  # since this process began
    return Speed(module.cost(config, *_drawn()), start_s, start_bytes)


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


# ---- counting --------------------------------------------------------------------------------------------------------
def forecast_run(
    cfg: Config, stages: Iterable[str], records: Sequence[ImageRecord], instances: Sequence[Instances | None] = ()
) -> dict[str, Forecast]:
    """Return what each stage of a run will take on this machine.

    Parameters
    ----------
    stages : iterable of str
        Those that will run; only their backends are timed. A recipe is not forecast, see `recipes_in_words`.
    records, instances : sequences
        The images, and the labels they came with.

    Returns
    -------
    dict
        Stage -> `Forecast`; empty where a stage's backend does not say what it costs, where nothing is known of the images,
        and for trainings so short that timing them would take as long.
    """
    run = _Images(cfg, records, instances)
    wanted = {name: STAGES[name] for name in stages if name in STAGES}
    if not records or not _worth(cfg, wanted.values()):
        return {}
    used = [section for section in ("label", "finetune", "maskrcnn") if section in wanted.values()]
    speeds = {section: speed_of(*_backend_of(cfg, section)) for section in used}
    speeds[FLOOR] = speed_of(FLOOR, {})
    if None in speeds.values():
        return {}
    return {name: _forecast(run, section, speeds) for name, section in wanted.items()}


def _worth(cfg: Config, sections: Iterable[str]) -> bool:
    """Tell whether the trainings see so many pixels that a forecast says something."""
    sections = set(sections)
    if any(optional(backend_module(getattr(cfg, one).backend), "LIGHTER") for one in sections & {"label", "finetune"}):
        return True
    trained = [getattr(cfg, section) for section in sections & {"finetune", "maskrcnn"}]
    seen = (one.steps * one.batch_size * one.crop_px**2 for one in trained if isinstance(one, Schedule))
    return sum(seen) > 1e6 * WORTH_MPX


def _backend_of(cfg: Config, section: str) -> tuple[str, dict[str, Any]]:
    """Return a section's backend, and the settings to time a training with it: its own, with weights that are here."""
    own = getattr(cfg, section)
    shared = own.backend == cfg.finetune.backend and "finetune" not in cfg.leave_out
    if section == "label" and shared:  # what is timed for 03 serves here too
        settings = _backend_of(cfg, "finetune")[1]
        weights = dict.fromkeys(
            weights_fields(backend_module(own.backend).TrainSettings), str(locate_weights(own.model))
        )
        return own.backend, settings | weights | {"precision": getattr(own, "precision", "auto")}
    kind = backend_module(own.backend).TrainSettings
    settings = {k: v for k, v in own.model_dump(mode="json", exclude_none=True).items() if k in kind.model_fields}
    for name, fitting in weights_fields(kind).items():
        named = getattr(own, "model" if section == "label" else name)
        named = getattr(cfg.finetune, "base", "starter") if named == "tuned" else named
        settings[name] = named if named == "scratch" else str(locate_weights(named_for(named, fitting)))
    return own.backend, settings


class _Images:
    """The images of a run, as far as they are known before it: how many pixels of each split."""

    def __init__(self, cfg: Config, records: Sequence[ImageRecord], instances: Sequence[Instances | None]):
        self.cfg, self.records = cfg, [record for record in records if record.split]
        labels = instances or [None] * len(records)
        self.labels = [cells for cells, record in zip(labels, records, strict=True) if record.split]
        drawn = cfg.convert.source == "drawn"  # of drawn images smaller ones stand in
        side = cfg.convert.drawn.size_px * cfg.convert.scale
        self.shapes = [(round(side),) * 2 if drawn else (one.height_px, one.width_px) for one in self.records]
        self.px = [height * width for height, width in self.shapes]
        real = [cells for cells in instances if cells is not None and not drawn and not is_perhaps(cells)]
        areas = [cells.areas_px for cells in real]
        known = np.concatenate(areas) if areas else np.zeros(0)
        self.diameter_px = float(np.median(np.sqrt(known)) * 2 / np.sqrt(np.pi)) if known.size else CELL_PX
        if drawn:
            self.diameter_px = cfg.convert.drawn.diameter_px * cfg.convert.scale

    def diameter(self, section: str) -> float:
        """Return the diameter of cells (px) that a section is told, else that of the labels, else 30."""
        return getattr(getattr(self.cfg, section), "diameter_px", None) or self.diameter_px

    def mpx(self, section: str, *splits: str) -> float:
        """Return the megapixels, at network scale, of the images of these splits."""
        sizes = self.sizes(section)
        return sum(sizes[one.image_id] for one in self.records if one.split in splits)

    def sizes(self, section: str) -> dict[str, float]:
        """Return the megapixels that the network sees, at its scale, of each image by its image_id."""
        own = getattr(self.cfg, section)
        seen = optional(backend_module(own.backend), "seen_px")
        scale = (CELL_PX / self.diameter(section)) ** 2
        px = [seen(shape, own) if seen else scale * shape[0] * shape[1] for shape in self.shapes]
        return {one.image_id: count / 1e6 for count, one in zip(px, self.records, strict=True)}

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


def _forecast(run: _Images, section: str, speeds: Mapping[str, Speed]) -> Forecast:
    """Return what one stage will take."""
    speed = speeds.get(section) or speeds.get("label") or speeds[FLOOR]
    seconds, held, of_step = STARTS[section] * speed.start_s, float(speed.start_bytes), 0.0
    if section == "convert":
        seconds += CONVERT_S * sum(run.px) / 1e6
    elif section == "label":
        some = run.cfg.label.use == "truth" and not run.cfg.label.teacher
        asked = run.cfg.label.preview / max(len(run.records), 1) if some else 1
        seen = run.mpx(section, "train", "val", "test") * min(asked, 1)
        measured = optional(backend_module(run.cfg.label.backend), "estimate_diameter")
        seen += DIAMETER_MPX if measured and not getattr(run.cfg.label, "diameter_px", 0) else 0
        seconds += speed.cost.find_s * seen
        judged = ("val", "test") if run.cfg.label.use == "truth" else ("train", "val", "test")
        seconds += speeds[FLOOR].cost.find_s * sum(run.file_mpx(split) for split in judged)
    elif section in ("finetune", "maskrcnn"):
        config = getattr(run.cfg, section)
        if not isinstance(config, Schedule):  # nothing is trained step by step
            return Forecast(round(seconds, 1), round(held))
        seconds += (_adapting_s if section == "finetune" else _training_s)(run, section, config, speed.cost)
        splits = (
            ("train", "val")
            if section == "finetune" and run.regime.name in (CROSS_FITTING, IN_QUARTERS)
            else ("train",)
        )
        of_step = speed.cost.step_bytes * _at_once(config)
        held += KEPT_BYTES * 1e6 * run.mpx(section, *splits) + of_step * (speed.cost.device != "cuda")
    if section in ("label", "finetune", "maskrcnn"):
        cfg = getattr(run.cfg, section)
        of_px = backend_module(cfg.backend).BYTES_PER_PX * (getattr(cfg, "flips", None) or 1)
        largest = bytes_for((1, round(max(run.px))), run.diameter(section), of_px)
        held = max(held, speed.start_bytes + largest)
        network = 4 * speed.cost.parameters + (ADAM_BYTES * speed.cost.trained if section != "label" else 0)
        if speed.cost.device == "cuda":
            return Forecast(round(seconds, 1), round(held), round(network + of_step))
        held += network
    return Forecast(round(seconds, 1), round(held))


def _at_once(config: Schedule) -> int:
    """Return how many crops of a step are in memory together."""
    return min(config.batch_size, getattr(config, "at_once", config.batch_size))


def remarks(cfg: Config) -> list[str]:
    """Return what to say of a network that is made for a GPU where there is none: how large it is, and what to take instead."""
    said = {}
    for section in sorted({"label", "finetune"} - set(cfg.leave_out), reverse=True):
        backend, settings = _backend_of(cfg, section)
        lighter, speed = optional(backend_module(backend), "LIGHTER"), None
        if lighter:
            speed = speed_of(backend, settings)
        if speed and speed.cost.device == "cpu":
            size = f"{title_of(backend)} has {speed.cost.parameters / 1e6:.0f} million parameters and is made for a GPU"
            said.setdefault((size, lighter), []).append(f"{section}.backend: {lighter}")
    return [
        f"{size}; on a processor {title_of(lighter)} is the faster one by far ({', '.join(keys)})"
        for (size, lighter), keys in said.items()
    ]


def _training_s(run: _Images, section: str, config: Any, cost: Cost) -> float:
    """Return the seconds of a training that takes all its steps, and of what is predicted with it and its base."""
    val, sizes = run.mpx(section, "val"), run.sizes(section)
    train = [sizes[one.image_id] for one in run.records if one.split == "train"]
    chosen = len(choosers([one for one in run.records if one.split == "val"])) or run.count("val")
    scored = min(chosen, config.val_images or chosen) / max(run.count("val"), 1)
    scores = -(-_steps(config, len(train)) // config.eval_every) + 1
    seconds = _one_training_s(train, config, cost, cost.searches) + cost.find_s * val * scored * scores
    return seconds + cost.searches * cost.find_s * run.mpx(section, "val", "test")


def _adapting_s(run: _Images, section: str, config: Any, cost: Cost) -> float:
    """Return the seconds of `cellkit.evaluate.adaptation.adapt`, and of what is predicted afterwards."""
    labelled, regime = run.labelled, run.regime
    size, points = run.sizes(section), len(STEPS) if cost.searches > 1 else 1
    seconds = cost.find_s * cost.searches * OTHERS_MPX
    if regime.name in (THREE_PARTS, NOBODY):
        seconds += cost.find_s * points * sum(size[name] for name in regime.choosers)
        return seconds + _training_s(run, section, config, cost)
    teach = {
        record.image_id: record.split
        for record, cells in zip(labelled.records, labelled.instances, strict=True)
        if record.split in ("train", "val") and len(cells) >= regime.least
    }
    short, whole = fold_settings(config), 1 - 1 / QUARTERS
    for held in regime.folds or (regime.judges,) * QUARTERS:
        taught = [size[name] * (whole if name in held else 1) for name in teach if not regime.folds or name not in held]
        seconds += _one_training_s(taught, short, cost, cost.searches)
        seconds += cost.find_s * points * sum(size[name] for name in held)
    seconds += _one_training_s([size[name] for name in teach], config, cost, cost.searches)
    val = {name for name, split in teach.items() if split == "val"}
    if val and not any(val <= set(held) for held in regime.folds):  # a run without validation images is one more
        seconds += _one_training_s([size[name] for name in teach if name not in val], short, cost, 1)
    seen = set(regime.judges)
    others = [record.image_id for record in run.records if record.split in ("val", "test")]
    return seconds + cost.find_s * cost.searches * sum(size[name] for name in others if name not in seen)


def _one_training_s(sizes: Sequence[float], config: Any, cost: Cost, searches: int) -> float:
    """Return the seconds of one training, with its searches, on images of these sizes (megapixels at network scale)."""
    seconds = cost.prepare_s * sum(sizes) + cost.step_s * config.batch_size * _steps(config, len(sizes))
    searched = getattr(config, "search_images", SEARCHED_ON)
    return seconds + searches * cost.search_s * sum(sizes) * min(searched / max(len(sizes), 1), 1)


def _steps(config: Any, images: int) -> int:
    """Return how many steps a training on so many images takes."""
    own = optional(backend_module(config.backend), "steps_of")
    return own(config, images) if own else config.steps


def in_words(found: Mapping[str, Forecast]) -> str:
    """Return a forecast in a line.

    Examples
    --------
    >>> in_words({"03_finetune_cellpose": Forecast(500, 2.1e9), "06_evaluate_map_iou": Forecast(40, 4e8)})
    'about 9 min on this computer, 2.1 GB'
    >>> in_words({"03_finetune_cellpose": Forecast(9000, 2.1e9, 12e9)})
    'about 2.5 h on this computer, 2.1 GB, and 12.0 GB of its GPU'
    """
    seconds, held = sum(one.seconds for one in found.values()), max(one.peak_bytes for one in found.values())
    on_gpu = max(one.gpu_bytes for one in found.values())
    time_ = f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return f"about {time_} on this computer, {held / GB:.1f} GB" + f", and {on_gpu / GB:.1f} GB of its GPU" * (
        on_gpu > 0
    )


def recipes_in_words(books: Iterable[Notebook]) -> str:
    """Return what the recipes among notebooks say of their time, which is not timed here; "" where none says it."""
    own = [f"{book.name} about {book.minutes:g} min" for book in books if book.name not in STAGES and book.minutes]
    return f"{', '.join(own)} on two cores, as its notebook says; not timed here" if own else ""


def noted(found: Mapping[str, Forecast]) -> dict[str, dict[str, float]]:
    """Return a forecast as the manifest has it."""
    return {name: asdict(one) for name, one in found.items()}


def compared(forecast: Mapping[str, float], entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the forecast of a stage with what it took, as its manifest entry says, and by how much it was off.

    Examples
    --------
    >>> compared({"seconds": 90.0, "peak_bytes": 2e9}, {"seconds": 100.0, "peak_bytes": 1e9})["off"]
    -0.1
    """
    taken = {f"took_{key}": entry[key] for key in ("seconds", "peak_bytes") if key in entry}
    return {**forecast, **taken, "off": round(forecast["seconds"] / max(entry["seconds"], 0.1) - 1, 3)}


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(asdict(time_backend(*sys.argv[1:]))))
    except UserError as error:
        sys.exit(str(error))
