"""What each column of cells.csv is: its unit, its definition, and where other programs define it otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Column(NamedTuple):
    """One column: its name (with ``<channel>`` for the channel's name), unit, meaning, and names and differences elsewhere."""

    name: str
    unit: str
    meaning: str
    elsewhere: str = ""


COLUMNS = (
    Column("image", "", "id of the image: the name of its label image, ROI zip and overlay"),
    Column("line", "", "cell line of the whole image, `mixed`, or empty where it is not known"),
    Column("group", "", "plate, well or donor of the image, where it is known"),
    Column("label", "",
           "number of the cell in its image: the value of its pixels in the label image, the name of its ROI, "
           "its place (from 1) among the image's cells in a COCO file", "regionprops `label`, CellProfiler `ObjectNumber`"),
    Column("class", "", "class of the cell, empty where the model names none"),
    Column("score", "0 to 1", "how sure the model was; 1 for cells drawn by a person"),
    Column("area_px", "px", "pixels of the cell, holes left out", "`area`; CellProfiler `AreaShape_Area`"),
    Column("area_um2", "um^2", "the same, times the area of a pixel"),
    Column("diameter_px", "px", "diameter of the circle of the same area, sqrt(4 area / pi)",
           "`equivalent_diameter_area`; CellProfiler `EquivalentDiameter`"),
    Column("diameter_um", "um", "the same, times the side of a pixel"),
    Column("centroid_x_px", "px", "mean column of the pixels; the centre of the first pixel is 0",
           "`centroid-1`; CellProfiler `AreaShape_Center_X`; QuPath and ImageJ count 0.5 more, from the pixel's edge"),
    Column("centroid_y_px", "px",
           "mean row of the pixels", "`centroid-0`; CellProfiler `AreaShape_Center_Y`; as above"),
    Column("box_x_px", "px",
           "first column of the box around the cell", "`bbox-1`; CellProfiler `BoundingBoxMinimum_X`"),
    Column("box_y_px", "px", "first row of the box", "`bbox-0`; CellProfiler `BoundingBoxMinimum_Y`"),
    Column("box_width_px", "px", "columns of the box", "`bbox-3` - `bbox-1`"),
    Column("box_height_px", "px", "rows of the box", "`bbox-2` - `bbox-0`"),
    Column("perimeter_px", "px",
           "length of the outline, holes included: each pixel of it adds 1, the root of 2, or their mean, "
           "by how it lies to the next (Benkrid and Crookes)",
           "`perimeter`; CellProfiler `AreaShape_Perimeter`, whose help calls it a number of pixels"),
    Column("perimeter_um", "um", "the same, times the side of a pixel"),
    Column("eccentricity", "0 to 1", "of the ellipse of the same second moments: 0 is a circle, 1 a line",
           "`eccentricity`; CellProfiler `AreaShape_Eccentricity`"),
    Column("solidity", "0 to 1", "area over that of the convex hull; 1 has no dent and no hole",
           "`solidity`; CellProfiler `AreaShape_Solidity`"),
    Column("major_axis_px", "px",
           "length of that ellipse", "`axis_major_length`; CellProfiler `MajorAxisLength`; MATLAB "
           "counts each pixel as a square, which adds 1/12 to both variances"),
    Column("major_axis_um", "um", "the same, times the side of a pixel"),
    Column("minor_axis_px", "px", "width of that ellipse", "`axis_minor_length`; as above"),
    Column("minor_axis_um", "um", "the same, times the side of a pixel"),
    Column("orientation_deg", "degrees",
           "angle from the vertical to the long axis of that ellipse, from -90 to 90, counter-clockwise; empty "
           "where it has no direction (a circle, a square, one pixel)",
           "`orientation`, there in radians, and -45 degrees where there is no direction; CellProfiler "
           "`AreaShape_Orientation`, whose help says from the x-axis"),
    Column("at_border", "",
           "whether the cell touches the border of the image, which may have cut it: leave these out where size counts"),
    Column("neighbours", "", "other cells that share an edge, a corner or a pixel with it",
           "CellProfiler `NumberOfNeighbors_Adjacent` counts shared edges only"),
    Column("nearest_px", "px", "from its centroid to the nearest other one; empty where it is alone",
           "CellProfiler `Neighbors_FirstClosestDistance`"),
    Column("nearest_um", "um", "the same, times the side of a pixel"),
    Column("um_per_px", "um",
           "side of a pixel of the image that the cells were found in; empty where the file does not say, and then every "
           "column in um or um^2 is"),
)  # fmt: skip

OF_NUCLEI = (
    Column("nuclei", "",
           "nuclei of the cell: those of which more than half lies in it", "CellProfiler `RelateObjects`"),
    Column("nucleus_area_px", "px", "pixels that the cell shares with its nuclei"),
    Column("nucleus_area_um2", "um^2", "the same, times the area of a pixel"),
)  # fmt: skip

OF_CHANNEL = (
    Column("mean_<channel>", "as in the file",
           "mean of the cell's pixels", "`intensity_mean`; CellProfiler `Intensity_MeanIntensity`, "
           "there and in all that follow divided by the largest value of the file's type (65535 for 16 bits)"),
    Column("median_<channel>", "as in the file", "median of the cell's pixels, of two in the middle their mean",
           "`intensity_median`; CellProfiler takes the upper of two in the middle, and of an odd number the mean of the "
           "middle one and the next"),
    Column("max_<channel>", "as in the file",
           "largest of the cell's pixels", "`intensity_max`; CellProfiler `MaxIntensity`"),
    Column("sd_<channel>", "as in the file", "standard deviation of the cell's pixels, divided by their number",
           "`intensity_std`; CellProfiler `StdIntensity`; a spreadsheet's STDEV divides by one less"),
    Column("integrated_<channel>", "as in the file", "sum of the cell's pixels",
           "CellProfiler `IntegratedIntensity`; ImageJ `RawIntDen`"),
    Column("background_<channel>", "as in the file",
           "median of the image's pixels that belong to no cell and are annotated; the same for all "
           "cells of an image, empty where cells cover all of it"),
    Column("mean_corrected_<channel>", "as in the file", "mean less background"),
    Column("integrated_corrected_<channel>", "as in the file",
           "sum less background times area", "the CTCF of ImageJ's users"),
)  # fmt: skip

OF_NUCLEI_IN_CHANNEL = (
    Column("nucleus_mean_<channel>", "as in the file",
           "mean of the pixels that the cell shares with its nuclei; empty without a nucleus"),
    Column("cytoplasm_mean_<channel>", "as in the file", "mean of the cell's other pixels; empty without a nucleus"),
    Column("nucleus_to_cytoplasm_<channel>", "",
           "the two means, less background each, divided; empty where the cytoplasm is not brighter than "
           "the background"),
)  # fmt: skip

PARTS = (
    ("Each cell", COLUMNS),
    ("Each cell, with `--nuclei`", OF_NUCLEI),
    ("Each channel of the raw file", OF_CHANNEL),
    ("Each channel, with `--nuclei`", OF_NUCLEI_IN_CHANNEL),
)


def columns_of(channels: Iterable[str] = (), nuclei: bool = False) -> list[str]:
    """Return the names of the columns of cells.csv, in their order.

    Examples
    --------
    >>> columns_of(["DAPI"])[-2:], len(columns_of())
    (['mean_corrected_DAPI', 'integrated_corrected_DAPI'], 30)
    """
    each = [column.name for column in COLUMNS]
    if nuclei:
        each[-1:-1] = [column.name for column in OF_NUCLEI]
    of_channel = OF_CHANNEL + (OF_NUCLEI_IN_CHANNEL if nuclei else ())
    return each + [column.name.replace("<channel>", name) for name in channels for column in of_channel]


def to_markdown() -> str:
    """Return the data dictionary as tables in markdown, one for each part."""
    head = "| column | unit | what it is | elsewhere |\n|---|---|---|---|\n"
    return "\n\n".join(
        f"### {title}\n\n{head}"
        + "\n".join(f"| `{c.name}` | {c.unit} | {c.meaning} | {c.elsewhere} |" for c in columns)
        for title, columns in PARTS
    )
