"""Disk that a stage of a run takes: counted from pixels, cells, numbers of the network, and measured bytes of each.

Measured bytes are of float32 runs of the drawn demo, of DSB2018 and of two_lines, see the page of the manual on forecasts.
"""

from __future__ import annotations

from cellkit.config.recipes import RECIPES
from cellkit.forecast.costing import course_of
from cellkit.forecast.images import RunImages
from cellkit.models.shared.contract import Schedule
from cellkit.models.shared.cost import Cost

HEADER_BYTES = 360  # of a file of a picture
DRAWN_BYTES = 2  # of a pixel of a drawn plane: 16 bits
LABEL_BYTES = 0.06  # of a pixel of a label image, compressed
CELL_BYTES, ROW_BYTES = 110, 5.5  # of a cell in a JSON file, and of each row of its outline
FLOW_BYTES = 4.2  # of a pixel at network scale: the target of a training image
MAP_BYTES = 6  # likewise: maps of the network
NOTEBOOK_BYTES = {  # of an executed notebook with its pictures
    "convert": 1.9e6,
    "label": 1.6e6,
    "finetune": 1.2e6,
    "coco": 0.8e6,
    "maskrcnn": 1.2e6,
    "evaluate": 1.5e6,
    RECIPES: 1.2e6,
}
REPORT_BYTES = 6.4e6  # of the page of results, most of it pictures
ROW_OF_CELL_BYTES = 1500  # of a cell of a test image in the tables: what is measured of it
SMALL_BYTES = 30e3  # tables, cards, the manifest: of each stage
UNKNOWN_WEIGHTS = 30e6  # of a network that is not timed
ENCODER_BYTES = 6.7e6  # of the small network that tells the classes of cells found by another
ADAM = 2  # times the numbers that are trained: what the optimiser keeps of them


def space_of_stage(run: RunImages, section: str, cost: Cost, tuned: Cost) -> tuple[float, float, int]:
    """Return the bytes that a stage writes into the run folder: the most while it is under way, those that stay; and files.

    Parameters
    ----------
    cost, tuned : Cost
        Of the section's backend and of that of notebook 03: how large their weights are.
    """
    cfg, images = run.cfg, len(run.records)
    cells = run.cells * (CELL_BYTES + ROW_BYTES * run.diameter_px)
    stays, files, passing = SMALL_BYTES + NOTEBOOK_BYTES.get(section, NOTEBOOK_BYTES[RECIPES]), 5, 0.0
    if section == "convert":
        stays += run.sample.picture_bytes * sum(run.px) + HEADER_BYTES * images + cells
        files += images
        if cfg.convert.source == "drawn":
            drawn = cfg.convert.drawn
            stays += images * drawn.size_px**2 * (DRAWN_BYTES * 2 * drawn.planes + LABEL_BYTES)
            files += 2 * images
    elif section == "label":
        stays += LABEL_BYTES * sum(run.px) + 2 * cells
        files += images + 3
    elif section in ("finetune", "maskrcnn") or section.startswith(RECIPES):
        config = run.section(section)
        stays += cells
        files += 8
        if isinstance(config, Schedule):
            course = course_of(config, run.count("train"))
            kept, passing = _training(config, cost)
            together = course.networks * _weights(cost) if course.networks > 1 else 0  # networks that answer together
            stays += course.networks * kept + together + (course.answers - 1) * cells
        if section == "finetune":
            weights = _weights(cost)
            taught = 1e6 * run.mpx(section, "train", "val")
            stays += 2 * weights + FLOW_BYTES * taught  # the base, as it is read; what is handed on
            maps = min(1e9 * getattr(config, "map_cache_gb", 0), MAP_BYTES * taught)
            passing += max(2 * weights, maps)
            files += images
        elif section == "maskrcnn" and "finetune" not in cfg.leave_out:
            stays += ENCODER_BYTES + _weights(tuned)  # `maskrcnn.cell_classes`
    elif section == "coco":
        stays += cells
    elif section == "evaluate":
        tested = run.count("test") / max(images, 1)
        stays += REPORT_BYTES + cells + ROW_OF_CELL_BYTES * run.cells * tested
        files += 10
    return stays + passing, stays, files


def _weights(cost: Cost) -> float:
    return cost.weights_bytes or UNKNOWN_WEIGHTS


def _training(config: Schedule, cost: Cost) -> tuple[float, float]:
    """Return the bytes that stay of a training, its last state and its checkpoint, and those of the best so far, which pass."""
    weights = _weights(cost)
    trained = min(cost.trained_bytes or weights, weights)  # what is not trained is not written into a state
    return trained * (1 + ADAM + bool(config.average_steps)) + weights, trained
