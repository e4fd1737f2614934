"""Draw the README's picture from a run: one test image as converted, as found by both models, and with its errors.

python presentation/picture.py runs/demo presentation/demo.png
"""

from __future__ import annotations

from pathlib import Path

from fastcore.script import call_parse

from cellkit.models import model_name
from cellkit.pages.results import RunFiles
from cellkit.show.overlays import show_errors, show_image, show_overlay
from cellkit.show.style import new_figure, save_figure


@call_parse
def main(
    run: Path,  # run folder
    out: Path,  # file to write
):
    """Draw the first mixed test image, or the first test image where none is mixed."""
    files = RunFiles(run)
    test = files.truths["test"]
    k = next((k for k, record in enumerate(test.records) if record.cell_type == "mixed"), 0)
    (image, truth), name = test[k], test.records[k].image_id
    tuned, lines = files.predictions("cellpose_tuned")[name], files.predictions("maskrcnn")[name]
    axes = new_figure(15.2, 4.5).subplots(1, 4)
    um = test.records[k].um_per_px
    show_image(image, axes[0], f"{name}: nuclei blue, cytoplasm green", um)
    show_overlay(image, tuned, None, axes[1], model_name("cellpose_tuned"), fill=0.25, line_px=4, um_per_px=um)
    show_overlay(image, lines, None, axes[2], model_name("maskrcnn"), test.classes, 0.25, line_px=4, um_per_px=um)
    show_errors(image, truth, tuned, axes[3], f"{model_name('cellpose_tuned')}, IoU > 0.5", um_per_px=um)
    print(save_figure(axes[0], out, dpi=90))
