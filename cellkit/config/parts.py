"""Parts of the section of notebook 01: the drawn example, the flags of images, those without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from cellkit.errors import UserError, raise_or_collect
from cellkit.settings import Frozen, Number


class DrawnConfig(Frozen):
    """The drawn example: the arguments of `write_fields`, which draws it."""

    images_per_line: int = Field(8, ge=1, description="good single-line images per cell line")
    mixed_images: int = Field(4, ge=0, description="images that hold all lines")
    size_px: int = Field(256, ge=64, le=4096, description="height and width of an image (px)")
    planes: int = Field(3, ge=1, le=64, description="z planes per stack")
    diameter_px: Number = Field(34.0, ge=8, description="mean cell diameter (px)")
    defect_images_per_line: int = Field(
        1, ge=0, description="out-of-focus images per line, and as many with debris, on top"
    )
    empty_images: int = Field(0, ge=0, description="images without any cell")


class QualityConfig(Frozen):
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


def refuse_drawn_data(cfg: Any, path: Path) -> None:
    """Refuse data that no source reads, since the cells are to be drawn.

    Raises
    ------
    UserError
        It names both.
    """
    if cfg.convert.data and cfg.convert.source == "drawn":
        problem = (
            f"{path}: data is set ('{cfg.convert.data}'), but convert.source is drawn, which reads none and draws cells"
        )
        remedy = (
            "name the layout of the data, e.g. convert.source: microscope (data/README.md shows them), or take data out"
        )
        raise_or_collect(UserError(problem, remedy))


def with_unlabelled(cfg: Any, path: Path) -> Any:
    """Say in the section of notebook 01 that images without labels are kept, where ``label.use`` has labels for them.

    Parameters
    ----------
    cfg : Config
    path : Path
        The file that it was read from, for messages.

    Raises
    ------
    UserError
        They are to be kept, and ``label.use`` has none for them.
    """
    convert, only_truth = cfg.convert, cfg.label.use == "truth"
    if only_truth and convert.unlabelled == "keep":
        problem = f"{path}: convert.unlabelled is keep, and label.use is truth, which has no labels for those images"
        raise_or_collect(UserError(problem, "set label.use: proposed, or a folder of labels, or take unlabelled out"))
    if only_truth or convert.unlabelled or convert.source == "drawn":
        return cfg
    return cfg.model_copy(update={"convert": convert.model_copy(update={"unlabelled": "keep"})})
