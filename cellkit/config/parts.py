"""Parts of the section of notebook 01: the drawn example, and the flags of images."""

from __future__ import annotations

from pydantic import Field

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
