"""What work of several trainings takes: folds, which repeat stages of a run, and a search, which repeats one training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from cellkit.cells.records import ImageRecord
from cellkit.config.recipes import section_at
from cellkit.config.sections import STAGES, Config
from cellkit.forecast.disk import CELL_BYTES, ROW_BYTES, SMALL_BYTES, space_of_stage
from cellkit.forecast.images import RunImages
from cellkit.forecast.memory import bytes_of_stage
from cellkit.forecast.minutes import seconds_of_trial
from cellkit.forecast.stages import Forecast, Plan
from cellkit.models.interpolation import STEPS


@dataclass(frozen=True, eq=False)
class Folds:
    """The plan of the folds of a run: of each the stages that are left, all on images of about the same number.

    Parameters
    ----------
    one : Plan
        Of a fold.
    left : mapping
        Fold -> the stages that it has to run.
    """

    one: Plan
    left: Mapping[str, Sequence[str]]

    @property
    def cfg(self) -> Config:
        """The settings that all folds share."""
        return self.one.cfg

    @property
    def wanted(self) -> Mapping[str, str]:
        """Stage -> section."""
        return self.one.wanted

    @property
    def records(self) -> Sequence[ImageRecord]:
        """The images."""
        return self.one.records

    def file_px(self, record: ImageRecord) -> int:
        """Return the pixels of the file that an image comes from."""
        return self.one.file_px(record)

    def forecast(self) -> dict[str, Forecast]:
        """Return the forecast of each stage of each fold."""
        each = self.one.forecast()
        return {f"{fold}, {name}": each[name] for fold, names in self.left.items() for name in names if name in each}

    def under(self, change: Mapping[str, Any]) -> Folds:
        """Return the plan under other settings, see `Plan.under`."""
        return replace(self, one=self.one.under(change))


@dataclass(frozen=True, eq=False)
class Search:
    """The plan of a search: the notebooks before it that are left, then its trainings, rung by rung.

    Parameters
    ----------
    before : Plan
        Of these notebooks; of none where all are finished. Its settings are the configuration's.
    trials : sequence of (mapping, Plan)
        What each trial changes of the settings, and a plan with them.
    section : str
        Which is searched.
    rungs : sequence of (int, float)
        How many trainings each rung has, and the share of the steps that each of them takes.
    """

    before: Plan
    trials: Sequence[tuple[Mapping[str, Any], Plan]]
    section: str
    rungs: Sequence[tuple[int, float]]

    @property
    def cfg(self) -> Config:
        """The settings of the configuration."""
        return self.before.cfg

    @property
    def wanted(self) -> Mapping[str, str]:
        """Stage -> section, and the search with the section that is searched."""
        return {**self.before.wanted, "search": self.section}

    @property
    def records(self) -> Sequence[ImageRecord]:
        """The images."""
        return self.before.records

    def file_px(self, record: ImageRecord) -> int:
        """Return the pixels of the file that an image comes from."""
        return self.before.file_px(record)

    def forecast(self) -> dict[str, Forecast]:
        """Return the forecast of the notebooks before, and of each rung: which trials go on is not known, their mean counts."""
        found = self.before.forecast()
        for number, (count, share) in enumerate(self.rungs, 1) if self.records else ():
            each = [_trial(plan, self.section, share) for _, plan in self.trials]
            seconds = [one.seconds for one in each if one.seconds is not None]
            kept = count * mean(one.kept_bytes for one in each)
            found[f"rung {number} of the search"] = Forecast(
                round(count * mean(seconds), 1) if len(seconds) == len(each) else None,
                max(one.peak_bytes for one in each),
                max(one.gpu_bytes for one in each),
                round(kept + max(one.disk_bytes for one in each)),
                round(kept),
                round(count * mean(one.files for one in each)),
            )
        return found

    def under(self, change: Mapping[str, Any]) -> Search:
        """Return the plan under other settings; what a trial changes stays as the trial has it."""
        trials = [(own, plan.under({**change, **own})) for own, plan in self.trials]
        return replace(self, before=self.before.under(change), trials=trials)


def plans_of_trials(trials: Sequence[tuple[Mapping[str, Any], Config]], plan: Plan, section: str) -> list[Any]:
    """Return (what it changes, its plan) of each trial, on the images of another plan; backends are timed as there."""
    stage = next(name for name, own in STAGES.items() if own == section)
    made = []
    for change, cfg in trials:
        made.append((change, Plan.of(cfg, [stage], plan.records, plan.instances, sample=plan.sample)))
    return made


def _trial(plan: Plan, section: str, share: float) -> Forecast:
    """Return the forecast of one training of a search."""
    run = RunImages(plan.cfg, plan.records, plan.instances, plan.sample)
    speed, own = plan.speed_of(section), section_at(plan.cfg, section)
    seconds = seconds_of_trial(run, section, own, speed.cost, share) if plan.speeds else None
    held, on_gpu = bytes_of_stage(run, section, speed)
    most, _, _ = space_of_stage(run, section, speed.cost, speed.cost)
    points = len(STEPS) if speed.cost.searches > 1 else 1  # the cells that are found at each of them are kept
    cells = run.cells * run.count("train") / max(len(run.records), 1)
    kept = SMALL_BYTES + points * cells * (CELL_BYTES + ROW_BYTES * run.diameter_px)
    return Forecast(seconds, held, on_gpu, most, kept, 4)
