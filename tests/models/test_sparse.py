"""Labels that are there in part: a network does not learn that unlabelled cells are background."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from cellkit.cells.instances import Instances
from cellkit.machine import arithmetic
from cellkit.models import maskrcnn_torchvision as maskrcnn
from cellkit.models.maskrcnn_network import _known_mask_loss, build, target, unknown_share
from cellkit.models.shared import detector_training
from cellkit.models.shared.detector_settings import DEFAULTS
from cellkit.models.shared.fine_tuning import map_iou
from cellkit.models.shared.flow_loss import FlowLoss, prepare
from cellkit.models.shared.flows import target_of
from cellkit.models.shared.inputs import two_channels
from cellkit.models.shared.threshold_search import score_maps

DIAMETER_PX = 30.0


def half_labelled(truth: Instances, marked: bool) -> Instances:
    """Return every other cell; the others, and what is near them, are not annotated, or else background."""
    kept = truth[::2]
    near = ndimage.binary_dilation(truth[1::2].paint() > 0, iterations=4)
    return kept.with_unknown(near) if marked else kept


# ---- Cellpose ----------------------------------------------------------------------------------------------------------
def learned(pairs, steps: int = 30) -> torch.nn.Module:
    """Train three small convolutions as a U-Net is trained."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(2, 12, 5, padding=2), torch.nn.Conv2d(12, 12, 5, padding=6, dilation=3)]
    network = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), torch.nn.Conv2d(12, 3, 1))
    network.arithmetic = arithmetic("float32")
    items = [prepare(image, truth, DIAMETER_PX) for image, truth in pairs]
    loss_at = FlowLoss(network, items, batch_size=4, crop_px=48, seed=0)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for step in range(steps):
        optimiser.zero_grad()
        loss_at(step).backward()
        optimiser.step()
    return network.eval()


def test_a_network_does_not_learn_background_where_unlabelled_cells_lie(drawn):
    pairs = [drawn[k] for k in range(2)]
    labels = {
        "all": lambda truth: truth,
        "marked": lambda truth: half_labelled(truth, marked=True),
        "unmarked": lambda truth: half_labelled(truth, marked=False),
    }
    cells, ground = {}, {}
    for name, of in labels.items():
        network, inside, outside = learned([(image, of(truth)) for image, truth in pairs]), [], []
        for image, truth in pairs:
            planes = torch.from_numpy(two_channels(image))[None]
            with torch.no_grad():
                chance = torch.sigmoid(network(planes)[0, 2]).numpy()
            inside.append(chance[ndimage.binary_erosion(truth[1::2].paint() > 0, iterations=2)])
            outside.append(chance[~ndimage.binary_dilation(truth.paint() > 0, iterations=4)])
        cells[name], ground[name] = np.concatenate(inside).mean(), np.concatenate(outside).mean()
    assert cells["marked"] > cells["all"] - 0.1 and cells["unmarked"] < cells["all"] - 0.25, cells
    assert max(ground.values()) < 0.5 < cells["marked"], "and what is background, it learns as well"


def test_thresholds_are_searched_where_something_is_known(drawn):
    """A speck of the network's in a part that is not annotated costs nothing, at any threshold."""
    truth = drawn.instances[0]
    labels = truth.paint()
    free = ndimage.distance_transform_cdt(labels == 0, "chessboard")
    gap = np.unravel_index(free[6:-6, 6:-6].argmax(), free[6:-6, 6:-6].shape) + np.array([6, 6])
    assert free[tuple(gap)] > 5
    with_speck = labels.copy()
    with_speck[gap[0] - 5 : gap[0] + 6, gap[1] - 5 : gap[1] + 6] = labels.max() + 1
    maps = np.array(target_of(with_speck))
    maps[2] = np.where(maps[2] > 0, 6, -6)
    grid = ((0.4, 0.0), (0.0,), (15,))
    plain, marked = (
        score_maps(maps, truth, *grid),
        score_maps(maps, truth.with_unknown(with_speck > labels.max()), *grid),
    )
    assert (marked > plain).all() and map_iou([(truth, truth)]) == 1


# ---- Mask R-CNN --------------------------------------------------------------------------------------------------------
LABELS = np.zeros((96, 96), np.int32)
LABELS[10:34, 10:34], LABELS[60:84, 8:30] = 1, 2
LABELS[:, 48:] = -1


def model_and_target():
    torch.manual_seed(0)
    model = build({**DEFAULTS, "fpn_channels": 16, "widths": (4, 8, 12, 16)}, classes=1).train()
    return model, target(LABELS, np.array([0, 1, 1]), ignore_unknown=True)


def test_the_share_of_a_box_that_is_not_annotated():
    boxes = torch.tensor(
        [[0, 0, 48, 96], [48, 0, 96, 10], [40, 20, 56, 30], [90, -10, 120, 10], [200, 5, 220, 9], [60, 4, 60, 4]]
    )
    share = unknown_share(boxes.float(), torch.from_numpy(LABELS < 0))
    assert share.tolist() == pytest.approx([0, 1, 0.5, 1, 0, 0])


def test_anchors_and_proposals_that_lie_mostly_there_are_neither_cells_nor_background():
    model, wanted = model_and_target()
    boxes = torch.tensor(
        [[10.0, 10, 34, 34], [60, 10, 90, 40], [36, 10, 70, 40], [20, 40, 44, 58], [44, 40, 51, 58], [8, 60, 30, 84]]
    )
    whole = {key: value for key, value in wanted.items() if key != "unknown"}
    labels = [model.rpn.assign_targets_to_anchors([boxes], [one])[0][0].tolist() for one in (wanted, whole)]
    assert labels == [[1, -1, -1, 0, 0, 1], [1, 0, 0, 0, 0, 1]]
    for one, told in ((wanted, labels[0]), (whole, labels[1])):
        model.roi_heads.targets = [one]
        found = model.roi_heads.assign_targets_to_proposals([boxes], [one["boxes"]], [one["labels"]])[1][0]
        assert found.tolist() == told


def test_pixels_that_are_not_annotated_have_no_part_in_the_loss_of_masks():
    _, wanted = model_and_target()
    box, which = [torch.tensor([[40.0, 10, 56, 34]])], [torch.tensor([0])]  # half of it
    logits = torch.zeros((1, 28, 28), requires_grad=True)
    _known_mask_loss(logits, box, which, [wanted]).backward()
    moved = logits.grad[0].abs() > 0
    assert moved[:, :13].all() and not moved[:, 15:].any()
    whole = {key: value for key, value in wanted.items() if key != "unknown"}
    logits = torch.randn((1, 28, 28))
    told = torch.nn.functional.binary_cross_entropy_with_logits(logits[..., :14], torch.zeros((1, 28, 14)))
    assert _known_mask_loss(logits, box, which, [wanted]) == pytest.approx(told.item(), abs=0.02)
    assert _known_mask_loss(logits[:0], [box[0][:0]], [which[0][:0]], [whole]) == 0


def test_a_loss_where_something_is_not_annotated_is_finite_and_where_nothing_is_known_it_teaches_nothing():
    model, _ = model_and_target()
    picture = np.random.default_rng(0).random((3, 96, 96), np.float32)
    config = maskrcnn.TrainSettings(batch_size=2, crop_px=64)
    some = detector_training.DetectorLoss(model, [(picture, LABELS, np.array([0, 1, 1]))], config)
    for step in range(3):
        model.zero_grad()
        loss = some(step)
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert torch.isfinite(loss) and loss > 0 and all(torch.isfinite(one).all() for one in gradients)
    nothing = detector_training.DetectorLoss(model, [(picture, np.full_like(LABELS, -1), np.array([0]))], config)
    model.zero_grad()
    nothing(0).backward()
    assert nothing(0) == 0 and not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_where_all_is_annotated_the_loss_is_torchvisions():
    """The same numbers whether the picture is said to be known all over or nothing is said."""
    losses = []
    for said in (False, True):
        model, wanted = model_and_target()
        wanted = {key: value for key, value in wanted.items() if key != "unknown"}
        wanted |= {"unknown": torch.zeros((96, 96), dtype=torch.bool)} if said else {}
        torch.manual_seed(1)
        picture = torch.from_numpy(np.random.default_rng(0).random((3, 96, 96), np.float32))
        losses.append({name: loss.item() for name, loss in model([picture], [wanted]).items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 5


def test_room_for_cells_is_that_of_what_is_known():
    labels = np.kron(np.arange(1, 10**4 + 1).reshape(100, 100), np.ones((4, 4), np.int32))
    half = np.where(np.arange(400) < 200, labels, -1)
    assert detector_training.room_for([Instances.from_labels(labels)], 10.0) == detector_training.room_for(
        [Instances.from_labels(half)], 10.0
    )
