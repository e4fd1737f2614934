"""One YAML file in, frozen typed sections out: what each notebook of a run is to do.

A section is a notebook. A YAML file states only what differs from the defaults written here. An unknown key, a wrong
type or a value out of range stops the run before it starts, with the dotted key, what came and what was wanted.
"""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from cellkit.errors import UserError, nearest, refuse_or_note
from cellkit.loop import in_jupyter
from cellkit.names import plain

MAX_CONFIG_BYTES = 200_000
DATA_VARIABLE = "CELLKIT_DATA"
STAGES = {
    "01_convert": "convert",
    "02_label_with_cellpose": "label",
    "03_finetune_cellpose": "finetune",
    "04_cells_to_coco": "coco",
    "05_train_maskrcnn": "maskrcnn",
    "06_evaluate_map_iou": "evaluate",
}
PATHS = ("data", "convert.data", "label.use", "label.model", "finetune.base", "maskrcnn.start")
SHARED = ("seed", "classes", "workers")  # copied from the top of the file into every section


def _as_number(value: Any) -> Any:
    """Turn text such as '1e-3', which YAML 1.1 does not take for a number, into one; leave all else as it is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not all(map(plain, value)) or len({plain(name) for name in value}) < len(value):
        raise ValueError(
            f"is {_show(value)}, wanted at least one name, all different in more than upper and lower case and spaces, none empty"
        )
    return value


Number = Annotated[float, BeforeValidator(_as_number)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), AfterValidator(_distinct)]
Pair = Annotated[tuple[Number, Number], BeforeValidator(_as_tuple)]
ChannelSpec = Annotated[
    str | int | Annotated[tuple[str | int, ...], Field(min_length=1)] | None, BeforeValidator(_as_tuple)
]


class Part(BaseModel):
    """A frozen group of fields: no unknown keys, no silent conversion between types, no NaN."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Section(Part):
    """What every notebook's section carries besides its own fields; filled from the top of the file unless set."""

    seed: int = Field(0, ge=0, lt=2**63, description="random seed; the top-level seed unless set here")
    classes: Names = Field(("cell",), description="names of the cell classes, in order; the top-level ones unless set")
    workers: int = Field(
        1, ge=1, description="processes sharing the images; never changes a result", json_schema_extra={"hash": False}
    )

    def fingerprint(self) -> dict[str, Any]:
        """Return, as plain JSON values, the fields a result depends on: what the run folder hashes."""
        free = {name for name, field in type(self).model_fields.items() if field.json_schema_extra == {"hash": False}}
        return self.model_dump(mode="json", exclude=free)


class ChannelsConfig(Part):
    """Which channel of a microscope file is which: by name, by index from 0, or by wavelength in nm."""

    nuclei: ChannelSpec = Field(
        None,
        description="channel of the nuclei: name, index or wavelength (nm; within 20), or a list: the first there is",
    )
    cytoplasm: ChannelSpec = Field(
        None, description="channel of the cytoplasm: name, index or wavelength (nm; within 20), or a list likewise"
    )


class SplitConfig(Part):
    """Fractions of the images for training, validation and test; they sum to 1. ``dict(split)`` gives a dict."""

    train: Number = Field(0.6, ge=0, le=1, description="fraction of the images to train on")
    val: Number = Field(0.2, ge=0, le=1, description="fraction of the images to choose by")
    test: Number = Field(0.2, ge=0, le=1, description="fraction of the images to report on")

    @model_validator(mode="after")
    def _sums_to_one(self) -> SplitConfig:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"sums to {total:g} (train + val + test), wanted 1")
        return self


class DrawnConfig(Part):
    """The drawn example: arguments of `cellkit.synthetic.write_fields`."""

    images_per_line: int = Field(8, ge=1, description="good single-line images per cell line")
    mixed_images: int = Field(4, ge=0, description="images that hold all lines")
    size_px: int = Field(256, ge=64, le=4096, description="height and width of an image (px)")
    planes: int = Field(3, ge=1, le=64, description="z planes per stack")
    diameter_px: Number = Field(34.0, ge=8, description="mean cell diameter (px)")
    defect_images_per_line: int = Field(
        1, ge=0, description="out-of-focus images per line, and as many with debris, on top"
    )
    empty_images: int = Field(0, ge=0, description="images without any cell")


class QualityConfig(Part):
    """Which faults flag an image. ``quality.off`` names the flags that are switched off."""

    out_of_focus: bool = Field(True, description="flag blurred images")
    saturated: bool = Field(True, description="flag images with too many pixels at the camera's limit")
    low_contrast: bool = Field(True, description="flag images with hardly more than noise")
    uneven_light: bool = Field(True, description="flag images with one side darker")
    debris: bool = Field(True, description="flag images with dirt that glows in all channels")

    @property
    def off(self) -> tuple[str, ...]:
        """The flags that are not given."""
        return tuple(name for name, on in self if not on)


class ConvertConfig(Section):
    """Notebook 01: where the images come from and how they become 8-bit PNG (nuclei blue, cytoplasm green)."""

    data: str | None = Field(None, description="folder of real data; the top-level data unless set here")
    source: Literal[
        "drawn", "microscope", "two_lines", "labelme", "dsb2018", "folder", "cellpose", "bbbc039", "sartorius", "hepg2_huh7",
        "livecell", "coco", "voc", "box_csv",
    ] = Field("drawn", description="layout of the source")  # fmt: skip
    path: str = Field("", description="folder below data that holds the source; empty = data itself")
    modalities: Names | None = Field(None, description="kinds of images kept, where the source names them; null = all")
    axes: str | None = Field(
        None, pattern="^[STCZYX]{2,6}$", description="axes of files that do not tell them, such as CZYX; null = as told"
    )
    channels: ChannelsConfig = Field(ChannelsConfig(), description="which channel is which")
    projection: Literal["max", "mean", "focus"] | Annotated[int, Field(ge=0)] = Field(
        "max", description="how a z-stack becomes one plane: a rule, or the index of the plane"
    )
    percentiles: Pair = Field((0.3, 99.8), description="percentiles of a channel that become 0 and 255")
    percentiles_of: Literal["image", "batch"] = Field(
        "image", description="whose: each image's own, or one pair per colour of all pixels of all training images"
    )
    scale: Number = Field(1.0, gt=0, le=8, description="resize factor of images (labels: nearest)")
    split: SplitConfig = Field(SplitConfig(), description="fractions of the images")
    split_by: Literal["image", "group"] = Field("image", description="what is never torn apart by the split")
    group_from: str | None = Field(
        None,
        description="expression that finds an image's group in its name, (?P<group>[A-H][0-9]+); null = its folders",
    )
    channel_from: str | None = Field(
        None,
        description="one file per channel: expression that finds it in names, _(?P<channel>C[0-9]); each = no joining; "
        "null = one file per image, and names that differ in a channel only are refused",
    )
    duplicates: Literal["set_aside", "refuse", "keep"] = Field(
        "set_aside",
        description="copies in two splits: those of test (else validation) stay, others set aside; refused; kept",
    )
    quality: QualityConfig = Field(
        QualityConfig(),
        description="faults that flag an image: not trained on, not scored; limits from training images",
    )
    published_split: bool = Field(True, description="keep the split that the source came with, where it has one")
    pair: Annotated[tuple[str, str], BeforeValidator(_as_tuple)] | None = Field(
        None,
        description="a text in an image's name, and what its label image has there, e.g. [img, mask]; null = endings",
    )
    pieces: Literal["keep", "largest", "split"] | None = Field(
        None,
        description="an object of several pieces: kept, its largest, or several; null = kept, a bare mask is refused",
    )
    coco_convention: Literal["plain", "cvat", "fiftyone", "labelstudio"] | None = Field(
        None,
        description="whose COCO files they are; null = plain, and files that CVAT seems to have written are refused",
    )
    box_units: Literal["fractions", "pixels"] | None = Field(
        None,
        description="units of a table of boxes; null = told by all its numbers, refused where they could be either",
    )
    max_images: int | None = Field(
        None,
        ge=1,
        description="most images per cell type, chosen by their names so that an image more moves few; null = all",
    )
    max_plane_px: int = Field(
        2**28, ge=1, le=2**31, description="most pixels of one plane (px), asked of a file's header before any is read"
    )
    mixed_images: int = Field(0, ge=0, description="test images composed from halves of two cell types")
    drawn: DrawnConfig = Field(DrawnConfig(), description="what to draw when source is drawn")
    class_names: dict[str, str | None] = Field(
        {}, description="label in the source -> one of classes, or null for an object of unknown class"
    )

    @field_validator("percentiles")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError(f"is {_show(value)}, wanted two rising numbers from 0 to 100")
        return value

    @field_validator("pair")
    @classmethod
    def _tells_two(cls, value: tuple[str, str] | None) -> tuple[str, str] | None:
        if value is not None and (not value[0] or value[0] == value[1]):
            raise ValueError(
                f"is {_show(value)}, wanted a text that is in images' names and another in its place in labels'"
            )
        return value

    @field_validator("group_from")
    @classmethod
    def _names_a_group(cls, value: str | None) -> str | None:
        from cellkit.records import group_rule

        if value is not None:
            try:
                group_rule(value)
            except UserError as error:
                raise ValueError(str(error).splitlines()[0].removeprefix("convert.group_from ")) from None
        return value

    @field_validator("channel_from")
    @classmethod
    def _names_a_channel(cls, value: str | None) -> str | None:
        from cellkit.names import channel_rule

        if value is not None:
            try:
                channel_rule(value)
            except UserError as error:
                raise ValueError(str(error).splitlines()[0]) from None
        return value

    @field_validator("class_names")
    @classmethod
    def _known_classes(cls, value: dict[str, str | None], info: ValidationInfo) -> dict[str, str | None]:
        classes = info.data.get("classes")  # None where they are refused themselves
        for label, name in value.items():
            if name is not None and classes is not None and name not in classes:
                known = ", ".join(classes)
                raise ValueError(f"has {label}: {name!r}{nearest(name, classes)}, wanted null or one of: {known}")
        return value


class LabelConfig(Section):
    """Notebook 02: label the single-line images, or take the labels that came with them."""

    backend: str = Field("cellpose_unet", description="module of cellkit.backends that proposes labels")
    model: str = Field("starter", description="its model: starter, a name of the weights registry, or a path")
    diameter_px: Number | None = Field(None, gt=0, description="typical cell diameter (px); null = estimated")
    channels: Literal["both", "nuclei", "cytoplasm"] = Field(
        "both", description="what the network is shown; the starter weights outline nuclei when shown nuclei alone"
    )
    flow_threshold: Number | None = Field(
        None, ge=0, description="largest error of a mask's flows; 0 = no check; null = the model's own"
    )
    cellprob_threshold: Number | None = Field(
        None, ge=-12, le=12, description="logit above which a pixel belongs to a cell; null = the model's own"
    )
    min_area_px: int = Field(15, ge=0, description="smaller objects are dropped (px)")
    use: str = Field("truth", description="truth = the source's labels, proposed = the model's, or a folder of labels")


class FinetuneConfig(Section):
    """Notebook 03: adapt the segmentation model to these cells."""

    backend: str = Field("cellpose_unet", description="module of cellkit.backends that is trained")
    base: str = Field("starter", description="weights to start from: starter, a name of the registry, or a path")
    diameter_px: Number | None = Field(None, gt=0, description="typical cell diameter (px); null = from the labels")
    steps: int = Field(300, ge=1, description="most optimiser steps")
    batch_size: int = Field(8, ge=1, description="crops per step")
    crop_px: int = Field(160, ge=32, multiple_of=8, description="height and width of a crop (px)")
    learning_rate: Number = Field(1e-3, gt=0, le=1, description="largest learning rate")
    weight_decay: Number = Field(1e-4, ge=0, le=1, description="AdamW weight decay")
    warmup_steps: int = Field(20, ge=0, description="steps over which the learning rate rises from 0")
    eval_every: int = Field(50, ge=1, description="steps between two scores on validation images")
    patience: int = Field(6, ge=1, description="evaluations without a better score before training stops")
    channels: Literal["both", "nuclei", "cytoplasm"] = Field(
        "both", description="what the network is shown; the starter weights outline nuclei when shown nuclei alone"
    )
    flow_threshold: Number | None = Field(
        None, ge=0, description="largest error of a mask's flows; 0 = no check; null = best on training images"
    )
    cellprob_threshold: Number | None = Field(
        None, ge=-12, le=12, description="logit above which a pixel belongs to a cell; null = best on training images"
    )
    min_area_px: int = Field(15, ge=0, description="smaller objects are dropped (px)")
    min_train_masks: int = Field(1, ge=0, description="training images with fewer cells are left out and listed")
    val_images: int = Field(0, ge=0, description="most whole images scored during training; 0 = all")


class CocoConfig(Section):
    """Notebook 04: labels become COCO instances with a class."""

    class_from: Literal["cell_type", "truth"] = Field(
        "cell_type", description="class of a cell: the line of its image, or the source's own label"
    )
    min_area_px: int = Field(15, ge=0, description="smaller objects are dropped (px)")


class MaskrcnnConfig(Section):
    """Notebook 05: train the detector that tells the classes apart."""

    backend: str = Field("maskrcnn_torchvision", description="module of cellkit.backends that is trained")
    backbone: Literal["cellpose_unet", "resnet50_fpn_v2"] = Field("cellpose_unet", description="image encoder")
    start: str = Field("tuned", description="encoder weights: tuned = this run's fine-tuned checkpoint, or a model")
    steps: int = Field(400, ge=1, description="most optimiser steps")
    batch_size: int = Field(4, ge=1, description="crops per step")
    crop_px: int = Field(192, ge=32, multiple_of=8, description="height and width of a crop (px)")
    diameter_px: Number | None = Field(
        None, gt=0, description="cells are scaled to this diameter (px); null = from training labels"
    )
    learning_rate: Number = Field(1e-3, gt=0, le=1, description="largest learning rate")
    weight_decay: Number = Field(1e-4, ge=0, le=1, description="AdamW weight decay")
    warmup_steps: int = Field(20, ge=0, description="steps over which the learning rate rises from 0")
    eval_every: int = Field(100, ge=1, description="steps between two scores on validation images")
    patience: int = Field(6, ge=1, description="evaluations without a better score before training stops")
    fpn_channels: int = Field(96, ge=8, le=512, description="width of the feature pyramid (channels)")
    boxes_per_image: int = Field(64, ge=8, description="boxes per image that train the heads")
    max_detections: int | None = Field(
        None, ge=1, description="most cells found in one image; null = from the densest training image, tile by tile"
    )
    score_threshold: Number | None = Field(
        None, ge=0, le=1, description="objects scored lower are dropped; null = best on training images"
    )
    nms_threshold: Number | None = Field(
        None, gt=0, le=1, description="box IoU above which the lower score is dropped; null = best on training images"
    )
    mask_threshold: Number = Field(0.5, gt=0, lt=1, description="mask probability above which a pixel is the cell's")
    freeze_backbone: bool = Field(True, description="train the heads only")
    min_area_px: int = Field(15, ge=0, description="smaller objects are dropped (px)")
    val_images: int = Field(0, ge=0, description="most whole images scored during training; 0 = all")
    ignore_unknown: bool = Field(True, description="objects of unknown class neither train nor punish the class head")


class EvaluateConfig(Section):
    """Notebook 06: score every predictions file of the run, choose one, hand it in."""

    profile: Literal["sartorius", "dsb2018"] = Field("sartorius", description="layout and rules of the submission")
    submit: str = Field("best", description="predictions handed in: a name, or best = highest score on choose_split")
    choose_split: Literal["train", "val", "test"] = Field(
        "val", description="split that decides which is best: val, no other"
    )
    report_split: Literal["train", "val", "test"] = Field(
        "test",
        description="split reported and handed in; val, which also chooses, only where there is no test image: then said",
    )
    bootstrap_samples: int = Field(
        1000, ge=0, description="resamples of the images (groups, where they have any) for intervals; 0 = none"
    )
    error_images: int = Field(3, ge=0, description="images shown with their errors")

    @property
    def caution(self) -> str:
        """What must be said beside every score that is reported; "" where other images chose."""
        same = self.report_split == self.choose_split
        return "The images reported on also chose the model: their scores flatter it." if same else ""

    @model_validator(mode="after")
    def _chooses_elsewhere(self) -> EvaluateConfig:
        chooses, reports = self.choose_split, self.report_split
        if chooses != "val":
            why = "they trained the models" if chooses == "train" else "their score must decide nothing, or it flatters"
            raise ValueError(
                f"lets {chooses} images choose the best model (choose_split: {chooses}): {why}; "
                "set evaluate.choose_split: val and evaluate.report_split: test"
            )
        if reports == "train":
            raise ValueError(
                "reports on train images, which trained the models: their score says nothing of other images; "
                "set evaluate.report_split: test"
            )
        return self


class Config(Part):
    """A whole configuration: shared values and one section per notebook."""

    name: str = Field("run", description="name of the run and its folder; the file's name unless set")
    data: str | None = Field(
        None, description=f"folder of real data, from the current folder or this file's; null = ${DATA_VARIABLE}"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="random seed of every stage")
    workers: int = Field(1, ge=1, description="processes that share the images; never changes a result")
    classes: Names = Field(("cell",), description="names of the cell classes, in order")
    convert: ConvertConfig = Field(ConvertConfig(), description="notebook 01")
    label: LabelConfig = Field(LabelConfig(), description="notebook 02")
    finetune: FinetuneConfig = Field(FinetuneConfig(), description="notebook 03")
    coco: CocoConfig = Field(CocoConfig(), description="notebook 04")
    maskrcnn: MaskrcnnConfig = Field(MaskrcnnConfig(), description="notebook 05")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="notebook 06")

    @field_validator("name")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if not value.strip() or value[0] in ".-" or any(char in "/\\" or not char.isprintable() for char in value):
            raise ValueError(f"is {value!r}, wanted a name fit for a folder: no slash, no leading dot or dash")
        return value

    def section(self, stage: str) -> Section:
        """Return the section of a notebook.

        Parameters
        ----------
        stage : str
            A notebook's name ('03_finetune_cellpose') or the section's own ('finetune').

        Raises
        ------
        UserError
            No section belongs to that name.

        Examples
        --------
        >>> Config().section("03_finetune_cellpose").base
        'starter'
        """
        name = STAGES.get(stage, stage)
        if name not in STAGES.values():
            raise UserError(
                f"no section belongs to {stage!r}{nearest(stage, STAGES)}", f"sections: {', '.join(STAGES.values())}"
            )
        return getattr(self, name)


def stage_config(cfg: Config, stage: str) -> Section:
    """Return ``cfg.section(stage)``: the section of the notebook called `stage`."""
    return cfg.section(stage)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML configuration, apply overrides, check everything.

    Parameters
    ----------
    path : str or Path
        A YAML file that states what differs from the defaults; relative paths as in `here`. A relative path within it
        counts from there too; where nothing is there, from the folder of the file.
    overrides : mapping, optional
        Dotted keys to values, ``{"finetune.steps": 1}``; checked like the file itself.

    Returns
    -------
    Config
        Frozen. Every section carries seed, classes and workers; a section may set its own.

    Raises
    ------
    UserError
        No such file, not YAML, unknown key, wrong type or value, data that no source reads: names the key, what came
        and what was wanted.
    """
    path = here(path)
    settings = _read_settings(path)
    _count_from(settings, path.parent)
    written = getattr(overrides, "written", {})
    overrides = {str(key): value for key, value in (overrides or {}).items()}
    for key, value in overrides.items():
        _override(settings, key, value, written.get(key))
    _share(settings)
    settings.setdefault("name", path.stem)
    try:
        cfg, problems = Config.model_validate(settings), []
    except ValidationError as error:
        cfg, problems = Config(), _explain(error, settings, path, overrides)
    if problems:
        refuse_or_note(*problems)
        raise problems[0]
    if cfg.convert.data and cfg.convert.source == "drawn":
        told = (
            f"{path}: data is set ('{cfg.convert.data}'), but convert.source is drawn, which reads none and draws cells"
        )
        remedy = (
            "name the layout of the data, e.g. convert.source: microscope (data/README.md shows them), or take data out"
        )
        refuse_or_note(UserError(told, remedy))
    return cfg


def set_strings(strings: Iterable[str]) -> dict[str, Any]:
    """Turn ``--set`` arguments into overrides; a value is read as YAML.

    Raises
    ------
    UserError
        A string without ``=``, a value that is not YAML or of which YAML drops the rest as a comment, or a key given
        twice.

    Examples
    --------
    >>> set_strings(["finetune.steps=10", "label.diameter_px=null", "classes=[HEK, N2a]"])
    {'finetune.steps': 10, 'label.diameter_px': None, 'classes': ['HEK', 'N2a']}
    """
    found = _Table()
    for string in strings:
        key, equals, text = string.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"--set {string!r} has no key=value", "write it as --set finetune.steps=100")
        if key in found:
            raise UserError(f"--set {key} is given twice", "give each key once")
        found[key] = _parse(text, f"--set {key}")
        node = yaml.compose(text, Loader=_Loader)
        if text[node.end_mark.index if node else 0 :].strip():
            quoted = text.strip().replace("'", "''")
            raise UserError(
                f"--set {string!r}: YAML takes what follows # for a comment and drops it",
                f"put the value in quotes: --set \"{key}='{quoted}'\"",
            )
        found.written[key] = _written(node)
    return found


def here(path: str | Path) -> Path:
    """Return `path` counted from the current folder.

    In a notebook opened by hand the current folder is the notebook's own; when that is a folder called ``notebooks``
    beside ``configs``, relative paths count from the folder that holds both, as they do for ``cellkit run``.
    """
    path = Path(path).expanduser()
    if path.is_absolute() or not in_jupyter():
        return path
    for folder in (Path.cwd(), *Path.cwd().parents):
        if folder.name == "notebooks" and (folder.parent / "configs").is_dir():
            return folder.parent / path
    return path


def names_data(cfg: Config | ConvertConfig) -> bool:
    """Tell whether the configuration or the environment names a folder of real data."""
    return bool(cfg.data or os.environ.get(DATA_VARIABLE))


def data_root(cfg: Config | ConvertConfig) -> Path:
    """Return the folder of real data: ``data:`` of the configuration, else the environment variable CELLKIT_DATA.

    Raises
    ------
    UserError
        Neither is set, or the folder is missing or empty.
    """
    remedy = f"set data: in the config (or --set data=FOLDER), or the environment variable {DATA_VARIABLE}=FOLDER"
    named, origin = (cfg.data, "data") if cfg.data else (os.environ.get(DATA_VARIABLE, ""), DATA_VARIABLE)
    if not named:
        raise UserError("no data folder is set, and this configuration reads real images", remedy)
    root = here(named)
    if not root.is_dir():
        raise UserError(f"{origin} is '{named}', {'not a folder' if root.exists() else 'no such folder'}", remedy)
    if not any(not child.name.startswith(".") for child in root.iterdir()):
        raise UserError(f"{origin} is '{named}', an empty folder", remedy)
    return root


def data_path(cfg: ConvertConfig) -> Path:
    """Return the folder or file that holds the source: `data_root` joined with ``convert.path``.

    Raises
    ------
    UserError
        It is missing, empty, or leads out of the data folder.
    """
    root = data_root(cfg)
    path = root / cfg.path
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"convert.path is '{cfg.path}', which leads out of '{root}'", "point data: at the folder meant")
    if not path.exists():
        choices = sorted(child.name for child in root.iterdir() if not child.name.startswith("."))
        raise UserError(
            f"convert.path is '{cfg.path}', not in the data folder '{root}'{nearest(cfg.path, choices)}",
            f"set convert.path to one of: {', '.join(choices[:12])}",
        )
    if path.is_dir() and not any(not child.name.startswith(".") for child in path.iterdir()):
        raise UserError(f"'{path}' is an empty folder", "put images there, or set data: and convert.path to another")
    return path


@lru_cache(maxsize=1)
def known_keys() -> frozenset[str]:
    """Return every dotted key, those of sections too."""
    return frozenset(key for key, _, _ in _walk(Config))


def describe() -> str:
    """Return a Markdown table of every key: default, what is accepted, meaning."""
    rows = ["| key | default | accepted | meaning |", "|---|---|---|---|"]
    for key, model, name in _walk(Config):
        field = model.model_fields[name]
        if _model_of(field.annotation) is None:
            default = "(top level)" if "." in key and name in SHARED else _show(field.get_default())
            cells = (f"`{key}`", f"`{default}`", _wanted(field), field.description or "")
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


# ---- reading


QUOTES = "\u201c\u201d\u201e\u201f\u2018\u2019\u201a\u201b\u00ab\u00bb\u2039\u203a\u00b4\uff02\uff07"  # that word processors set


class _Table(dict):
    """A table of YAML that knows how each of its values was written, for messages: NO, not false; 1.10, not 1.1."""

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[str, str] = {}


class _Loader(yaml.SafeLoader):
    """Safe YAML, of which nothing is dropped or becomes another value than is written.

    No aliases (they multiply), no keys given twice (the last would win silently), no numbers but in plain digits (010
    is 8 in YAML, 1:30 is 90), no typographic quotes (to YAML they are letters).
    """

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.events.AliasEvent) or getattr(event, "anchor", None):
            problem = "&anchors and *aliases are not read (put a text that begins so in quotes)"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def compose_scalar_node(self, anchor):
        node = super().compose_scalar_node(anchor)
        if node.style is None and node.value and (node.value[0] in QUOTES or node.value[-1] in QUOTES[:4]):
            problem = f"{node.value} is in typographic quotes, which would be part of the text: write ' or \""
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node

    def construct_number(self, node):
        """Read a number in plain digits; refuse octal, sexagesimal and the other ways YAML 1.1 has of writing one."""
        whole = node.tag.endswith(":int")
        value = self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)
        if re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", node.value) if whole else not re.search("[:_]", node.value):
            return value
        problem = f"{node.value} would be read as {value:.10g}: write a number in plain digits, a name in quotes"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)

    def construct_table(self, node):
        table = _Table()
        yield table
        table.update(self.construct_mapping(node))
        table.written = {key.value: _written(value) for key, value in node.value}

    def construct_mapping(self, node, deep=False):
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(
                    problem=f"key {getattr(key, 'value', '[...]')} is not text (quote it)", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _construct in {
    "int": _Loader.construct_number,
    "float": _Loader.construct_number,
    "map": _Loader.construct_table,
}.items():
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct)


def _written(node: yaml.Node | None) -> str:
    """Return a value as it was written, text in quotes."""
    if isinstance(node, yaml.SequenceNode):
        return "[" + ", ".join(map(_written, node.value)) + "]"
    if not isinstance(node, yaml.ScalarNode):
        return ""
    return repr(node.value) if node.tag.endswith(":str") else node.value


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise UserError(f"{origin}{line}: {problem}", "wanted plain YAML, key: value, each key once") from None


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise _no_config(path)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes", f"a config has at most {MAX_CONFIG_BYTES}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text", "name a YAML file, as configs/demo.yaml is") from None
    settings = _parse(text, str(path))
    if settings is None:
        return _Table()
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds {_show_value(settings)}", "wanted YAML keys: name: ..., finetune: ...")
    return settings


def _count_from(settings: dict[str, Any], folder: Path) -> None:
    """Complete the paths of a file that lead nowhere from the current folder, and somewhere from the file's own."""
    for dotted in PATHS:
        *tables, key = dotted.split(".")
        table: Any = settings
        for name in tables:
            table = table.get(name) if isinstance(table, dict) else None
        value = table.get(key) if isinstance(table, dict) else None
        if not isinstance(value, str) or not value or value in ("truth", "proposed", "tuned", "starter"):
            continue
        if not os.path.exists(here(value)) and os.path.exists(folder / value):
            table[key] = str(folder.resolve() / value)


def _no_config(path: Path) -> UserError:
    folders = [folder for folder in (path.parent, Path("configs"), here("configs")) if folder.is_dir()]
    near = sorted({str(found) for folder in folders for found in folder.glob("*.y*ml")})
    names = {Path(name).stem: name for name in near}
    guess = nearest(str(path), near) or (f" (did you mean '{names[path.stem]}'?)" if path.stem in names else "")
    kind = "is a folder" if path.is_dir() else "does not exist"
    return UserError(
        f"config '{path}' {kind}{guess}",
        f"configs near it: {', '.join(near[:12])}" if near else "name a YAML file, as configs/demo.yaml is",
    )


def _override(settings: dict[str, Any], key: str, value: Any, written: str | None = None) -> None:
    """Set the dotted `key` in place, making the tables on the way; `written` is how messages show the value."""
    *tables, last = key.split(".")
    for depth, name in enumerate(tables):
        settings = settings.setdefault(name, _Table())
        if not isinstance(settings, dict):
            raise UserError(f"override {key!r}: {'.'.join(tables[: depth + 1])} is not a section", _known(key))
    if isinstance(value, Mapping) and isinstance(settings.get(last), dict):
        for name, inner in value.items():
            _override(settings[last], str(name), inner)
    else:
        settings[last] = list(value) if isinstance(value, tuple) else value
        if isinstance(settings, _Table):
            settings.written[last] = written or ""


def _known(key: str) -> str:
    choices = [found for found, _, _ in _walk(Config)]
    return f"wanted a dotted key such as finetune.steps{nearest(key, choices)}"


def _share(settings: dict[str, Any]) -> None:
    """Copy the shared values into every section that does not set its own."""
    for name in STAGES.values():
        section = settings.setdefault(name, {})
        if section is None:
            section = settings[name] = {}
        if isinstance(section, dict):
            for shared in (*SHARED, *(("data",) if name == "convert" else ())):
                if shared in settings:
                    section.setdefault(shared, settings[shared])


# ---- explaining


def _explain(error: ValidationError, settings: dict[str, Any], path: Path, overrides: Mapping) -> list[UserError]:
    """Turn pydantic's errors into two lines each: which key, what came, what was wanted, what to do; unknown keys first.

    What is wrong with a shared value is said once, not of every section it was copied to.
    """
    problems = sorted(error.errors(), key=lambda one: (one["type"] != "extra_forbidden", len(one["loc"])))
    top = {one["loc"][0] for one in problems if one["loc"]}
    own = [one for one in problems if len(one["loc"]) < 2 or one["loc"][1] not in top & {*SHARED, "data"}]
    told = {str(found): found for found in (_explained(one, settings, path, overrides) for one in own)}
    return list(told.values())


def _explained(first: Any, settings: dict[str, Any], path: Path, overrides: Mapping) -> UserError:
    key, model, name = _locate(first["loc"])
    overridden = any(f"{key}.".startswith(f"{given}.") or given.startswith(f"{key}.") for given in overrides)
    where = "overrides: " if overridden else f"{path}: "
    if first["type"] == "extra_forbidden":
        table = key.rpartition(".")[0]
        guess = nearest(name, model.model_fields) or _elsewhere(name)
        known = ", ".join(field for field in model.model_fields if not (table and field in SHARED))
        return UserError(f"{where}unknown key {key!r}{guess}", f"known keys{' of ' + table if table else ''}: {known}")
    field = model.model_fields[name]
    inner = _model_of(field.annotation)
    default = f"keys: {', '.join(inner.model_fields)}" if inner else f"default {_show(field.get_default())}"
    remedy = f"{key}: {field.description}; {default}"
    if typing.get_origin(field.annotation) is dict and len(first["loc"]) > key.count(".") + 1:
        key = f"{key}.{first['loc'][key.count('.') + 1]}"
        came = _show_value(first["input"], _how_written(settings, key))
        return UserError(f"{where}{key} is {came}, wanted text, or null", f"{remedy}; put a name in quotes")
    if first["type"] == "value_error":
        return UserError(f"{where}{key} {str(first['ctx']['error'])}", remedy)
    wanted = _wanted(field)
    if first["type"] == "multiple_of":
        step = first["ctx"]["multiple_of"]
        below = first["input"] // step * step
        wanted += f", such as {below} or {below + step}"
    value, written = _look_up(settings, key), _how_written(settings, key)
    if field.annotation is str or isinstance(value, list) and not all(isinstance(item, str) for item in value):
        remedy += "; put a name in quotes that YAML reads otherwise, such as 'NO' or '1.10'"
    return UserError(f"{where}{key} is {_show_value(value, written)}, wanted {wanted}", remedy)


def _locate(loc: tuple) -> tuple[str, type[BaseModel], str]:
    """Return the dotted key, its model and its field name; parts of `loc` that are no keys are cut off."""
    model: type[BaseModel] = Config
    names: list[str] = []
    for part in loc:
        names.append(str(part))
        field = model.model_fields.get(str(part))
        inner = _model_of(field.annotation) if field else None
        if inner is None or len(names) == len(loc):
            break
        model = inner
    return ".".join(names), model, names[-1]


def _elsewhere(name: str) -> str:
    keys = [key for key, _, leaf in _walk(Config) if leaf == name]
    return f" (did you mean '{keys[0]}'?)" if keys else ""


def _walk(model: type[BaseModel], prefix: str = ""):
    """Yield (dotted key, model, field name) of every field, sections before what they hold."""
    for name, field in model.model_fields.items():
        yield prefix + name, model, name
        inner = _model_of(field.annotation)
        if inner is not None:
            yield from _walk(inner, f"{prefix}{name}.")


def _model_of(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _look_up(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings


def _how_written(settings: Any, key: str) -> str:
    """Return how the value of a dotted key was written in the file or after --set; "" where that is not known."""
    table, _, name = key.rpartition(".")
    return getattr(_look_up(settings, table) if table else settings, "written", {}).get(name, "")


def _show_value(value: Any, written: str = "") -> str:
    """Return a value as it came, with its kind: ``'many' (text)``."""
    kinds = {bool: "true/false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a table"}
    text = written or _show(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return text if value is None else f"{text} ({kinds.get(type(value), type(value).__name__)})"


def _show(value: Any) -> str:
    """Return a value as YAML would show it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_show(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, int) else repr(value)


def _wanted(field: Any) -> str:
    """Say what a field accepts, in words: ``a whole number >= 1, or null``."""
    return _words(field.annotation, field.metadata)


def _words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    bounds = _bounds(metadata)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _words(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(_words(argument, () if argument is type(None) else metadata) for argument in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return "a list of names"
        return f"a list of {len(arguments)} {'texts' if arguments[0] is str else 'numbers'}"
    if origin is dict or _model_of(annotation):
        return "a table of keys"
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    return plain.get(annotation, str(annotation)) + (bounds if annotation in (int, float) else "")


def _bounds(metadata: Iterable[Any]) -> str:
    """Return the limits in pydantic's metadata as text: `` >= 0 and <= 1``."""
    flat = [inner for item in metadata for inner in (getattr(item, "metadata", None) or [item])]
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [f"{sign} {_show(getattr(m, name))}" for name, sign in signs.items() for m in flat if hasattr(m, name)]
    steps = [f", a multiple of {m.multiple_of}" for m in flat if hasattr(m, "multiple_of")]
    return (" " + " and ".join(found) if found else "") + "".join(steps)
