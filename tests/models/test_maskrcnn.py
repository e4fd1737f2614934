"""Mask R-CNN: masks where they belong, classes that are unknown, tiles that are crowded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backend_cases import config_of

from cellkit.cells.dataset import predict_all
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.models import maskrcnn_detect, weights
from cellkit.models import maskrcnn_torchvision as maskrcnn
from cellkit.models.maskrcnn_network import target
from cellkit.models.maskrcnn_pyramid import masks_in_boxes
from cellkit.models.shared import detector_training, fine_tuning, flow_loss
from cellkit.models.shared.detections import Reading, read_detections
from cellkit.models.shared.detector_settings import DEFAULTS
from cellkit.models.shared.detector_start import opened
from cellkit.models.shared.tiles import Boxes, grown, paste
from cellkit.models.unet_network import CellposeUNet
from cellkit.scores.iou import overlaps

# ---- maskrcnn ------------------------------------------------------------------------------------------------------


def test_paste_puts_a_mask_exactly():
    mask = np.ones((1, 28, 28), np.float32)
    found = paste(mask, np.array([[10.0, 20.0, 30.0, 50.0]]), (100, 100), 0.5)
    assert found.boxes_xywh.tolist() == [[10, 20, 20, 30]] and found.areas_px.tolist() == [600]


def test_paste_is_clipped_and_survives_boxes_outside():
    masks = np.ones((3, 28, 28), np.float32)
    boxes = np.array([[-5.0, -5.0, 5.0, 5.0], [200.0, 200.0, 220.0, 220.0], [3.0, 3.0, 3.2, 3.2]])
    found = paste(masks, boxes, (50, 50), 0.5)
    assert found.areas_px[0] == 25 and found.areas_px[1] == 0 and len(found) == 3


def test_cells_of_unknown_class_train_boxes_and_masks():
    labels = np.zeros((40, 40), np.int32)
    labels[2:12, 2:12], labels[20:32, 20:32] = 1, 2
    made = target(labels, np.array([0, 2, 0]), ignore_unknown=True)
    assert made["labels"].tolist() == [1, 1] and made["boxes"].tolist() == [[2, 2, 12, 12], [20, 20, 32, 32]]
    assert target(labels, np.array([0, 2, 0]), ignore_unknown=False)["boxes"].tolist() == [[2, 2, 12, 12]]


def test_crops_without_any_cell_have_a_finite_loss_and_gradient(drawn):
    from cellkit.models.maskrcnn_network import build

    image, nothing = drawn.image(0), Instances.empty((128, 128))
    model = build({**DEFAULTS, "fpn_channels": 16}, classes=2).train()
    config = config_of("maskrcnn_torchvision", batch_size=1)
    losses = {model: detector_training.DetectorLoss(model, [detector_training.scaled(image, nothing, 12.0)], config)}
    network = CellposeUNet().train()
    losses[network] = flow_loss.FlowLoss(
        network, [flow_loss.prepare(image, nothing, 30.0)], batch_size=1, crop_px=64, seed=0
    )
    assert not losses[network].batch(0)[1].any(), "no cell in the crop"
    for module, loss_at in losses.items():
        loss = loss_at(0)
        loss.backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert torch.isfinite(loss) and loss > 0 and all(torch.isfinite(g).all() for g in gradients)
        assert any(g.any() for g in gradients), "an image without cells teaches what is none"


def test_a_class_that_is_neither_there_nor_found_does_not_count():
    empty, labels = Instances.empty((12, 12)), np.zeros((12, 12), int)
    labels[2:8, 2:8] = 1
    cell = Instances.from_labels(labels, class_ids=[1])
    assert fine_tuning.class_score([cell, empty], [cell, empty], ("HEK", "N2a")) == 1
    assert fine_tuning.class_score([cell, empty], [cell, cell.with_classes([2])], ("HEK", "N2a")) == 0.5
    assert fine_tuning.class_score([empty], [empty], ("HEK", "N2a")) == 0


def test_what_a_tile_may_report_grows_with_the_crowd_and_proposals_with_the_area():
    from torchvision.models.detection.image_list import ImageList

    from cellkit.models.maskrcnn_network import build

    settings = {**DEFAULTS, "fpn_channels": 16}
    model = build(settings, classes=2).eval()
    assert model.roi_heads.detections_per_img == 1000
    assert build(settings | {"tile_detections": 2500}, 2).roi_heads.detections_per_img == 2500
    for most in (50, 4000):  # proposals must not run out before the cells do
        model = build(settings | {"max_detections": most}, 2).eval()
        features = {k: torch.zeros(1, 16, 768 // n, 768 // n) for k, n in (("1", 4), ("2", 8))}
        proposals, _ = model.rpn(ImageList(torch.zeros(1, 3, 768, 768), [(768, 768)]), features)
        assert model.roi_heads.detections_per_img == most
        assert model.rpn.pre_nms_top_n() == model.rpn.post_nms_top_n() == 768 * 768 // 60 >= len(proposals[0])
    crowded = build(settings | {"tile_detections": 9000}, 2).eval()
    crowded.rpn(ImageList(torch.zeros(1, 3, 768, 768), [(768, 768)]), features)
    assert crowded.rpn.pre_nms_top_n() == crowded.rpn.post_nms_top_n() == 18_000
    model.rpn(ImageList(torch.zeros(1, 3, 96, 96), [(96, 96)]), {k: v[..., :24, :24] for k, v in features.items()})
    assert model.rpn.post_nms_top_n() == 2000


def untrained(tmp_path, **more):
    """A Mask R-CNN of random numbers, as a checkpoint; its card lacks what is None."""
    from cellkit.models.maskrcnn_network import build

    settings = {**DEFAULTS, "fpn_channels": 16, "diameter_px": 12.0, "min_area_px": 1}
    torch.manual_seed(0)
    tensors = build(settings, classes=2).state_dict()
    path = tmp_path / "m.safetensors"
    config = {key: value for key, value in (settings | more).items() if key not in more or value is not None}
    return weights.save_checkpoint(path, tensors, maskrcnn.NAME, classes=("HEK", "N2a"), config=config)


def test_a_limit_of_detections_is_named_with_the_image(drawn, tmp_path, capsys):
    limited = maskrcnn.load(untrained(tmp_path), maskrcnn.Settings(max_detections=3, score_threshold=0.0))
    (found,) = predict_all(limited, drawn.subset([2]))
    assert len(found) <= 3
    told = capsys.readouterr().err
    assert (
        "cells of 1 image left out: more than 3 in a tile of 768 px at network scale; raise max_detections (2)" in told
    )


def test_resnet_trains_a_step(drawn, tmp_path):
    few = {"steps": 1, "eval_every": 1, "batch_size": 1, "max_detections": 20}
    config = config_of("maskrcnn_torchvision", backbone="resnet50_fpn_v2", **few)
    checkpoint = maskrcnn.train(drawn.select("train"), drawn.select("val"), config, tmp_path)
    card = weights.read_card(checkpoint)
    assert (card.config["backbone"], card.metrics["start"]) == ("resnet50_fpn_v2", "scratch")
    (found,) = maskrcnn.load(checkpoint)([drawn.image(0)])
    assert found.shape == (128, 128)


def test_frozen_encoder_from_scratch_is_refused(drawn, tmp_path):
    with pytest.raises(UserError, match="freeze_backbone"):
        config = config_of("maskrcnn_torchvision", freeze_backbone=True)
        maskrcnn.train(drawn.select("train"), drawn.select("val"), config, tmp_path)


def test_a_tile_is_filled_up_by_its_edge_and_nothing_is_found_there():
    """Measured: zeros, as crops of a training have them, find no more at the border; see `forward`."""

    class Detector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.any = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            self.shown = images[0].numpy()
            boxes = torch.tensor([[2.0, 2.0, 8.0, 8.0], [16.0, 2.0, 30.0, 8.0]])
            return [{"boxes": boxes, "scores": torch.tensor([0.9, 0.8]), "masks": torch.ones(2, 1, 28, 28)}]

    detector, planes = Detector(), np.random.default_rng(0).random((3, 20, 22), np.float32)
    boxes, scores, masks, votes = maskrcnn_detect.forward(detector, planes)
    assert detector.shown.shape == (3, 32, 32) and np.array_equal(detector.shown[:, :20, :22], planes)
    assert (detector.shown[:, 20:, :22] == planes[:, -1:]).all() and (
        detector.shown[:, :20, 22:] == planes[:, :, -1:]
    ).all()
    assert boxes.tolist() == [[2, 2, 8, 8]] and votes is None and len(scores) == len(masks) == 1, (
        "the other lies beyond the edge"
    )


def test_masks_train_on_true_boxes_that_are_moved_a_little():
    from cellkit.models.maskrcnn_network import build, jittered

    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]]).repeat(200, 1)
    moved = (jittered(boxes, 0.1) - boxes).abs()
    assert (moved <= torch.tensor([2.0, 4.0, 2.0, 4.0])).all() and (moved > 0).any(dim=0).all()
    labels, seen = np.zeros((96, 96), np.int32), {}
    labels[10:34, 10:34], labels[60:84, 8:30] = 1, 2
    for share in (0.0, 0.1):
        torch.manual_seed(0)
        model = build(
            {**DEFAULTS, "fpn_channels": 16, "widths": (4, 8, 12, 16), "box_jitter": share}, classes=1
        ).train()
        pool = model.roi_heads.mask_roi_pool
        hook = pool.register_forward_pre_hook(lambda _, given, share=share: seen.update({share: given[1][0]}))
        torch.manual_seed(1)
        losses = model([torch.rand(3, 96, 96)], [target(labels, np.array([0, 1, 1]), ignore_unknown=True)])
        hook.remove()
        assert torch.isfinite(sum(losses.values()))
    assert len(seen[0.1]) == len(seen[0.0]) + 2, "those of the proposals, and one for each true cell"


def test_a_margin_keeps_an_outline_round_where_the_box_is_too_small():
    y, x = np.mgrid[:80, :80]
    round_cell = np.hypot(y - 39.5, x - 39.5) < 20
    truth, box = Instances.from_masks([round_cell], (80, 80)), torch.tensor([[23.0, 20.0, 57.0, 60.0]])
    found = {}
    for margin in (0.0, 0.1):
        masks = masks_in_boxes(torch.from_numpy(round_cell)[None].float(), grown(box, margin), torch.tensor([0]), 28)
        raw = Boxes(box.numpy().astype(float), np.array([0.9]), masks.numpy(), margin=margin)
        both = Boxes.joined([raw, raw[[0]]])
        assert both.margin == margin
        cells, _ = read_detections(both, (80, 80), Reading())
        found[margin] = overlaps(truth, cells).iou.tolist()
    assert found[0.0] == pytest.approx([0.93], abs=0.01) and found[0.1][0] > 0.97, "cut straight, and whole"


def test_a_detector_is_read_with_the_margin_of_its_training(tmp_path):
    from cellkit.models.maskrcnn_network import build

    margin = lambda path: opened(path, None, maskrcnn.NAME, build)[0].roi_heads.mask_margin  # noqa: E731
    assert margin(untrained(tmp_path)) == DEFAULTS["mask_box_margin"] == 0.1
    assert margin(untrained(tmp_path, mask_box_margin=0.25)) == 0.25
    assert margin(untrained(tmp_path, mask_box_margin=None)) == 0, "cards written before there was one"


def test_of_anchors_around_a_place_the_likeliest_alone_is_proposed():
    from cellkit.models.maskrcnn_network import build

    torch.manual_seed(0)
    model, levels = build({**DEFAULTS, "fpn_channels": 16}, classes=2), [torch.rand(1, 16, 24, 24)]
    every, boxes = model.rpn.head.train()(levels)
    few, same = model.rpn.head.eval()(levels)
    assert torch.isfinite(every[0]).all() and torch.equal(boxes[0], same[0])
    kept = torch.isfinite(few[0])
    assert torch.equal(few[0][kept], every[0][kept]) and 24 * 24 / 25 < kept.sum() <= 24 * 24 / 4
    best = np.argwhere(kept.any(dim=1)[0].numpy())
    apart = np.abs(best[:, None] - best[None]).max(axis=2) + 9 * np.eye(len(best))
    assert apart.min() > 1, "no two are neighbours"


def test_masks_and_classes_of_a_crowd_are_made_in_parts_and_are_the_same(monkeypatch):
    from cellkit.models import maskrcnn_network, maskrcnn_pyramid

    torch.manual_seed(0)
    settings = {**DEFAULTS, "fpn_channels": 8, "widths": (4, 8, 12, 16), "score_threshold": 0.0, "max_detections": 40}
    model, shown = maskrcnn_network.build(settings, 2).eval(), [torch.rand(3, 96, 96)]
    seen = []
    model.roi_heads.mask_roi_pool.register_forward_pre_hook(lambda _, given: seen.append(len(given[1][0])))
    with torch.no_grad():
        (whole,) = model(shown)
        monkeypatch.setattr(maskrcnn_network, "MASKS_AT_ONCE", 7)
        monkeypatch.setattr(maskrcnn_pyramid, "CLASSES_AT_ONCE", 5)
        (parts,) = model(shown)
    assert len(whole["boxes"]) == seen[0] > 14 and max(seen[1:]) == 7 and sum(seen[1:]) == seen[0]
    assert whole["masks"].shape == (seen[0], 1, 28, 28) and whole["votes"].shape == (seen[0], 2)
    assert whole.keys() == parts.keys() and all(torch.allclose(whole[key], parts[key], atol=1e-6) for key in whole)
