"""The command `cellkit predict`."""

from __future__ import annotations

import argparse

from cellkit.commands.fuse import fusion_flags, fusion_of
from cellkit.commands.shared import (
    Answer,
    channel_flags,
    cluster_flag,
    conversion_of,
    exit_code,
    force_flag,
    list_quarantined,
    set_flag,
    skips_flag,
    workers_flag,
    workers_of,
)
from cellkit.errors import UserError, counted

ABOUT = "find the cells of images with any model"
ORDER = 4


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    models = (
        "a checkpoint, RUN:NAME (runs/demo:cellpose_tuned, runs/demo:maskrcnn), starter, threshold, or a YAML file of models; "
        "RUN/folds/of_5:NAME = that model of each fold, fused"
    )
    parser.add_argument("model", metavar="MODEL", help=models)
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="pictures or microscope files, folders, patterns")
    parser.add_argument("-o", "--out", required=True, metavar="OUT.json", help="COCO file with scores")
    parser.add_argument("--labels", metavar="DIR", help="also one file of cells per image: a label image (TIFF)")
    parser.add_argument(
        "--format", default="tif", metavar="F", help="of the files in --labels: tif, png, roi, geojson or ome-zarr"
    )
    parser.add_argument("--overlays", metavar="DIR", help="also one PNG per image with the outlines drawn")
    parser.add_argument(
        "--cells", metavar="CELLS.csv", help="also a table with a row per cell (.csv or .parquet): cellkit measure"
    )
    parser.add_argument(
        "--window-px",
        type=int,
        metavar="PX",
        help="read images larger than this in windows of this side; default: those that do not fit into the memory",
    )
    parser.add_argument(
        "--diameter",
        metavar="PX",
        help="cell diameter in px of the given files, or auto: estimated (default the model's own; of start weights 30)",
    )
    parser.add_argument(
        "--fuse", metavar="MODEL", action="append", help="fuse MODEL with this one too; may be repeated"
    )
    workers_flag(parser, "processes, each with a model of its own; on a GPU one does it")
    fusion_flags(parser)
    channel_flags(parser)
    set_flag(parser, "cellprob_threshold=-1")
    cluster_flag(parser)
    force_flag(parser)
    skips_flag(parser)


def run(given: argparse.Namespace) -> Answer:
    """Find the cells of images with any model.

    Raises
    ------
    UserError
        The diameter given twice, or how to fuse where nothing is fused; or as `open_model`, `fuse_models` and `predict_files`.
    """
    from pathlib import Path

    from cellkit.commands.loops import loop_of_predict
    from cellkit.config.reading import set_strings
    from cellkit.measure.images import check_table_name, joined, measure_files, none_measured, write_cells
    from cellkit.models.shared.fusion import FusionSettings
    from cellkit.predict.files import predict_files
    from cellkit.predict.joined import fuse_models, open_model
    from cellkit.predict.large import LEAST_WINDOW_PX

    if given.cells is not None:
        check_table_name(given.cells)
    if given.window_px is not None and given.window_px < LEAST_WINDOW_PX:
        raise UserError(f"--window-px is {given.window_px}", f"give {LEAST_WINDOW_PX} or more")
    workers = workers_of(given)
    overrides = set_strings(given.overrides)
    if given.diameter is not None:
        if "diameter_px" in overrides:
            raise UserError("--diameter and --set diameter_px", "give one of them")
        overrides |= {"diameter_px": set_strings([f"diameter_px={given.diameter}"])["diameter_px"]}
    weights, settings = fusion_of(given)
    if not given.fuse and (weights or settings != FusionSettings()):
        raise UserError(
            "--weights, --iou, --least-models or --least-votes without --fuse",
            "name the other models: --fuse MODEL, once for each",
        )
    specs = [given.model, *(given.fuse or [])]
    model = fuse_models(specs, weights, overrides, settings) if given.fuse else open_model(given.model, overrides)
    conversion = conversion_of(given, model.conversion)
    where = given.out, given.labels, given.overlays
    measured = given.cells is not None
    loop = loop_of_predict(given, model, conversion)
    how = conversion, given.format, given.window_px, measured, loop.begin, workers
    done = predict_files(model, given.images, *where, *how)
    skipped, table = list(done.quarantined), ""
    if measured:
        tables = list(done.tables.values())  # of those that were read window by window
        large = {*done.tables, *done.unmeasured}
        if len(large) < done.images:
            folders = [Path(folder) for folder in where[1:] if folder is not None]
            small = measure_files(
                given.images, done.path, conversion=conversion, workers=workers, avoid=folders, but=large
            )
            named = {one.item for one in done.quarantined}
            skipped += [one for one in small.quarantined if one.item not in named]
            tables.append(small.table)
        skipped += [one.in_one_line() for one in done.unmeasured.values()]
        if not tables:
            raise none_measured(done.images, list(done.unmeasured.values()))
        table = f"; {write_cells(given.cells, joined(tables))}: a row for each"
    loop.end([done.path, done.path, *(Path(place) for place in (*where[1:], given.cells) if place is not None)])
    list_quarantined(skipped)
    classes = ", ".join(f"{name} {count}" for name, count in done.cells_by_class.items() if name != "unknown")
    text = f"{done.path}: {counted(done.images, 'image')}, {counted(done.cells, 'cell')}{f' ({classes})' if classes else ''}"
    return Answer(text + table, exit_code(skipped, given.allow_skips))
