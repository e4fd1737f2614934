"""How long the stages of a run take on this machine, how much memory and disk: told before it begins.

Minutes are counted from what a training step and a labelled megapixel cost here (`speed`, `minutes`), memory and disk from
pixels, cells and parameters (`memory`, `disk`); what earlier runs took here corrects them (`learned`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.cells.resize import resized_shape
from cellkit.config.recipes import RECIPES, named_sections, section_at, section_name, with_section
from cellkit.config.sections import Config, section_class
from cellkit.errors import UserError
from cellkit.fetch.find import locate_weights, named_for
from cellkit.forecast.costing import costing_name, costing_of, steps_of, told
from cellkit.forecast.disk import space_of_stage
from cellkit.forecast.images import RunImages
from cellkit.forecast.learned import factors_of
from cellkit.forecast.memory import bytes_of_stage, bytes_to_find
from cellkit.forecast.minutes import FLOOR, seconds_of_stage
from cellkit.forecast.sample import USUAL, Sample
from cellkit.forecast.speed import Speed, speed_before, speed_of
from cellkit.models import title_of
from cellkit.models.shared.contract import Schedule
from cellkit.models.shared.cost import Cost
from cellkit.models.weights import numbers_in
from cellkit.modules import optional
from cellkit.settings import weights_fields

SIDES = ("input_px", "crop_px")  # of a crop that the network is shown: the first of them that a section has
WORTH_MPX = 8.0  # a run whose trainings see fewer megapixels takes hardly longer than timing it
UNTIMED = Speed(Cost(), 4.0, 780_000_000)  # of what is not timed: memory and disk are counted all the same
NETWORK_BYTES = 330_000_000  # of memory: what a process held beside that where a network was timed, at its middle
STEP_BYTES = 2500  # likewise: of a pixel of a crop in a training step
HEADS = 3_500_000  # numbers that a detector adds to the network of another backend; where that is frozen, all that it trains


@dataclass(frozen=True)
class Forecast:
    """What a stage will take.

    Attributes
    ----------
    seconds : float or None
        None where its backend was not timed.
    peak_bytes, gpu_bytes : float
        The most memory, of this computer and of its GPU.
    disk_bytes, kept_bytes : float
        The most that it writes into the run folder while it is under way, and what of it stays.
    files : int
        That stay.
    """

    seconds: float | None
    peak_bytes: float
    gpu_bytes: float = 0.0
    disk_bytes: float = 0.0
    kept_bytes: float = 0.0
    files: int = 0


def forecast_run(
    cfg: Config,
    stages: Iterable[str],
    records: Sequence[ImageRecord],
    instances: Sequence[Instances | None] = (),
    timed: bool = True,
) -> dict[str, Forecast]:
    """Return what each stage of a run will take on this machine.

    Parameters
    ----------
    stages : iterable of str
        Those that will run; only their backends are timed. A recipe of which nothing says what it costs is not forecast, see
        `uncounted`.
    records, instances : sequences
        The images, and the labels they came with.
    timed : bool
        Whether backends may be timed; otherwise seconds are None.

    Returns
    -------
    dict
        Stage -> `Forecast`; its seconds are None where a stage's backend does not say what it costs, and for trainings so short
        that timing them would take as long. Empty where nothing is known of the images.
    """
    return Plan.of(cfg, stages, records, instances, timed).forecast()


@dataclass(frozen=True, eq=False)
class Plan:
    """What a forecast is counted from: settings, the stages that will run and their sections, images, speeds.

    Parameters
    ----------
    cfg : Config
    wanted : mapping
        Stage -> section.
    records, instances : sequences
        The images, and the labels they came with; empty = unknown.
    speeds : mapping
        Section -> speed of its backend, and that of the floor; empty = not timed.
    factors : mapping
        Stage -> by what seconds, memory and disk are multiplied, see `cellkit.forecast.learned`.
    sample : Sample
        What converting an image takes.
    """

    cfg: Config
    wanted: Mapping[str, str]
    records: Sequence[ImageRecord]
    instances: Sequence[Instances | None]
    speeds: Mapping[str, Speed]
    factors: Mapping[str, Mapping[str, float]]
    sample: Sample = USUAL

    @classmethod
    def of(
        cls,
        cfg: Config,
        stages: Iterable[str],
        records: Sequence[ImageRecord],
        instances: Sequence[Instances | None] = (),
        timed: bool | Literal["before"] = True,
        sample: Sample = USUAL,
    ) -> Plan:
        """Return the plan of a run; times backends where that is worth it, see `forecast_run`; "before" = asks what was timed."""
        wanted = {name: section for name in stages if (section := counted_section(cfg, name))}
        taught = sum(one.split == "train" for one in records)
        worth = timed and bool(records) and is_worth(cfg, wanted.values(), taught)
        speeds = speeds_of(cfg, wanted.values(), timed != "before") if worth else {}
        factors = {name: factors_of(name, cfg) for name in wanted}
        return cls(cfg, wanted, records, instances, speeds, factors, sample)

    def forecast(self) -> dict[str, Forecast]:
        """Return the forecast of each stage, as earlier runs here correct it."""
        if not self.records:
            return {}
        run, found = RunImages(self.cfg, self.records, self.instances, self.sample), {}
        for name, section in self.wanted.items():
            speed = self.speed_of(section)
            seconds = seconds_of_stage(run, section, speed, self.speeds[FLOOR]) if self.speeds else None
            held, on_gpu = bytes_of_stage(run, section, speed)
            for other in others_of(self.cfg, section):  # models of others find the cells of held-out images anew
                of_other = self.speed_of(other)
                seconds = seconds and seconds + of_other.cost.find_s * run.mpx(other, "val", "test")
                held = max(held, bytes_to_find(run, other, of_other))
            tuned = self.speed_of("finetune").cost
            most, stays, files = space_of_stage(run, section, speed.cost, tuned)
            by = self.factors.get(name, {})
            found[name] = Forecast(
                None if seconds is None else round(seconds * by.get("seconds", 1), 1),
                round(held * by.get("peak_bytes", 1)),
                round(on_gpu),
                round(most * by.get("disk_bytes", 1)),
                round(stays * by.get("disk_bytes", 1)),
                files,
            )
        return found

    def speed_of(self, section: str) -> Speed:
        """Return the speed of a section's backend; where none is timed, what such a one takes of memory and disk."""
        if not self.speeds:
            return untimed(self.cfg, section)
        return self.speeds.get(section) or self.speeds.get("label") or self.speeds[FLOOR]

    def under(self, change: Mapping[str, Any]) -> Plan:
        """Return the plan under other settings, by dotted key: images are left out and resized, crops as they are set.

        A backend in place of another is taken as not timed.
        """
        cfg, speeds = self.cfg, dict(self.speeds)
        for key, value in change.items():
            section, _, name = key.rpartition(".")
            for one in [section] if section else named_sections(cfg):
                old = section_at(cfg, one)
                if name == "backend":
                    shared = {key: getattr(old, key) for key in ("seed", "classes", "workers")}
                    cfg = cfg.model_copy(update={one: section_class(one, value)(**shared)})
                    if speeds:
                        speeds[one] = untimed(cfg, one)
                    continue
                cfg = with_section(cfg, one, old.model_copy(update={name: value}))
                if name in SIDES and one in speeds:
                    cost, share = speeds[one].cost, (value / getattr(old, name)) ** 2
                    speeds[one] = replace(speeds[one], cost=replace(cost, step_bytes=cost.step_bytes * share))
        chosen = self._images_under(cfg)
        scale = cfg.convert.scale / self.cfg.convert.scale
        records = [self._resized(self.records[k], scale) for k in chosen]
        same = chosen == list(range(len(self.records))) and scale == 1  # labels of other sizes tell no diameter
        instances = (
            self.instances if same or not self.instances else [self.instances[k] for k in chosen] if scale == 1 else ()
        )
        return replace(self, cfg=cfg, records=records, instances=instances, speeds=speeds)

    def _images_under(self, cfg: Config) -> list[int]:
        """Return the places of the images that other settings keep."""
        count, kept = Counter(), []
        for k, record in enumerate(self.records):
            count[record.cell_type] += 1
            few = cfg.convert.max_images is None or count[record.cell_type] <= cfg.convert.max_images
            if few and self.file_px(record) <= cfg.convert.max_plane_px:
                kept.append(k)
        return kept

    def file_px(self, record: ImageRecord) -> int:
        """Return the pixels of the file that an image comes from."""
        return round(record.height_px * record.width_px / self.cfg.convert.scale**2)

    @staticmethod
    def _resized(record: ImageRecord, scale: float) -> ImageRecord:
        if scale == 1:
            return record
        height, width = resized_shape((record.height_px, record.width_px), scale)
        return replace(record, height_px=height, width_px=width)


def speeds_of(cfg: Config, sections: Iterable[str], timed: bool = True) -> dict[str, Speed]:
    """Return the speed of each section's backend, and of the floor; empty where one cannot be timed, or is not to be now."""
    used = [section for section in dict.fromkeys(sections) if costing_name(section_at(cfg, section))]
    used = dict.fromkeys([*used, *(other for section in used for other in others_of(cfg, section))])
    ask = speed_of if timed else speed_before
    speeds = {section: ask(*backend_of(cfg, section)) for section in used}
    speeds[FLOOR] = ask(FLOOR, {})
    return {} if None in speeds.values() else speeds


def untimed(cfg: Config, section: str) -> Speed:
    """Return what is known of a section's backend that is not timed: memory as networks take it, and the weights it begins with.

    The memory is that which was measured of the backends that cellkit has, so it is roughly right for networks of their size.
    """
    own = section_at(cfg, section)
    kind = optional(costing_of(own), "TrainSettings") if costing_name(own) else None
    if not (isinstance(kind, type) and issubclass(kind, Schedule)):
        return UNTIMED
    side = next((getattr(own, name) for name in SIDES if hasattr(own, name)), 0)
    added, begins_with = 0, 0
    with suppress(UserError):  # weights that are not here
        settings = backend_of(cfg, section)[1]
        name, fitting = next(iter(weights_fields(kind).items()), ("", ()))
        added, begins_with = HEADS * (len(fitting) > 1), numbers_in(settings.get(name, ""))
    heads_alone = getattr(own, "freeze_backbone", False) and getattr(own, "unfreeze_after", None) is None
    weights = 4 * (begins_with + added) if begins_with else 0
    cost = Cost(
        step_bytes=STEP_BYTES * side**2, weights_bytes=weights, trained_bytes=4 * added if heads_alone else weights
    )
    return replace(UNTIMED, cost=cost, sample_bytes=UNTIMED.start_bytes + NETWORK_BYTES)


def is_worth(cfg: Config, sections: Iterable[str], images: int) -> bool:
    """Tell whether the trainings, on so many images, see so many pixels that timing them says something."""
    sections = set(sections)
    if any(told(getattr(cfg, one), "LIGHTER") for one in sections & {"label", "finetune"}):
        return True
    trained = [section_at(cfg, section) for section in sections - {"label"}]
    seen = (steps_of(one, images) * one.batch_size * one.crop_px**2 for one in trained if isinstance(one, Schedule))
    return sum(seen) > 1e6 * WORTH_MPX


def backend_of(cfg: Config, section: str) -> tuple[str, dict[str, Any]]:
    """Return a section's backend, and the settings to time a training with it: its own, with weights that are here."""
    own = section_at(cfg, section)
    shared = (
        section in ("label", "finetune") and own.backend == cfg.finetune.backend and "finetune" not in cfg.leave_out
    )
    if section == "label" and shared:  # what is timed for 03 serves here too
        settings = backend_of(cfg, "finetune")[1]
        weights = dict.fromkeys(weights_fields(costing_of(own).TrainSettings), str(locate_weights(own.model)))
        return own.backend, settings | weights | {"precision": getattr(own, "precision", "auto")}
    kind = costing_of(own).TrainSettings
    settings = {k: v for k, v in own.model_dump(mode="json", exclude_none=True).items() if k in kind.model_fields}
    for name, fitting in weights_fields(kind).items():
        named = getattr(own, "model" if section == "label" else name)
        named = getattr(cfg.finetune, "base", "starter") if named == "tuned" else named
        settings[name] = named if named == "scratch" else str(locate_weights(named_for(named, fitting)))
    return costing_name(own), settings


def counted_section(cfg: Config, stage: str) -> str | None:
    """Return the section of a stage that can be counted; None of a recipe of which nothing says what it costs."""
    section = section_name(cfg, stage)
    if section is None or (section.startswith(RECIPES) and not section_at(cfg, section).costs):
        return None
    return section


def uncounted(cfg: Config, stages: Iterable[str]) -> list[str]:
    """Return the recipes among stages that no forecast counts."""
    return [name for name in stages if (section_name(cfg, name) or "") and not counted_section(cfg, name)]


def others_of(cfg: Config, section: str) -> list[str]:
    """Return the sections whose models a stage has find the cells of held-out images once more, of those that the run has."""
    names = told(section_at(cfg, section), "FINDS_WITH", ())
    return [name for name in names if name in named_sections(cfg) and name not in cfg.leave_out]


def remarks(cfg: Config) -> list[str]:
    """Return what to say of a network that is made for a GPU where there is none: how large it is, and what to take instead."""
    said = {}
    for section in sorted({"label", "finetune"} - set(cfg.leave_out), reverse=True):
        backend, settings = backend_of(cfg, section)
        lighter, speed = told(getattr(cfg, section), "LIGHTER"), None
        if lighter:
            speed = speed_of(backend, settings)
        if speed and speed.cost.device == "cpu":
            size = f"{title_of(backend)} has {speed.cost.parameters / 1e6:.0f} million parameters and is made for a GPU"
            said.setdefault((size, lighter), []).append(f"{section}.backend: {lighter}")
    return [
        f"{size}; on a processor {title_of(lighter)} is the faster one by far ({', '.join(keys)})"
        for (size, lighter), keys in said.items()
    ]
