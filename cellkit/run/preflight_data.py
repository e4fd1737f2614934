"""The findings of a check before a run, and those about the run folder and the data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.names import stem_of
from cellkit.cells.records import ImageRecord, read_records
from cellkit.cells.resize import resize_instances
from cellkit.config.places import data_path, refuse_in_data
from cellkit.config.reading import known_keys
from cellkit.config.sections import Config
from cellkit.errors import UserError, collected, counted, raise_or_collect, readable
from cellkit.forecast.fits import reasons_against
from cellkit.forecast.sample import USUAL, Sample, sample_of
from cellkit.forecast.stages import Plan
from cellkit.log import collected_warnings
from cellkit.manifest import check_folder, check_writable
from cellkit.microscope.file_info import headers_only
from cellkit.parallel import map_items
from cellkit.run.folder import Run
from cellkit.sources.assign_splits import check_enough, check_labelled
from cellkit.sources.drawn.files import write_blank_fields
from cellkit.sources.ingest import list_images, record_of, refuse_none, unusable, warn_lacking_classes, warn_one_channel
from cellkit.sources.listing import Loaded, SourceImage
from cellkit.sources.unlabelled import refuse_untaught, with_truth

ERROR, WARNING = "error", "warning"
MOST_NAMED = 12


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes
    ----------
    severity : {"error", "warning"}
        An error ends the run; with a warning it goes on, and what is named is skipped or not used.
    problem, remedy : str
        What came, and what to do.
    key : str
        The setting it is about, "" where it is about none.
    """

    severity: str
    problem: str
    remedy: str = ""
    key: str = ""

    def to_text(self) -> str:
        """Return it in two lines."""
        return f"{self.severity}: {self.problem}" + (f"\n  {self.remedy}" if self.remedy else "")


@dataclass
class Outlook:
    """What was found, and what would be run: `records` of the images that can be used, read from `reads`."""

    cfg: Config
    run_dir: Path
    findings: list[Finding] = field(default_factory=list)
    records: list[ImageRecord] = field(default_factory=list)
    instances: list[Instances | None] = field(default_factory=list)
    items: list[SourceImage] = field(default_factory=list)
    root: Path = Path()
    reads: str = ""
    stages: Sequence[str] = ()  # the notebooks that are to be run
    by_person: Counter | None = None  # images that a person labelled, by split; None = it is not a folder that says so

    @cached_property
    def sample(self) -> Sample:
        """What converting one of the images takes; it is read. Of drawn ones, and where none are converted, the usual."""
        drawn = self.cfg.convert.source == "drawn"
        return USUAL if drawn else sample_of([item for item in self.items if not item.is_left])

    def errors(self) -> list[Finding]:
        """Return the findings that end a run."""
        return [one for one in self.findings if one.severity == ERROR]

    def add(self, severity: str, problem: str, remedy: str = "", key: str = "") -> None:
        """Note a finding, once; without a key, the first setting that its text names."""
        found = Finding(severity, problem, remedy, key or _key_in(f"{problem} {remedy}"))
        if found.problem not in {one.problem for one in self.findings}:
            self.findings.append(found)

    def plan(self) -> str:
        """Return in a line what would be run: images of each split and class, and what is read."""
        parts = []
        for split, kinds in self.counts().items():
            parts.append(f"{split} {', '.join(f'{name} {count}' for name, count in kinds.items())}")
        words = {"truth": "their labels", "proposed": "labels proposed, which are not scored"}
        labels = words.get(self.cfg.label.use, self.cfg.label.use)
        if self.by_person is not None:
            each = ", ".join(f"{split} {self.by_person[split]}" for split in ("train", "val", "test"))
            labels += f": {self.by_person.total()} labelled by a person ({each}), the others proposed"
        images = f"{counted(len(self.records), 'image')} ({'; '.join(parts) or 'none'})"
        return f"would run: {images} of {self.reads or 'no data'}; {labels}; into {self.run_dir}"

    def counts(self) -> dict[str, dict[str, int]]:
        """Return {split: {class: images}}; images without a split are "unused", without a class "unknown"."""
        count = Counter((one.split or "unused", one.cell_type or "unknown") for one in self.records)
        splits = [name for name in ("train", "val", "test", "unused") if any(split == name for split, _ in count)]
        return {name: {kind: count[s, kind] for s, kind in sorted(count) if s == name} for name in splits}

    def to_lines(self) -> list[str]:
        """Return the findings in words, errors first, how many there are, and what would be run."""
        lines = [one.to_text() for one in self.findings]
        warnings = len(lines) - len(self.errors())
        lines.append(
            f"{counted(len(self.errors()), 'error')}, {counted(warnings, 'warning')}"
            if lines
            else "no problem is found"
        )
        return [*lines, *([self.plan()] if self.reads else [])]

    def to_json(self) -> dict[str, Any]:
        """Return plain values: ok, errors, warnings, findings, images {split: {class: count}}, reads, run."""
        count = Counter(one.severity for one in self.findings)
        return {
            "ok": not count[ERROR],
            "errors": count[ERROR],
            "warnings": count[WARNING],
            "findings": [vars(one) for one in self.findings],
            "images": self.counts(),
            "reads": self.reads,
            "run": str(self.run_dir),
        }


def _key_in(text: str) -> str:
    words = re.findall(r"[a-z_]+(?:\.[a-z_]+)+|[a-z_]+(?=:)", text)
    return next((word for word in words if word in known_keys()), "")


# ---- the run folder --------------------------------------------------------------------------------------------------
def check_place(outlook: Outlook) -> None:
    """Refuse a run folder that cannot be written, is another thing, or lies in the data."""
    check_folder(outlook.run_dir)
    check_writable(outlook.run_dir)
    cfg, root = outlook.cfg.convert, None
    with suppress(UserError):  # said where the images are listed
        root = None if cfg.source == "drawn" else data_path(cfg)
    if root is not None:
        refuse_in_data(outlook.run_dir, root)


def check_room(outlook: Outlook) -> None:
    """Warn where the notebooks to be run do not fit into memory or on the disk; `cellkit run` refuses it then.

    Nothing is timed here: what a training step takes is known where it was timed before.
    """
    how = outlook.cfg, outlook.stages, outlook.records, outlook.instances
    try:
        plan = Plan.of(*how, "before", outlook.sample)
    except UserError:  # weights that are not here: said where they are looked for
        plan = Plan.of(*how, False, outlook.sample)
    refused, said = reasons_against(plan.forecast(), plan, outlook.run_dir)
    for error in refused:
        outlook.add(WARNING, error.problem, error.remedy)
    for problem in said:
        outlook.add(WARNING, problem)


# ---- data ------------------------------------------------------------------------------------------------------------
def list_source(outlook: Outlook) -> None:
    """List the images of the source; of drawn ones, blank files of the same names."""
    cfg = outlook.cfg.convert
    if cfg.source == "drawn":
        write_blank_fields(outlook.root, cfg.classes, cfg.drawn)
        outlook.reads = "cells to be drawn"
    else:
        outlook.root = data_path(cfg)
        outlook.reads = f"'{outlook.root}' ({cfg.source})"
    outlook.items = list_images(cfg, outlook.root)
    refuse_untaught(outlook.items, outlook.cfg)


def open_headers(outlook: Outlook) -> None:
    """Open the header of every image and of its labels: channels, sizes, damage; name what cannot be used."""
    if not outlook.items:
        return
    cfg = outlook.cfg.convert
    header_of = partial(_header_of, scale=cfg.scale, root=Path(outlook.root))
    found, failed = map_items(header_of, outlook.items, "look", cfg.workers, name=lambda item: readable(item.source))
    quarantined = [one.in_one_line() for one in failed]
    done = [one for one in found if one is not None]
    with collected_warnings():  # that a competition's test images have no truth is no warning
        done, bare = with_truth(outlook.items, done, cfg)
    for what, by_reason in unusable([*quarantined, *bare], outlook.items):
        for (problem, remedy), names in grouped_alike(by_reason):
            key = "convert.channels" if " is no channel" in problem else ""
            outlook.add(WARNING, f"{len(names)} {what}: {first_of(names)}: {problem}", remedy, key)
    for _, _, left_out in done:
        for text in left_out:
            outlook.add(WARNING, f"not read: {text}", "store it as a file of its own, if it is to be used")
    outlook.records, outlook.instances = [one[0] for one in done], [one[1] for one in done]
    warn_one_channel(outlook.records, cfg)
    warn_lacking_classes(outlook.records, cfg, [item for item in outlook.items if not item.is_left])
    refuse_none(done, outlook.items, quarantined, outlook.root)


def _header_of(item: SourceImage, scale: float, root: Path) -> tuple[ImageRecord, Instances | None, tuple[str, ...]]:
    """Return what a run would note of an image, its cells or what they could be, and what of its file is not read."""
    with headers_only():
        loaded: Loaded = item.load()
    cells = loaded.instances
    cells = None if cells is None else resize_instances(cells, scale)
    return record_of(item, loaded, scale, root), cells, loaded.left_out


def grouped_alike(by_reason: Mapping[str, Sequence[str]]) -> list[tuple[tuple[str, str], list[str]]]:
    """Put reasons together that differ in the name of the file only, which becomes ``*``: [((problem, remedy), names)].

    Examples
    --------
    >>> reasons = {f"{name} is 4 px, its labels truth/{name} 5": [name] for name in ("a.tif", "b.tif")}
    >>> grouped_alike(reasons)
    [(('*.tif is 4 px, its labels truth/*.tif 5', ''), ['a.tif', 'b.tif'])]
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for reason, names in by_reason.items():
        for name in names:
            stem = re.escape(stem_of(Path(name)))
            groups.setdefault(re.sub(rf"(?<![A-Za-z0-9]){stem}(?=\.[A-Za-z])", "*", reason), []).append((reason, name))
    alike = []
    for pattern, pairs in groups.items():
        same = len({reason for reason, _ in pairs}) == 1
        problem, _, remedy = (pairs[0][0] if same else pattern).partition("; ")
        alike.append(((problem, remedy), [name for _, name in pairs]))
    return alike


def first_of(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


def check_counts(outlook: Outlook) -> None:
    """Check what notebook 01 checks before and after it converts: enough images of every split and class, a cell of each class.

    Raises
    ------
    UserError
        Too few images, or a class without a cell; inside `collected` noted.
    """
    images = [item for item in outlook.items if not item.is_left]
    records = [record for record in outlook.records if record.split]
    with collected() as noted:
        if images:
            check_enough(images, outlook.cfg)
        if outlook.records and not noted:
            check_enough(records, outlook.cfg, "images are left (the others are named in the warnings)")
        if outlook.records and not noted:
            check_labelled(outlook.records, outlook.instances if count_labelled(outlook) else None, outlook.cfg)
    raise_or_collect(*noted)


def count_labelled(outlook: Outlook) -> int:
    """Return how many images have true cells."""
    return sum(cells is not None for cells in outlook.instances)


def images_of_run(outlook: Outlook) -> None:
    """Take the images that the run folder lists, where notebook 01 is not run again."""
    run = Run(outlook.run_dir)
    outlook.reads = f"'{outlook.run_dir}'"
    outlook.records = read_records(run.find("records"))
    truth = Instances.from_labels(np.ones((1, 1), np.int32)) if run.find_all("truth") else None
    outlook.instances = [truth] * len(outlook.records)
