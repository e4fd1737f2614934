"""cellkit: a notebook-first workflow that adapts foundation models to the cells in front of you.

What the notebooks use is imported from here, and nothing else; modules are opened when a name of theirs is first used.
"""

from __future__ import annotations

import os
import sys

__version__ = "0.1.0"
# Before torch reads it: threads that spin while they wait stall each other where other programs use the cores. Measured
# on two busy cores: two threads took 3 to 8 times as long for convolutions, 10 to 200 times for small sums, as with this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Files of one's own that are found with those here, see cellkit.modules.
__path__ += [os.path.expanduser(name) for name in os.environ.get("CELLKIT_MODULES", "").split(os.pathsep) if name]

if "ipykernel" in sys.modules:
    from cellkit.log import show_log

    show_log()

_HOME = {  # exactly what the notebooks use; the rest is found by folder
    "cells.dataset": ("CellDataset", "predict_all"),
    "cells.drawn.others": ("draw_others",),
    "cells.records": ("write_records",),
    "config.reading": ("load_config",),
    "errors": ("UserError",),
    "evaluate.adaptation": ("adapt", "images_that_teach", "regime_for"),
    "evaluate.box_counts": (
        "box_totals",
        "count_errors",
        "counted_cells",
        "thresholds_table",
    ),
    "evaluate.box_reading": ("count_thresholds", "read_by_class", "read_unseen"),
    "evaluate.cell_classes": ("describe_named", "name_cells", "train_classes"),
    "evaluate.classes": (
        "accuracy_table",
        "class_model",
        "classes_found",
        "count_by_class",
        "describe_accuracy",
        "errors_table",
        "images_to_count",
        "totals_by_class",
    ),
    "evaluate.evaluation": (
        "attribute_errors",
        "check_ceiling",
        "choose_model",
        "found_in",
        "predictions_of",
        "read_truths",
        "rejected_models",
        "score_models",
        "summarise",
        "table_by_line",
        "describe_found",
        "write_fused",
        "write_summary",
    ),
    "evaluate.forgetting": ("describe_others", "score_others"),
    "evaluate.points": (
        "name_found",
        "open_models",
        "points_table",
        "predict_models",
        "score_points",
        "seconds_per_image",
        "with_named",
    ),
    "evaluate.submission": ("handed_in", "submit_best"),
    "evaluate.untaught": ("describe_untaught", "untaught_lines"),
    "evaluate.verdict": ("images_to_decide", "who_decided", "who_judged"),
    "fetch.find": ("find_weights", "with_weights"),
    "files": ("write_frame", "write_json"),
    "formats.coco": ("write_dataset", "write_predictions", "write_results", "write_truth"),
    "formats.coco_reading": ("read_coco",),
    "labelling.annotate": (
        "check_classes",
        "choose_labels",
        "images_to_propose",
        "with_classes",
        "with_diameter",
        "write_chosen",
    ),
    "labelling.box_masks": ("BOX_WAYS", "masks_of_boxes", "read_boxes", "with_masks"),
    "labelling.corrections": ("corrections_folder",),
    "labelling.rounds": ("next_images", "write_rounds", "write_to_correct"),
    "measure.of_run": ("measure_run",),
    "microscope.flags": ("check_quality",),
    "models": ("get_backend",),
    "models.coordinate": ("answers_of",),
    "models.crop_classifier": ("crop_namer", "train_crop_classifier"),
    "models.shared.fine_tuning": ("refuse_untrainable",),
    "models.shared.inputs": ("check_max_detections",),
    "models.shared.parts": ("train_parts",),
    "models.training_state": ("find_history",),
    "pages.report": ("write_report",),
    "run.folder": ("Run",),
    "run.foretold": ("describe_forecast",),
    "scores.attribution": ("gains",),
    "scores.matching": ("class_accuracy",),
    "show.charts": ("show_curves", "show_history", "show_interval", "show_scores"),
    "show.conversion": ("show_conversion",),
    "show.counts": ("show_counts", "show_data"),
    "show.explained": ("show_border_target", "show_iou", "show_label_flows", "show_pyramid"),
    "show.measurements": ("show_measures",),
    "show.overlays": ("show_found", "show_proposed_and_used", "show_worst", "show_worst_images"),
    "show.points": ("show_answers",),
    "show.sheets": ("show_crops", "show_flagged", "show_sheet", "show_side_by_side"),
    "sources.assign_splits": ("check_left",),
    "sources.ingest": ("convert_images", "locate_source"),
    "sources.kept_aside": ("convert_folder",),
    "sources.statistics": ("class_table", "describe", "remarks"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'cellkit' has no attribute {name!r}")
    from importlib import import_module

    globals()[name] = found = getattr(import_module(f"cellkit.{_MODULE_OF[name]}"), name)  # not a module called alike
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
