"""One YAML file in, frozen typed sections out: what each notebook of a run is to do.

A section is a notebook. A YAML file states only what differs from the defaults written here. An unknown key, a wrong
type or a value out of range stops the run before it starts, with the dotted key, what came and what was wanted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from cellkit.cells.instances import IGNORE
from cellkit.cells.names import channel_rule, plain
from cellkit.cells.splits import group_rule
from cellkit.cluster.setting import ClusterSetting, as_cluster
from cellkit.config.parts import DrawnConfig, QualityConfig
from cellkit.errors import UserError, nearest
from cellkit.machine import DATA_VARIABLE
from cellkit.microscope.convert import PERCENTILES, Conversion
from cellkit.models import backend_module
from cellkit.models.cell_classes import Settings as CellClasses
from cellkit.models.shared.contract import PRECISION, Precision
from cellkit.modules import names_of
from cellkit.settings import Frozen, Number, Percentiles, as_tuple, as_yaml, free_fields

STAGES = {
    "01_convert": "convert",
    "02_label_with_cellpose": "label",
    "03_finetune_cellpose": "finetune",
    "04_cells_to_coco": "coco",
    "05_train_maskrcnn": "maskrcnn",
    "06_evaluate_map_iou": "evaluate",
}
LeftOut = Literal["label", "finetune", "coco", "maskrcnn"]
SHARED = ("seed", "classes", "workers")  # copied from the top of the file into every section
SOME_SHARE = ("data", "precision")  # likewise, into the sections that have such a key


def _distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not all(map(plain, value)) or len({plain(name) for name in value}) < len(value):
        raise ValueError(
            f"is {as_yaml(value)}, wanted at least one name, all different in more than upper and lower case and spaces, "
            "none empty"
        )
    if IGNORE in map(plain, value):
        raise ValueError(f"is {as_yaml(value)}, and {IGNORE} is the name of regions that nobody annotated")
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple), AfterValidator(_distinct)]
ChannelSpec = Annotated[
    str | int | Annotated[tuple[str | int, ...], Field(min_length=1)] | None, BeforeValidator(as_tuple)
]


class Section(Frozen):
    """What every notebook's section carries besides its own fields; filled from the top of the file unless set."""

    seed: int = Field(0, ge=0, lt=2**63, description="random seed; the top-level seed unless set here")
    classes: Names = Field(("cell",), description="names of the cell classes, in order; the top-level ones unless set")
    workers: int = Field(
        1,
        ge=1,
        description="processes sharing the images, each with its own model; never changes a result",
        json_schema_extra={"hash": False},
    )
    costs: ClassVar[str] = ""  # of a recipe: the module that says what its training costs, see `config.recipes`

    def fingerprint(self) -> dict[str, Any]:
        """Return, as plain JSON values, the fields a result depends on: what the run folder hashes."""
        return self.model_dump(mode="json", exclude=free_fields(self))


class ChannelsConfig(Frozen):
    """Which channel of a microscope file is which: by name, by index from 0, or by wavelength in nm."""

    nuclei: ChannelSpec = Field(
        None,
        description="channel of the nuclei: name, index or wavelength (nm; within 20), or a list: the first there is",
    )
    cytoplasm: ChannelSpec = Field(
        None, description="channel of the cytoplasm: name, index or wavelength (nm; within 20), or a list likewise"
    )
    red: ChannelSpec = Field(
        None,
        description="channel shown in red, likewise; with nuclei: blue, cytoplasm: green a picture in colour stays one",
    )


class SplitConfig(Frozen):
    """Fractions of the images for training, validation and test; they sum to 1. ``dict(split)`` gives a dict."""

    train: Number = Field(0.6, ge=0, le=1, description="fraction of the images to train on")
    val: Number = Field(0.2, ge=0, le=1, description="fraction of the images to choose by")
    test: Number = Field(0.2, ge=0, le=1, description="fraction of the images to report on")

    @model_validator(mode="after")
    def _sums_to_one(self) -> SplitConfig:
        if abs((total := self.train + self.val + self.test) - 1) > 1e-6:
            raise ValueError(f"sums to {total:g} (train + val + test), wanted 1")
        return self


class ConvertConfig(Section):
    """Notebook 01: where the images come from and how they become 8-bit PNG (nuclei blue, cytoplasm green)."""

    data: str | None = Field(None, description="folder of real data; the top-level data unless set here")
    source: Literal[names_of("source")] = Field("drawn", description="layout of the source")
    path: str = Field("", description="folder below data that holds the source; empty = data itself")
    modalities: Names | None = Field(None, description="kinds of images kept, where the source names them; null = all")
    axes: str | None = Field(
        None,
        pattern="^[STCZYX]{2,6}$",
        description="axes of files that do not state them, such as CZYX; null = as stated",
    )
    channels: ChannelsConfig = Field(ChannelsConfig(), description="which channel is which")
    projection: Literal["max", "mean", "focus"] | Annotated[int, Field(ge=0)] = Field(
        "max", description="how a z-stack becomes one plane: a rule, or the index of the plane"
    )
    percentiles: Percentiles = Field(PERCENTILES, description="percentiles of a channel that become 0 and 255")
    percentiles_of: Literal["image", "batch"] = Field(
        "image", description="whose: each image's own, or one pair per colour of all pixels of all training images"
    )
    scale: Number = Field(1.0, gt=0, le=8, description="resize factor of images (labels: nearest)")
    split: SplitConfig = Field(SplitConfig(), description="fractions of the images")
    split_by: Literal["image", "group"] = Field("image", description="what the split keeps together")
    group_from: str | None = Field(
        None,
        description="expression that finds an image's group in its name, (?P<group>[A-H][0-9]+); null = its folders",
    )
    channel_from: str | None = Field(
        None,
        description="one file per channel: expression that finds it in names, _(?P<channel>C[0-9]); each = no joining; "
        "null = one file per image, and names that differ in a channel only are refused",
    )
    pseudo: str | None = Field(
        None,
        description="folder of cellkit pseudo-label: images that models labelled; they teach, and judge nothing; null = none",
    )
    pseudo_held_out: bool = Field(
        False,
        description="pseudo-labelled images of groups (plate, well, donor) that are held back teach too; false = they are left "
        "out. So do those that show a test image without labels: a competition's own, where its rules allow it",
    )
    duplicates: Literal["set_aside", "refuse", "keep"] = Field(
        "set_aside",
        description="copies in two splits: those of test (else validation) stay, others are excluded; refused; kept",
    )
    quality: QualityConfig = Field(
        QualityConfig(),
        description="faults that flag an image: not trained on, not scored; limits from training images",
    )
    unlabelled: Literal["keep", "leave_out"] | None = Field(
        None, description="images without labels among others with; null = kept where label.use is proposed or a folder"
    )
    published_split: bool = Field(True, description="keep the split that the source came with, where it has one")
    folds: int = Field(
        0,
        ge=0,
        le=20,
        description="parts that training and validation images are dealt into, of which one is held back for validation; "
        "0 = none: convert.split says which are (cellkit run --folds K sets it)",
    )
    fold: int = Field(1, ge=1, le=20, description="the part that is held back, where there are folds")
    pair: Annotated[tuple[str, str], BeforeValidator(as_tuple)] | None = Field(
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
        description="units of a table of boxes; null = decided by all its numbers, refused where they could be either",
    )
    max_images: int | None = Field(
        None,
        ge=1,
        description="most images per cell type, and as many without labels, by names so that one more moves few; null = all",
    )
    max_plane_px: int = Field(
        2**28,
        ge=1,
        le=2**31,
        description="most pixels of one plane (px), checked in a file's header before any is read",
    )
    mixed_images: int = Field(0, ge=0, description="test images composed from halves of two cell types")
    drawn: DrawnConfig = Field(DrawnConfig(), description="what to draw when source is drawn")
    class_names: dict[str, str | None] = Field(
        {},
        description="label in the source -> one of classes, null for an object of unknown class, or ignore for a region that "
        "nobody annotated",
    )

    @property
    def conversion(self) -> Conversion:
        """How a file of the source becomes a picture."""
        return Conversion(
            dict(self.channels), self.projection, self.percentiles, self.scale, self.axes, self.percentiles_of,
            most_px=self.max_plane_px,
        )  # fmt: skip

    @model_validator(mode="after")
    def _held_fold_is_there(self) -> ConvertConfig:
        if self.folds == 1 or (self.folds and self.fold > self.folds):
            raise ValueError(
                f"has fold {self.fold} of folds: {self.folds}, wanted at least two folds, and fold one of them"
            )
        return self

    @field_validator("pair")
    @classmethod
    def _two_columns(cls, value: tuple[str, str] | None) -> tuple[str, str] | None:
        if value is not None and (not value[0] or value[0] == value[1]):
            raise ValueError(
                f"is {as_yaml(value)}, wanted a text that is in images' names and another in its place in labels'"
            )
        return value

    @field_validator("group_from", "channel_from")
    @classmethod
    def _is_a_rule(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            try:
                (group_rule if info.field_name == "group_from" else channel_rule)(value)
            except UserError as error:
                raise ValueError(str(error).splitlines()[0].removeprefix("convert.group_from ")) from None
        return value

    @field_validator("class_names")
    @classmethod
    def _known_classes(cls, value: dict[str, str | None], info: ValidationInfo) -> dict[str, str | None]:
        classes = info.data.get("classes")  # None where they are refused themselves
        for label, name in value.items():
            if name not in (None, IGNORE) and classes is not None and name not in classes:
                known = ", ".join(classes)
                raise ValueError(
                    f"has {label}: {name!r}{nearest(name, classes)}, wanted null, ignore or one of: {known}"
                )
        return value


class LabelSection(Section):
    """Notebook 02: label the single-line images, or take the labels that came with them; with the backend's Settings."""

    backend: str = Field("cellpose_unet", description="module of cellkit.models that proposes labels")
    model: str = Field("starter", description="its model: starter, a name of the weights registry, or a path")
    min_area_px: int = Field(15, ge=0, description="smaller objects are dropped (px)")
    use: str = Field("truth", description="truth = the source's labels, proposed = the model's, or a folder of labels")
    teacher: bool = Field(
        False,
        description="the model teaches: its proposals label the training images, but for those corrected in the folder that "
        "use names; where use is truth, in place of their own labels, and those of the other images choose and judge; and it is "
        "scored beside its student",
    )
    preview: int = Field(
        12, ge=1, description="images that are proposed for where use is truth, to see what the model can do"
    )


class FinetuneSection(Section):
    """Notebook 03: adapt the segmentation model to these cells; with the backend's TrainSettings."""

    backend: str = Field("cellpose_unet", description="module of cellkit.models that is trained")
    min_train_masks: int = Field(1, ge=0, description="training images with fewer cells are left out and listed")
    folds: int = Field(5, ge=2, le=20, description="most parts held back in turn, where few images are labelled")
    fold_steps: Number = Field(
        1 / 3, gt=0, le=1, description="steps of a run without one of these parts, as a share of those of the whole run"
    )


class CocoConfig(Section):
    """Notebook 04: labels become COCO instances with a class."""

    class_from: Literal["cell_type", "truth"] = Field(
        "cell_type", description="class of a cell: the line of its image, or the source's own label"
    )
    min_area_px: int = Field(15, ge=0, description="smaller objects are dropped (px)")


class MaskrcnnSection(Section):
    """Notebook 05: train the detector that tells the classes apart; with the backend's TrainSettings."""

    backend: str = Field("maskrcnn_torchvision", description="module of cellkit.models that is trained")
    cell_classes: CellClasses = Field(
        CellClasses(), description="a class for the cells of the Cellpose model that 03 kept"
    )


BACKEND_SECTIONS = {"label": LabelSection, "finetune": FinetuneSection, "maskrcnn": MaskrcnnSection}


@lru_cache
def section_class(section: str, backend: str) -> type[Section]:
    """Return the class of a section that names a backend: the section's own fields, and that backend's settings.

    A backend says in `Settings` what a prediction may set (notebook 02), in `TrainSettings` what a training may (03, 05).
    """
    base, module = BACKEND_SECTIONS[section], backend_module(backend)
    settings = module.Settings if section == "label" else module.TrainSettings
    own = {name: (field.annotation, field) for name, field in base.model_fields.items()}
    own["backend"] = (str, Field(backend, description=base.model_fields["backend"].description))
    return create_model(f"{section.capitalize()}Config", __base__=(settings, base), __doc__=base.__doc__, **own)


LabelConfig, FinetuneConfig, MaskrcnnConfig = (
    section_class(name, kind.model_fields["backend"].default) for name, kind in BACKEND_SECTIONS.items()
)


class EvaluateConfig(Section):
    """Notebook 06: score every predictions file of the run, choose one, hand it in."""

    profile: Literal[names_of("competition")] = Field("sartorius", description="layout and rules of the submission")
    submit: str = Field("best", description="predictions handed in: a name, or best = highest score on choose_split")
    fuse: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        (),
        description="predictions fused to one more model, called fused, e.g. [maskrcnn, cellpose_tuned]; none = no fusion",
    )
    choose_split: Literal["train", "val", "test"] = Field(
        "val", description="split that decides which is best: val, no other"
    )
    report_split: Literal["train", "val", "test"] = Field(
        "test",
        description="split reported and handed in; val, which also chooses, only where there is no test image: noted then",
    )
    bootstrap_samples: int = Field(
        1000, ge=0, description="resamples of the images (groups, where they have any) for intervals; 0 = none"
    )
    error_images: int = Field(3, ge=0, description="images shown with their errors")
    measure: str | None = Field(
        None, description="model whose cells are measured; null = the one that names classes, else the one handed in"
    )

    @property
    def caution(self) -> str:
        """The caution that belongs to every score that is reported; "" where other images chose."""
        same = self.report_split == self.choose_split and self.submit == "best"
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


class Config(Frozen):
    """A whole configuration: shared values and one section per notebook."""

    name: str = Field("run", description="name of the run and its folder; the file's name unless set")
    data: str | None = Field(
        None, description=f"folder of real data, from the current folder or this file's; null = ${DATA_VARIABLE}"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="random seed of every stage")
    workers: int = Field(
        1, ge=1, description="processes that share the images, in every notebook; never changes a result"
    )
    cluster: Annotated[ClusterSetting, BeforeValidator(as_cluster)] = Field(
        ClusterSetting(), description="many machines that share the images: a word, such as slurm, or keys"
    )
    classes: Names = Field(("cell",), description="names of the cell classes, in order")
    precision: Precision = Field("auto", description=PRECISION)
    convert: ConvertConfig = Field(ConvertConfig(), description="notebook 01")
    label: LabelConfig = Field(LabelConfig(), description="notebook 02")
    finetune: FinetuneConfig = Field(FinetuneConfig(), description="notebook 03")
    coco: CocoConfig = Field(CocoConfig(), description="notebook 04")
    maskrcnn: MaskrcnnConfig = Field(MaskrcnnConfig(), description="notebook 05")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="notebook 06")
    recipes: Frozen = Field(
        Frozen(), description="the notebooks of notebooks/recipes that are run too, a section under the name of each"
    )
    leave_out: Annotated[tuple[LeftOut, ...], BeforeValidator(as_tuple)] = Field(
        (),
        description="sections whose notebooks are not run: finetune (03), maskrcnn (05); label (02) and coco (04) too, where "
        "a recipe writes the COCO files",
    )

    @field_validator("name")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if not value.strip() or value[0] in ".-" or any(char in "/\\" or not char.isprintable() for char in value):
            raise ValueError(f"is {value!r}, wanted a name fit for a folder: no slash, no leading dot or dash")
        return value

    def section(self, stage: str) -> Section:
        """Return the section of a notebook: by its name ('03_finetune_cellpose'), the section's ('finetune'), a recipe's.

        Raises
        ------
        UserError
            No section belongs to that name.

        Examples
        --------
        >>> Config().section("03_finetune_cellpose").base
        'starter'
        """
        sections = {name: getattr(self, name) for name in STAGES.values()}
        for name, field in type(self.recipes).model_fields.items():
            shared = {key: getattr(self, key) for key in (*SHARED, *SOME_SHARE) if key in field.annotation.model_fields}
            sections[f"recipes.{name}"] = getattr(self.recipes, name) or field.annotation(**shared)
        recipe = f"recipes.{re.sub('^[0-9][0-9]_', '', stage)}"
        found = [sections[name] for name in (STAGES.get(stage, stage), recipe) if name in sections]
        if not found:
            raise UserError(
                f"no section belongs to {stage!r}{nearest(stage, STAGES)}", f"sections: {', '.join(sections)}"
            )
        return found[0]


def config_class(backends: Mapping[str, str]) -> type[Config]:
    """Return the class of a configuration whose sections are of these backends (section -> backend; else the usual one)."""
    kinds = {section: section_class(section, backend) for section, backend in backends.items()}
    own = {name: kind for name, kind in kinds.items() if kind is not Config.model_fields[name].annotation}
    return _config_class(tuple(sorted(own.items(), key=lambda one: one[0]))) if own else Config


@lru_cache
def _config_class(kinds: tuple[tuple[str, type[Section]], ...]) -> type[Config]:
    fields = {name: (kind, Field(kind(), description=Config.model_fields[name].description)) for name, kind in kinds}
    return create_model("Config", __base__=Config, **fields)
