"""A look ahead: every problem of data, labels, classes, splits and settings at once, before anything is run.

The stages' own functions are asked: images are listed and opened by the code of notebook 01, which here reads the headers of
pictures only (`file_info.headers_only`) and goes on after a refusal (`errors.collected`), so that what is told here and what a
stage does cannot differ. Label images are read whole. What only the pixels of pictures tell (copies,
blur) is found by the stages.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.config import STAGES, Config
from cellkit.config_places import data_path
from cellkit.config_reading import known_keys, load_config
from cellkit.errors import Quarantined, UserError, collected, refuse_or_note
from cellkit.file_info import headers_only
from cellkit.instances import Instances
from cellkit.listing import Loaded, SourceImage, check_enough, check_labelled
from cellkit.log import heard
from cellkit.machine import here
from cellkit.names import stem_of
from cellkit.records import ImageRecord

ERROR, WARNING = "error", "warning"
MODELS = (
    "threshold",
    "cellpose_base",
    "cellpose_tuned",
    "maskrcnn",
)  # whose predictions a run has, see `evaluate.submit`
BYTES_PER_PX = 3  # of a picture in the run folder, at most
MOST_NAMED = 12


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes
    ----------
    severity : {"error", "warning"}
        An error ends the run; with a warning it goes on, and what is named is set aside or not used.
    problem, remedy : str
        What came, and what to do.
    key : str
        The setting it is about, "" where it is about none.
    """

    severity: str
    problem: str
    remedy: str = ""
    key: str = ""

    def told(self) -> str:
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
        labels = {"truth": "their labels", "proposed": "labels proposed"}.get(self.cfg.label.use, self.cfg.label.use)
        images = f"{len(self.records)} image(s) ({'; '.join(parts) or 'none'})"
        return f"would run: {images} of {self.reads or 'no data'}; {labels}; into {self.run_dir}"

    def counts(self) -> dict[str, dict[str, int]]:
        """Return {split: {class: images}}; images without a split are "unused", without a class "unknown"."""
        told = Counter((one.split or "unused", one.cell_type or "unknown") for one in self.records)
        splits = [name for name in ("train", "val", "test", "unused") if any(split == name for split, _ in told)]
        return {name: {kind: told[s, kind] for s, kind in sorted(told) if s == name} for name in splits}

    def tell(self) -> list[str]:
        """Return the findings in words, errors first, how many there are, and what would be run."""
        told = [one.told() for one in self.findings]
        warnings = len(told) - len(self.errors())
        told.append(f"{len(self.errors())} error(s), {warnings} warning(s)" if told else "no problem is found")
        return [*told, *([self.plan()] if self.reads else [])]

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


# ---- all of it -----------------------------------------------------------------------------------------------------
def preflight(cfg: Config) -> list[Finding]:
    """Return everything that is wrong with a configuration and what it reads, errors first; nothing is written.

    Parameters
    ----------
    cfg : Config
        From `load_config`.
    """
    return look_ahead(cfg).findings


def look_ahead(cfg: Config, run_dir: str | Path | None = None, stages: Iterable[str] = STAGES) -> Outlook:
    """Do what `preflight` does, and say what would be run.

    Parameters
    ----------
    run_dir : path, optional
        Where it would be written; default ``runs/<name>``.
    stages : iterable of str
        The notebooks that would run. Without the first the images are those that the run folder lists.
    """
    outlook = Outlook(cfg, here(run_dir if run_dir is not None else Path("runs") / cfg.name))
    stages = set(stages)
    images = OF_DATA if "01_convert" in stages else (_images_of_run,)
    with tempfile.TemporaryDirectory(prefix="cellkit-") as folder:
        outlook.root = Path(folder)  # where blank files stand in for drawn ones
        for check in (
            _check_place,
            _check_recipes,
            *images,
            *(check for check, stage in OF_SETTINGS if stage in stages),
        ):
            _ask(outlook, check)
    _without_consequences(outlook)
    outlook.findings.sort(key=lambda one: one.severity != ERROR)
    return outlook


def look_at(config: str | Path, overrides: Mapping[str, Any], run_dir: str | Path | None = None) -> Outlook:
    """Do what `look_ahead` does for a YAML file; where that is no configuration, say all that is wrong with it alone.

    Raises
    ------
    UserError
        There is no such file, or it is no YAML.
    """
    with collected() as noted:
        try:
            outlook = look_ahead(load_config(config, overrides), run_dir)
        except UserError:
            if not noted:
                raise
            outlook = Outlook(Config(), Path())
    for error in noted:
        outlook.add(ERROR, *str(error).split("\n", 1))
    outlook.findings.sort(key=lambda one: one.severity != ERROR)
    return outlook


def _ask(outlook: Outlook, check: Callable[[Outlook], None]) -> None:
    """Let one check look; what it refuses is an error, what it warns of a warning."""
    with collected() as noted, heard() as said:
        try:
            check(outlook)
        except UserError as error:
            noted.append(error)
    for error in noted:
        problem, _, remedy = str(error).partition("\n")
        outlook.add(ERROR, problem, "; ".join(remedy.splitlines()))
    for line in said:
        problem, _, remedy = line.rpartition("; ")
        outlook.add(WARNING, problem or remedy, remedy if problem else "nothing is to be done where that is meant")


def _key_in(text: str) -> str:
    words = re.findall(r"[a-z_]+(?:\.[a-z_]+)+|[a-z_]+(?=:)", text)
    return next((word for word in words if word in known_keys()), "")


# ---- the run folder --------------------------------------------------------------------------------------------------
def _check_place(outlook: Outlook) -> None:
    from cellkit.manifest import check_folder, check_writable

    check_folder(outlook.run_dir)
    check_writable(outlook.run_dir)


def _check_disk(outlook: Outlook) -> None:
    """Warn where the pictures may not fit on the disk; they are compressed, so that they may."""
    from cellkit.manifest import MIN_FREE_BYTES, free_bytes

    wanted = sum(one.height_px * one.width_px for one in outlook.records) * BYTES_PER_PX
    free = free_bytes(outlook.run_dir)
    if wanted > free - MIN_FREE_BYTES:
        told = f"the pictures take up to {wanted / 1e9:.1f} GB, {free / 1e9:.1f} GB are free at '{outlook.run_dir}'"
        outlook.add(WARNING, told, "free space, name another folder with --run, or set convert.scale or max_images")


# ---- data ------------------------------------------------------------------------------------------------------------
def _list(outlook: Outlook) -> None:
    """List the images of the source; of drawn ones, blank files of the same names."""
    from cellkit.sources import list_images
    from cellkit.synthetic_files import write_blank_fields

    cfg = outlook.cfg.convert
    if cfg.source == "drawn":
        write_blank_fields(outlook.root, cfg.classes, cfg.drawn)
        outlook.reads = "cells to be drawn"
    else:
        outlook.root = data_path(cfg)
        outlook.reads = f"'{outlook.root}' ({cfg.source})"
    outlook.items = list_images(cfg, outlook.root)


def _open(outlook: Outlook) -> None:
    """Open the header of every image and of its labels: channels, sizes, damage; name what cannot be used."""
    from cellkit.errors import plain_reason, readable
    from cellkit.loop import map_items
    from cellkit.sources import refuse_none, tell_one_channel, unusable, with_truth

    if not outlook.items:
        return
    cfg = outlook.cfg.convert
    look = partial(_header_of, scale=cfg.scale, root=Path(outlook.root))
    found, failed = map_items(look, outlook.items, "look", cfg.workers, name=lambda item: readable(item.source))
    quarantined = [Quarantined(one.item, plain_reason(one.reason)) for one in failed]
    done = [one for one in found if one is not None]
    with heard():  # that a competition's test images have no truth is no warning
        done, bare = with_truth(outlook.items, done)
    for what, by_reason in unusable([*quarantined, *bare], outlook.items):
        for (problem, remedy), names in _alike(by_reason):
            key = "convert.channels" if " is no channel" in problem else ""
            outlook.add(WARNING, f"{len(names)} {what}: {_some(names)}: {problem}", remedy, key)
    for _, _, left_out in done:
        for text in left_out:
            outlook.add(WARNING, f"not read: {text}", "store it as a file of its own, if it is to be used")
    outlook.records, outlook.instances = [one[0] for one in done], [one[1] for one in done]
    tell_one_channel(outlook.records, cfg)
    refuse_none(done, outlook.items, quarantined, outlook.root)


def _header_of(item: SourceImage, scale: float, root: Path) -> tuple[ImageRecord, Instances | None, tuple[str, ...]]:
    """Return what a run would note of an image, its cells or what they could be, and what of its file is not read."""
    from cellkit.resize import resize_instances
    from cellkit.sources import record_of

    with headers_only():
        loaded: Loaded = item.load()
    cells = loaded.instances
    cells = None if cells is None else resize_instances(cells, scale)
    return record_of(item, loaded, scale, root), cells, loaded.left_out


def _alike(by_reason: Mapping[str, Sequence[str]]) -> list[tuple[tuple[str, str], list[str]]]:
    """Put reasons together that differ in the name of the file only, which becomes ``*``: [((problem, remedy), names)].

    Examples
    --------
    >>> _alike({"a.tif is 4 px, its labels truth/a.tif 5": ["a.tif"], "b.tif is 4 px, its labels truth/b.tif 5": ["b.tif"]})
    [(('*.tif is 4 px, its labels truth/*.tif 5', ''), ['a.tif', 'b.tif'])]
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for reason, names in by_reason.items():
        for name in names:
            stem = re.escape(stem_of(Path(name)))
            groups.setdefault(re.sub(rf"(?<![A-Za-z0-9]){stem}(?=\.[A-Za-z])", "*", reason), []).append((reason, name))
    told = []
    for pattern, pairs in groups.items():
        same = len({reason for reason, _ in pairs}) == 1
        problem, _, remedy = (pairs[0][0] if same else pattern).partition("; ")
        told.append(((problem, remedy), [name for _, name in pairs]))
    return told


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


def _check_enough(outlook: Outlook) -> None:
    """Ask what notebook 01 asks before and after it converts: enough images of every split and class, a cell of each class."""
    images = [item for item in outlook.items if not item.is_left]
    records = [record for record in outlook.records if record.split]
    with collected() as noted:
        if images:
            check_enough(images, outlook.cfg)
        if outlook.records and not noted:
            check_enough(records, outlook.cfg, "images are left (the others are named in the warnings)")
        if outlook.records and not noted:
            check_labelled(outlook.records, outlook.instances if _labelled(outlook) else None, outlook.cfg)
    refuse_or_note(*noted)


def _labelled(outlook: Outlook) -> int:
    return sum(cells is not None for cells in outlook.instances)


def _images_of_run(outlook: Outlook) -> None:
    """Take the images that the run folder lists, where notebook 01 is not run again."""
    from cellkit.records import read_records
    from cellkit.run import Run

    run = Run(outlook.run_dir)
    outlook.reads = f"'{outlook.run_dir}'"
    outlook.records = read_records(run.find("records"))
    truth = Instances.from_labels(np.ones((1, 1), np.int32)) if run.find_all("truth") else None
    outlook.instances = [truth] * len(outlook.records)


# ---- labels and models -----------------------------------------------------------------------------------------------
def _check_labels(outlook: Outlook) -> None:
    """See whether there are the labels that ``label.use`` names; of a folder, which files fit which image."""
    from cellkit.annotate import refuse_unlabelled
    from cellkit.corrections import folder_of, refuse_own
    from cellkit.instances import refuse_boxes

    use, count = outlook.cfg.label.use, _labelled(outlook)
    folder = folder_of(use).get("corrections")
    if folder is not None:
        refuse_own(folder, outlook.run_dir)
    if not outlook.records:
        return
    if use == "truth":
        refuse_unlabelled(count > 0)
        refuse_boxes([cells for cells in outlook.instances if cells is not None], "label.use: truth")
    elif use == "proposed" and count:
        told = (
            f"label.use is proposed: the labels that {count} image(s) came with are not used, and no accuracy is told"
        )
        outlook.add(WARNING, told, "set label.use: truth")
    elif folder is not None:
        _check_corrections(outlook, folder)


def _check_corrections(outlook: Outlook, folder: Path) -> None:
    """Read a folder of corrections as notebook 02 does; the proposals are those of the run folder, where it has any."""
    from cellkit.corrections import read_corrections
    from cellkit.dataset import CellDataset
    from cellkit.label_folders import chosen_cells

    records = [record for record in outlook.records if record.split]
    empty = [Instances.empty((record.height_px, record.width_px)) for record in records]
    images = CellDataset(records, empty, (), outlook.run_dir, list(range(len(records))))
    try:
        former = chosen_cells(outlook.run_dir / "labels")
    except UserError:
        former = {}
    proposed = {name: cells for name, (cells, maker, _) in former.items() if maker == "proposed"}
    found, unused, _ = read_corrections(images, [proposed.get(record.image_id) for record in records], folder)
    by_reason: dict[str, list[str]] = {}
    for one in unused:
        by_reason.setdefault(one.reason, []).append(one.item)
    for (problem, remedy), names in _alike(by_reason):
        outlook.add(WARNING, f"{outlook.cfg.label.use}: {_some(names)} cannot be used: {problem}", remedy, "label.use")
    if len(found) == len(images) and not any(len(one.cells) for one in found.values()):
        raise UserError("no image has a labelled cell", "check the labels")


def _check_cells(outlook: Outlook, section: str) -> None:
    """Ask whether the training images have as many true cells, and as large ones, as a section of the settings wants."""
    from cellkit.backends.shared.fine_tuning import refuse_small
    from cellkit.dataset import CellDataset, refuse_few
    from cellkit.listing import is_perhaps

    if outlook.cfg.label.use != "truth" or outlook.cfg.convert.source == "drawn":  # which are drawn is not known yet
        return
    pairs = zip(outlook.records, outlook.instances, strict=True)
    known = [(record, own) for record, own in pairs if own is not None and record.split == "train"]
    if not known or any(own.boxes_only or is_perhaps(own) for _, own in known):
        return
    least = outlook.cfg.label.min_area_px
    records, cells = [record for record, _ in known], [own[own.areas_px >= least] for _, own in known]
    settings = getattr(outlook.cfg, section)
    if section == "finetune":
        refuse_few(cells, settings.min_train_masks)
    train = CellDataset(records, cells, (), outlook.run_dir, list(range(len(records))))
    refuse_small(train, settings.min_area_px, f"{section}.min_area_px")


def _check_label_model(outlook: Outlook) -> None:
    """Refuse a backend that cannot be used, and a model that is not here or of another backend."""
    from cellkit.backends import check_backend, get_backend
    from cellkit.weights import card_for

    cfg = outlook.cfg.label
    with collected() as noted:
        check_backend(cfg.backend)
        path = _weights_for("label", cfg.backend, "model", cfg.model, [cfg.backend])
        if path.suffix == ".safetensors":
            card_for(path, cfg.backend)
        else:  # a torch file says what it is only when it is read
            get_backend(cfg.backend).load(path)
    refuse_or_note(*noted)


def _check_base(outlook: Outlook) -> None:
    _check_training("finetune", outlook.cfg.finetune)


def _check_detector(outlook: Outlook) -> None:
    _check_training("maskrcnn", outlook.cfg.maskrcnn)


def _check_training(section: str, cfg: Any) -> None:
    """Refuse a backend that cannot be used, weights to start from that are not here, and what the backend itself refuses."""
    from cellkit.backends import check_backend, get_backend, if_able
    from cellkit.settings import weights_fields

    with collected() as noted:
        check_backend(cfg.backend)
        paths = {}
        for key, fitting in weights_fields(type(cfg)).items():
            if (name := getattr(cfg, key)) not in ("scratch", "tuned"):
                paths[key] = str(_weights_for(section, cfg.backend, key, name, fitting))
        if_able(get_backend(cfg.backend), "check", cfg.model_copy(update=paths))
    refuse_or_note(*noted)


def _weights_for(section: str, backend: str, key: str, name: str, fitting: Sequence[str]) -> Path:
    """Return the path of weights; refuse a name of the registry whose weights are for none of the backends `fitting`."""
    from cellkit.model import locate_weights, weights_names
    from cellkit.registry import REGISTRY

    entry = REGISTRY.get(name)
    if entry is not None and entry.backend not in fitting and not here(name).is_file():
        told = f"{section}.{key} is '{name}', weights of {entry.backend or 'no network'}, and {section}.backend is {backend}"
        raise UserError(told, f"use {', '.join(weights_names(backend))}")
    return locate_weights(name)


def _check_memory(outlook: Outlook) -> None:
    """Ask whether the cells of the largest image can be found, where the config says how large a cell is."""
    from cellkit.backends import backend_module
    from cellkit.backends.shared.memory import bytes_for
    from cellkit.machine import check_memory

    cfg = outlook.cfg.label
    diameter_px = getattr(cfg, "diameter_px", None)
    if diameter_px and outlook.records:
        largest = max(outlook.records, key=lambda one: one.height_px * one.width_px)
        shape, module = (largest.height_px, largest.width_px), backend_module(cfg.backend)
        needed = bytes_for(shape, diameter_px, module.BYTES_PER_PX, getattr(module, "CELL_PX", None))
        check_memory(Path(largest.source or largest.path), needed, "finding the cells of")


# ---- what is reported and handed in ------------------------------------------------------------------------------------
def _check_evaluation(outlook: Outlook) -> None:
    from cellkit.evaluation import check_submit

    cfg = outlook.cfg.evaluate
    models = [*MODELS, *_models_of_recipes()]
    if cfg.submit != "best" and not any(fnmatchcase(cfg.submit, name) for name in models):
        check_submit(cfg.submit, models)


def _models_of_recipes() -> list[str]:
    """Return the models whose predictions the recipes are to write; patterns where a name is computed."""
    from cellkit.evaluation import KEY
    from cellkit.notebooks import read_notebooks
    from cellkit.recipes import RECIPES

    recipes = [book for book in read_notebooks() if book.section.startswith(f"{RECIPES}.")]
    return [key.removeprefix(KEY) for book in recipes for key in book.keys if key.startswith(KEY)]


def _check_recipes(outlook: Outlook) -> None:
    """Refuse recipes that are no notebooks, and backends of theirs that cannot be used."""
    from cellkit.backends import check_backend

    _models_of_recipes()
    for name in type(outlook.cfg.recipes).model_fields:
        backend = getattr(outlook.cfg.section(f"recipes.{name}"), "backend", None)
        if backend is not None:
            check_backend(backend)


def _check_profile(outlook: Outlook) -> None:
    """Compare ``evaluate.profile`` with the competition's own sample_submission.csv, where one lies in the data folder."""
    from cellkit.listing import header_of
    from cellkit.sources import sample_ids
    from cellkit.submission import profiles

    if not outlook.items:
        return
    wanted = outlook.cfg.evaluate.profile
    sample_ids(
        outlook.root, [item for item in outlook.items if not item.is_left]
    )  # says which table it does not follow
    for path in sorted(outlook.root.glob("*sample_submission*.csv")):
        theirs = [name for name, profile in profiles().items() if set(profile.columns) <= set(header_of(path))]
        if theirs and wanted not in theirs:
            told = f"evaluate.profile is {wanted}, and {path.name} has the columns of {' or '.join(theirs)}"
            outlook.add(WARNING, told, f"set evaluate.profile: {theirs[0]}")


def _without_consequences(outlook: Outlook) -> None:
    """Where the channels of images lie in files of their own, drop what is said of each file taken for an image."""
    if any("seem to be the channels of one image" in one.problem for one in outlook.errors()):
        outlook.findings = [one for one in outlook.findings if not any(part in one.problem for part in OF_PARTS)]


OF_PARTS = ("is no channel of ", "no image is called so", "none is called after an image")
OF_DATA = (_list, _open, _check_enough, _check_disk)
OF_SETTINGS = (
    (_check_labels, "02_label_with_cellpose"),
    (_check_label_model, "02_label_with_cellpose"),
    (_check_memory, "02_label_with_cellpose"),
    (_check_base, "03_finetune_cellpose"),
    (partial(_check_cells, section="finetune"), "03_finetune_cellpose"),
    (_check_detector, "05_train_maskrcnn"),
    (partial(_check_cells, section="maskrcnn"), "05_train_maskrcnn"),
    (_check_evaluation, "06_evaluate_map_iou"),
    (_check_profile, "06_evaluate_map_iou"),
)
