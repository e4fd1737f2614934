"""A look ahead: every problem of data, labels, classes, splits and settings at once, before anything is run.

The stages' own functions are used: images are listed and opened by the code of notebook 01, which here reads the headers of
pictures only (`file_info.headers_only`) and goes on after a refusal (`errors.collected`), so that what is listed here and what a
stage does cannot differ. Label images are read whole. What only pixels show (copies, blur) is found
by the stages.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from fastcore.basics import groupby

from cellkit.cells.dataset import CellDataset, refuse_few
from cellkit.cells.instances import Instances
from cellkit.cells.names import plain
from cellkit.cells.outlines import refuse_boxes
from cellkit.cells.resize import resized_shape
from cellkit.config.reading import load_config
from cellkit.config.sections import STAGES, Config
from cellkit.errors import UserError, collected, counted, raise_or_collect
from cellkit.evaluate.evaluation import KEY, check_submit
from cellkit.fetch.find import locate_weights, named_for, weights_names
from cellkit.fetch.registry import REGISTRY
from cellkit.formats.competitions import profiles
from cellkit.formats.labels import chosen_cells
from cellkit.formats.samples import sample_files
from cellkit.formats.sides import first_names
from cellkit.labelling.annotate import refuse_unlabelled
from cellkit.labelling.corrections import corrections_folder, read_corrections, refuse_own
from cellkit.log import collected_warnings
from cellkit.machine import check_memory, here
from cellkit.models import FUSED, TEACHER, backend_module, check_backend, get_backend, if_able
from cellkit.models.curves import check_curves
from cellkit.models.shared.fine_tuning import refuse_small
from cellkit.models.shared.inputs import bytes_for
from cellkit.models.weights import card_for
from cellkit.run.notebooks import notebooks_of
from cellkit.run.preflight_data import (
    ERROR,
    WARNING,
    Finding,
    Outlook,
    check_counts,
    check_place,
    check_room,
    count_labelled,
    grouped_alike,
    images_of_run,
    list_source,
    open_headers,
)
from cellkit.settings import weights_fields
from cellkit.sources.loading import is_perhaps
from cellkit.sources.source_tables import asked_ids, header_of


# ---- labels and models -----------------------------------------------------------------------------------------------
def check_labels(outlook: Outlook) -> None:
    """See whether there are the labels that ``label.use`` names; of a folder, which files fit which image."""
    use, count = outlook.cfg.label.use, count_labelled(outlook)
    folder = corrections_folder(use)
    if folder is not None:
        refuse_own(folder, outlook.run_dir)
    if not outlook.records:
        return
    if use == "truth":
        refuse_unlabelled(count > 0)
        refuse_boxes([cells for cells in outlook.instances if cells is not None], "label.use: truth")
    elif use == "proposed" and count:
        problem = (
            f"label.use is proposed: the labels that {counted(count, 'image')} came with are not used, and there is no "
        )
        problem += "accuracy"
        remedy = "set label.use: truth"
        if count < len(outlook.records):
            remedy += ", or the folder of your labels, which leaves proposals to images that it has none for"
        outlook.add(WARNING, problem, remedy)
    elif folder is not None:
        by_person = _check_corrections(outlook, folder)
        pairs = zip(outlook.records, outlook.instances, strict=True)
        count = sum(own is not None and record.image_id not in by_person for record, own in pairs)
        if count:
            problem = f"label.use is a folder: the labels that {counted(count, 'image')} came with are not used"
            remedy = "images that the folder holds nothing for get proposals; labels of your own are corrected where they lie"
            outlook.add(WARNING, problem, f"{remedy}, with label.use: truth")


def _check_corrections(outlook: Outlook, folder: Path) -> set[str]:
    """Read a folder of corrections as notebook 02 does, and return the images that a person labelled there.

    The proposals are those of the run folder, where it has any.
    """
    records, cfg = [record for record in outlook.records if record.split], outlook.cfg.convert
    if cfg.source == "drawn":  # the blank files in their place are smaller
        height, width = resized_shape((cfg.drawn.size_px, cfg.drawn.size_px), cfg.scale)
        records = [replace(record, height_px=height, width_px=width) for record in records]
    empty = [Instances.empty((record.height_px, record.width_px)) for record in records]
    images = CellDataset(records, empty, (), outlook.run_dir, list(range(len(records))))
    try:
        former = chosen_cells(outlook.run_dir / "labels")
    except UserError:
        former = {}
    proposed = {name: cells for name, (cells, maker, _) in former.items() if maker == "proposed"}
    unlabelled = {path.resolve() for item in outlook.items if item.bare for path in item.files}
    painted = [proposed.get(record.image_id) for record in records]
    found, unused, _ = read_corrections(images, painted, folder, unlabelled)
    for (problem, remedy), names in grouped_alike(groupby(unused, "reason", "item")):
        outlook.add(
            WARNING, f"{outlook.cfg.label.use}: {first_names(names)} cannot be used: {problem}", remedy, "label.use"
        )
    by_person = {name for name, one in found.items() if one.by_person}
    outlook.by_person = Counter(record.split for record in records if record.image_id in by_person)
    if not outlook.by_person["val"] + outlook.by_person["test"]:
        problem = (
            f"{outlook.cfg.label.use} holds no validation or test image that a person labelled: no score is reported"
        )
        outlook.add(WARNING, problem, "correct some of those too; 02 and cellkit plan name them", "label.use")
    if len(found) == len(images) and not any(len(one.cells) for one in found.values()):
        raise UserError("no image has a labelled cell", "check the labels")
    return by_person


def check_cells(outlook: Outlook, section: str) -> None:
    """Ask whether the training images have as many true cells, and as large ones, as a section of the settings wants."""
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
    least_px = getattr(settings, "min_area_px", None)
    if least_px is not None:  # else it is searched, or there is none
        refuse_small(train, least_px, f"{section}.min_area_px")


def check_label_model(outlook: Outlook) -> None:
    """Refuse a backend that cannot be used, and a model that is not here or of another backend.

    Raises
    ------
    UserError
        As `check_backend` and `card_for`; inside `collected` noted.
    """
    cfg = outlook.cfg.label
    with collected() as noted:
        check_backend(cfg.backend)
        path = _weights_for("label", cfg.backend, "model", cfg.model, [cfg.backend])
        if path.suffix == ".safetensors":
            card_for(path, cfg.backend)
        else:  # a torch file says what it is only when it is read
            get_backend(cfg.backend).load(path)
    raise_or_collect(*noted)


def check_base(outlook: Outlook) -> None:
    """Refuse a training of Cellpose that cannot begin."""
    _check_training("finetune", outlook.cfg.finetune)


def check_detector(outlook: Outlook) -> None:
    """Refuse a training of the detector that cannot begin.

    Raises
    ------
    UserError
        As its backend; or it is to start from what 03 adapts, and that is another kind of network, or left out.
    """
    cfg, tuned = outlook.cfg.maskrcnn, outlook.cfg.finetune.backend
    for key, fitting in weights_fields(type(cfg)).items():
        if getattr(cfg, key) == "tuned" and "finetune" in outlook.cfg.leave_out:
            raise UserError(
                f"maskrcnn.{key} is tuned, and leave_out names finetune, which tunes it", f"set maskrcnn.{key}: starter"
            )
        if getattr(cfg, key) == "tuned" and tuned not in fitting:
            raise UserError(
                f"maskrcnn.{key} is tuned, and finetune.backend is {tuned}: its network is no start for {cfg.backend}",
                f"set maskrcnn.{key}: starter, or scratch",
            )
    _check_training("maskrcnn", cfg)


def _check_training(section: str, cfg: Any) -> None:
    """Refuse a backend that cannot be used, weights to start from that are not here, and what the backend itself refuses."""
    with collected() as noted:
        check_backend(cfg.backend)
        check_curves(getattr(cfg, "tensorboard", False))
        paths = {}
        for key, fitting in weights_fields(type(cfg)).items():
            if (name := getattr(cfg, key)) not in ("scratch", "tuned"):
                paths[key] = str(_weights_for(section, cfg.backend, key, name, fitting))
        if_able(get_backend(cfg.backend), "check", cfg.model_copy(update=paths))
    raise_or_collect(*noted)


def _weights_for(section: str, backend: str, key: str, name: str, fitting: Sequence[str]) -> Path:
    """Return the path of weights; refuse a name of the registry whose weights are for none of the backends `fitting`."""
    name = named_for(name, fitting)
    entry = REGISTRY.get(name)
    if entry is not None and entry.backend not in fitting and not here(name).is_file():
        problem = f"{section}.{key} is '{name}', weights of {entry.backend or 'no network'}, and {section}.backend is {backend}"
        raise UserError(problem, f"use {', '.join(weights_names(backend))}")
    return locate_weights(name)


def check_model_memory(outlook: Outlook) -> None:
    """Ask whether the cells of the largest image can be found, where the config says how large a cell is."""
    cfg = outlook.cfg.label
    diameter_px = getattr(cfg, "diameter_px", None)
    if diameter_px and outlook.records:
        largest = max(outlook.records, key=lambda one: one.height_px * one.width_px)
        shape, module = (largest.height_px, largest.width_px), backend_module(cfg.backend)
        needed = bytes_for(
            shape,
            diameter_px,
            module.BYTES_PER_PX * (getattr(cfg, "flips", None) or 1),
            getattr(module, "CELL_PX", None),
        )
        check_memory(Path(largest.source or largest.path), needed, "finding the cells of")


# ---- what is reported and handed in ------------------------------------------------------------------------------------
def check_evaluation(outlook: Outlook) -> None:
    """Refuse a model to hand in, to measure the cells of, or to fuse, that no stage makes."""
    cfg = outlook.cfg.evaluate
    models = [name for name in _models_of_run(outlook.cfg) if name != TEACHER or outlook.cfg.label.teacher]
    for name in cfg.fuse:
        if not any(fnmatchcase(name, model) for model in models):
            check_submit(name, models, "fuse")
    models += [FUSED] if cfg.fuse else []
    named = {"submit": cfg.submit if cfg.submit != "best" else None, "measure": cfg.measure}
    for key, model in named.items():
        if model is not None and not any(fnmatchcase(model, name) for name in models):
            check_submit(model, models, key)


def _models_of_run(cfg: Config) -> list[str]:
    """Return the models whose predictions the notebooks of a run are to write; patterns where a name is computed."""
    return [key.removeprefix(KEY) for book in notebooks_of(cfg) for key in book.keys if key.startswith(KEY)]


def check_recipes(outlook: Outlook) -> None:
    """Refuse recipes that are no notebooks, and backends of theirs that cannot be used."""
    notebooks_of(outlook.cfg)
    for _, section in outlook.cfg.recipes:
        backend = getattr(section, "backend", None)
        if backend is not None:
            check_backend(backend)


def check_profile(outlook: Outlook) -> None:
    """Compare ``evaluate.profile`` with the competition's own sample_submission.csv, where one lies in the data folder."""
    if not outlook.items:
        return
    wanted = outlook.cfg.evaluate.profile
    asked_ids(outlook.root, [item for item in outlook.items if not item.is_left])  # says what it does not follow
    for path in sample_files(outlook.root):
        named = set(map(plain, header_of(path)))
        theirs = [name for name, profile in profiles().items() if set(map(plain, profile.columns)) <= named]
        if theirs and wanted not in theirs:
            problem = f"evaluate.profile is {wanted}, and {path.name} has the columns of {' or '.join(theirs)}"
            outlook.add(WARNING, problem, f"set evaluate.profile: {theirs[0]}")


# ---- all of it -----------------------------------------------------------------------------------------------------
def preflight(cfg: Config) -> list[Finding]:
    """Return everything that is wrong with a configuration and what it reads, errors first; nothing is written.

    Parameters
    ----------
    cfg : Config
        From `load_config`.
    """
    return check_run(cfg).findings


def check_run(
    cfg: Config, run_dir: str | Path | None = None, stages: Iterable[str] | None = None, room: bool = True
) -> Outlook:
    """Do what `preflight` does, and say what would be run.

    Parameters
    ----------
    run_dir : path, optional
        Where it would be written; default ``runs/<name>``.
    stages : iterable of str, optional
        The notebooks that would run; default all of the configuration. Without the first the images are those that the run
        folder lists.
    room : bool
        Warn where they do not fit into memory or on the disk.
    """
    outlook = Outlook(cfg, here(run_dir if run_dir is not None else Path("runs") / cfg.name))
    if stages is None:
        stages = [*STAGES, *(name for name, section in cfg.recipes if section is not None)]
    outlook.stages = stages = [stage for stage in stages if STAGES.get(stage) not in cfg.leave_out]
    images = OF_DATA if "01_convert" in stages else (images_of_run,)
    images = [check for check in images if room or check is not check_room]
    with tempfile.TemporaryDirectory(prefix="cellkit-") as folder:
        outlook.root = Path(folder)  # where blank files stand in for drawn ones
        for check in (check_place, check_recipes, *images, *(check for check, stage in OF_SETTINGS if stage in stages)):
            _ask(outlook, check)
    _without_consequences(outlook)
    outlook.findings.sort(key=lambda one: one.severity != ERROR)
    return outlook


def check_file(config: str | Path, overrides: Mapping[str, Any], run_dir: str | Path | None = None) -> Outlook:
    """Do what `check_run` does for a YAML file; where that is no configuration, say all that is wrong with it alone.

    Raises
    ------
    UserError
        There is no such file, or it is no YAML.
    """
    with collected() as noted:
        try:
            outlook = check_run(load_config(config, overrides), run_dir)
        except UserError:
            if not noted:
                raise
            outlook = Outlook(Config(), Path())
    for error in noted:
        outlook.add(ERROR, error.problem, error.remedy)
    outlook.findings.sort(key=lambda one: one.severity != ERROR)
    return outlook


def _ask(outlook: Outlook, check: Callable[[Outlook], None]) -> None:
    """Let one check look; what it refuses is an error, what it warns of a warning."""
    with collected() as noted, collected_warnings() as warnings:
        try:
            check(outlook)
        except UserError as error:
            noted.append(error)
    for error in noted:
        outlook.add(ERROR, error.problem, "; ".join(error.remedy.splitlines()))
    for line in warnings:
        problem, _, remedy = line.rpartition("; ")
        outlook.add(WARNING, problem or remedy, remedy if problem else "nothing is to be done where that is meant")


def _without_consequences(outlook: Outlook) -> None:
    """Where the channels of images lie in files of their own, drop what is said of each file taken for an image."""
    if any("seem to be the channels of one image" in one.problem for one in outlook.errors()):
        outlook.findings = [one for one in outlook.findings if not any(part in one.problem for part in OF_PARTS)]


OF_PARTS = ("is no channel of ", "no image is called so", "none is named after an image")
OF_DATA = (list_source, open_headers, check_counts, check_room)
OF_SETTINGS = (
    (check_labels, "02_label_with_cellpose"),
    (check_label_model, "02_label_with_cellpose"),
    (check_model_memory, "02_label_with_cellpose"),
    (check_base, "03_finetune_cellpose"),
    (partial(check_cells, section="finetune"), "03_finetune_cellpose"),
    (check_detector, "05_train_maskrcnn"),
    (partial(check_cells, section="maskrcnn"), "05_train_maskrcnn"),
    (check_evaluation, "06_evaluate_map_iou"),
    (check_profile, "06_evaluate_map_iou"),
)
