"""Time Mask R-CNN beside torchvision's way of it, on one thread: `python benchmarks/bench_detector.py [--steps N]`.

The first table trains the same detector three times, each in a process of its own: the frozen encoder computes every crop anew,
turned by any angle; its features are kept (`cellkit.models.maskrcnn_cache`); and they are kept, with narrow heads that are shown
few boxes, much as `configs/demo.yaml` has them. The second takes the detector of the
latter to a drawn image of about 300 cells: cellkit's way from pixels to cells, and torchvision's own (its ``GeneralizedRCNN``
with its transform, its proposals, its heads and ``paste_masks_in_image``) on the same modules with the same weights and
thresholds. Both then tell the class of each cell in the same way. CPU seconds, the best of some; memory is the most the process
held. MAP IoU (kaggle) on drawn images that no training saw. That neither way scores worse by more than 0.02 is asserted.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import numpy as np  # noqa: E402

from cellkit.cells.drawn.camera import expose  # noqa: E402
from cellkit.cells.drawn.field import draw_field  # noqa: E402
from cellkit.cells.drawn.style import FieldStyle  # noqa: E402
from cellkit.cells.instances import Instances  # noqa: E402
from cellkit.fetch.find import find_weights  # noqa: E402
from cellkit.machine import peak_bytes  # noqa: E402
from cellkit.models import weights  # noqa: E402
from cellkit.models.shared.contract import merged  # noqa: E402
from cellkit.models.shared.detector_settings import DEFAULTS, read_with  # noqa: E402
from cellkit.models.shared.fine_tuning import map_iou  # noqa: E402
from cellkit.models.shared.inputs import CELL_PX  # noqa: E402

LINES = ("HEK", "N2a")
TRAIN, HELD_OUT = 8, 4  # images of 256 px
CROWD_PX = 672  # of the image of about 300 cells
WORSE = 0.02
NARROW = {"fpn_channels": 64, "boxes_per_image": 32, "cells_per_step": 24}
WAYS: dict[str, tuple[bool, dict[str, int]]] = {
    "each step": (False, {}),
    "kept": (True, {}),
    "kept, narrow heads": (True, NARROW),
}


def drawn_image(line: str, seed: int, side_px: int = 256) -> tuple[np.ndarray, Instances]:
    """Return a drawn image (H, W, 3) uint8 with cells about 30 px wide, and its cells."""
    style = FieldStyle(size_px=(side_px, side_px), diameter_px=CELL_PX)
    field = draw_field((line,), style, [17, seed])
    image = np.zeros((side_px, side_px, 3), np.uint8)
    for colour, plane in zip((2, 1), expose(field, style, [17, seed, 1]), strict=True):
        low, high = np.percentile(plane, (0.3, 99.8))
        image[..., colour] = np.clip((plane - low) / (high - low), 0, 1) * 255
    cells = Instances.from_labels(field.labels)
    return image, cells.with_classes([LINES.index(line) + 1] * len(cells))


def drawn_images(first: int, count: int) -> list[tuple[np.ndarray, Instances]]:
    return [drawn_image(LINES[k % 2], first + k) for k in range(count)]


def settings_of(config) -> dict:
    return merged(config, {}, DEFAULTS) | {"diameter_px": CELL_PX}


# ---- training --------------------------------------------------------------------------------------------------------
def train_one(base: str, steps: int, way: str, out: Path) -> dict[str, float]:
    """Train, in this process; write the weights; return CPU seconds, memory and score."""
    import torch

    from cellkit.models import maskrcnn_torchvision as maskrcnn
    from cellkit.models.maskrcnn_detect import detect_image
    from cellkit.models.shared.detector_batches import DetectorLoss, scaled
    from cellkit.models.training import fit, plan_of

    torch.set_num_threads(1)
    kept, heads = WAYS[way]
    heads = {"mask_box_margin": 0.0, "average_steps": 20} | heads  # torchvision's masks end at their boxes
    config = maskrcnn.TrainSettings(start=base, steps=steps, eval_every=steps, learning_rate=0.002, **heads)
    settings = settings_of(config)
    model = maskrcnn._start(config, settings, LINES)
    loss_at = DetectorLoss(model, [scaled(*pair, CELL_PX) for pair in drawn_images(0, TRAIN)], config)
    if not kept:
        loss_at.views = None  # crops are drawn from the images, and the encoder computes them in every step
    before, begun = peak_bytes(), time.process_time()
    fit(model, loss_at, lambda: 0.0, plan_of(config, "maskrcnn"), out, "bench", choose=False)
    seconds, peak = time.process_time() - begun, peak_bytes() - before
    held_out = drawn_images(100, HELD_OUT)
    score = map_iou((truth, detect_image(model, image, settings)) for image, truth in held_out)
    path = out / "detector.safetensors"
    weights.save_checkpoint(path, model.state_dict(), maskrcnn.NAME, config=settings, classes=LINES)
    return {"seconds": seconds / steps, "megabytes": peak / 1e6, "score": score}


def show_training(base: str, steps: int, folder: Path) -> None:
    print(f"Training, {steps} steps of 4 crops of 192 px, on {TRAIN} drawn images\n")
    print("| encoder of crops | CPU s a step | memory more, MB | MAP IoU, held out |\n|---|---|---|---|")
    found = {}
    for name in WAYS:
        out = folder / name.replace(", ", "_").replace(" ", "_")
        task = json.dumps({"base": base, "steps": steps, "way": name, "out": str(out)})
        done = subprocess.run([sys.executable, __file__, "--task", task], check=True, capture_output=True, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print("| {} | {seconds:.2f} | {megabytes:.0f} | {score:.3f} |".format(name, **found[name]), flush=True)
    each, *others = found.values()
    fewer = " and ".join(f"{each['seconds'] / one['seconds']:.1f}" for one in others)
    print(f"\n{fewer} times fewer CPU seconds\n")
    assert all(one["score"] > each["score"] - WORSE for one in others), "they must teach as much"


# ---- finding ----------------------------------------------------------------------------------------------------------
def stock(model, shape: tuple[int, int]):
    """Return torchvision's own detector with the modules of `model`, for images of that size at network scale."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    class Proposals(RegionProposalNetwork):
        """torchvision's, from the levels that this pyramid proposes from."""

        levels = model.rpn.levels

        def forward(self, images, features, targets=None):
            return super().forward(images, OrderedDict((k, features[k]) for k in self.levels), targets)

    made = copy.deepcopy(model)
    made.__class__, made.rpn.__class__, made.roi_heads.__class__ = MaskRCNN, Proposals, RoIHeads
    made.rpn.head.__class__ = RPNHead
    made.rpn.score_thresh, made._has_warned = 0.0, False
    made.transform = GeneralizedRCNNTransform(min(shape), max(shape), [0.0] * 3, [1.0] * 3, size_divisible=16)
    return made.eval()


def find_stock(made, image: np.ndarray, settings: dict) -> Instances:
    """Find cells as a user of torchvision does: whole masks, the higher score keeps the pixels; classes as cellkit tells them."""
    import torch

    from cellkit.models.cell_classifier import class_logits
    from cellkit.models.maskrcnn_detect import _classes, _texture_votes
    from cellkit.models.shared.inputs import planes_of

    planes, features = planes_of(image), {}
    hook = made.backbone.register_forward_hook(lambda _, given, told: features.update(told))
    with torch.no_grad():
        out = made([torch.from_numpy(planes)])[0]
        (votes,) = made.class_head.votes(features, [out["boxes"]])
    hook.remove()
    logits = class_logits(made.cell_classifier, planes, out["boxes"].numpy())
    labels = np.zeros(image.shape[:2], np.int32)
    for k in range(len(out["masks"]) - 1, -1, -1):  # the highest score last
        labels[out["masks"][k, 0].numpy() > 0.5] = k + 1
    seen, cells = np.unique(labels), Instances.from_labels(labels)
    rows = seen[seen > 0] - 1
    texture = _texture_votes(made, image, cells, settings)
    return cells.with_classes(_classes(logits[rows], votes.numpy()[rows], texture))


def show_finding(checkpoint: Path, repeats: int) -> None:
    import torch

    from cellkit.models.maskrcnn_detect import detect_image
    from cellkit.models.maskrcnn_network import build

    torch.set_num_threads(1)
    card = weights.read_card(checkpoint)
    settings = read_with(None, card.config) | {"diameter_px": CELL_PX}
    model = build(card.config | settings, len(card.classes))
    model.load_state_dict(weights.load_tensors(checkpoint))
    model.eval()
    image, truth = drawn_image("N2a", 200, CROWD_PX)
    theirs = stock(model, image.shape[:2])
    ways = {
        "torchvision": lambda: find_stock(theirs, image, settings),
        "cellkit": lambda: detect_image(model, image, settings),
    }
    print(f"Finding, {len(truth)} cells in {CROWD_PX} x {CROWD_PX} px, to disjoint cells with classes\n")
    print("| way | CPU s | cells found | MAP IoU |\n|---|---|---|---|")
    seconds, scores = {}, {}
    for name, find in ways.items():
        seconds[name] = np.inf
        for _ in range(repeats):
            begun = time.process_time()
            found = find()
            seconds[name] = min(seconds[name], time.process_time() - begun)
        scores[name] = map_iou([(truth, found)])
        print(f"| {name} | {seconds[name]:.2f} | {len(found)} | {scores[name]:.3f} |", flush=True)
    print(f"\n{seconds['torchvision'] / seconds['cellkit']:.1f} times fewer CPU seconds")
    assert scores["cellkit"] > scores["torchvision"] - WORSE


def main() -> None:
    """Show both tables; with --task, be one of the processes of the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120, help="of each training (default 120)")
    parser.add_argument("--base", default="starter_light", help="the encoder (default starter_light)")
    parser.add_argument("--repeats", type=int, default=3, help="how often the finding is timed (default 3)")
    parser.add_argument(
        "--checkpoint", type=Path, help="a detector that is there, of HEK and N2a: only the second table"
    )
    parser.add_argument("--task", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.task:
        task = json.loads(asked.task)
        print(json.dumps(train_one(task["base"], task["steps"], task["way"], Path(task["out"]))))
        return
    if asked.checkpoint:
        show_finding(asked.checkpoint, asked.repeats)
        return
    with tempfile.TemporaryDirectory() as folder:
        show_training(str(find_weights(asked.base)), asked.steps, Path(folder))
        show_finding(Path(folder) / "kept" / "detector.safetensors", asked.repeats)


if __name__ == "__main__":
    main()
