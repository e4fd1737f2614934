"""Mask R-CNN on torchvision: finds cells, outlines them and says which line each belongs to.

The encoder is the fine-tuned Cellpose U-Net (the adaptation carries over where no other weights can be had) or a ResNet-50.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.backends import cellpose_unet as unet
from cellkit.backends.tiles import LARGEST_PX, Boxes, Window, join_tiles
from cellkit.errors import UserError
from cellkit.instances import Instances
from cellkit.leftout import too_small
from cellkit.training import random_state_kept

if TYPE_CHECKING:
    from cellkit.dataset import CellDataset

NAME = "maskrcnn_torchvision"
TILE_PX, OVERLAP_PX = 768, 128
CELL_PX = 30.0
GRID = {"score_threshold": (0.5, 0.4, 0.3, 0.6), "nms_threshold": (0.5, 0.4, 0.3)}  # searched when not set
DEFAULTS = {
    "backbone": "cellpose_unet",
    "shown": "both",
    "diameter_px": None,
    "fpn_channels": 96,
    "freeze_backbone": True,
    "boxes_per_image": 64,
    "max_detections": None,
    "tile_detections": 1000,
    "score_threshold": 0.5,
    "nms_threshold": 0.5,
    "mask_threshold": 0.5,
    "min_area_px": 15,
}


# ---- the contract --------------------------------------------------------------------------------------------------
def load(checkpoint: str | Path, config: Any = None) -> Callable[[Iterable[np.ndarray]], Iterator[Instances]]:
    """Return a function from a stream of (H, W, 3) uint8 images to their cells, in order.

    Parameters
    ----------
    checkpoint : path
        What `train` wrote.
    config : section or dict, optional
        ``diameter_px``, ``score_threshold``, ``nms_threshold``, ``mask_threshold``, ``max_detections`` (of an image; None =
        three times the crowd of the densest training image, tile by tile), ``min_area_px``; what it lacks comes from the card.

    Raises
    ------
    UserError
        No checkpoint there, or one of another backend.
    """
    from cellkit import weights
    from cellkit.backends.maskrcnn_network import build
    from cellkit.training import device_and_dtype

    card = weights.card_for(checkpoint, NAME)
    settings = _settings(config, card.config)
    settings |= {k: card.config[k] for k in ("backbone", "shown", "fpn_channels")}
    model = build(settings, len(card.classes))
    model.load_state_dict(weights.load_tensors(checkpoint))
    model = model.to(device_and_dtype()[0]).eval()

    def detect(images: Iterable[np.ndarray]) -> Iterator[Instances]:
        for image in images:
            yield detect_image(model, image, settings, detect.left_out)

    detect.settings, detect.left_out = settings, Counter()
    detect.bytes_for = lambda shape: unet.bytes_for(shape, settings["diameter_px"])
    return detect


@random_state_kept()
def train(train: CellDataset, val: CellDataset, config: Any, out: Path) -> Path:
    """Train the detector; whole images of `val` choose the weights by the mean of the classes' MAP IoU.

    Which of them choose, and that none does while there are few, is as in `cellpose_unet.train`.

    Parameters
    ----------
    config : section
        The fields of `DEFAULTS`, and ``start`` (encoder weights: a checkpoint, or "scratch"), ``steps``, ``batch_size``,
        ``crop_px``, ``learning_rate``, ``weight_decay``, ``warmup_steps``, ``eval_every``, ``patience``, ``val_images``,
        ``ignore_unknown``, ``seed``.
    out : Path
        Folder for the resume state, ``history.csv`` and the checkpoint.

    Returns
    -------
    Path
        ``maskrcnn.safetensors``.

    Raises
    ------
    UserError
        Nothing to train on, no class, or no weights to start from.
    """
    from cellkit import weights
    from cellkit.training import arithmetic, fit, plan_of

    if not train.classes:
        raise UserError("there is no class to train", "name the classes in the config")
    if not sum(len(i) for i in train.instances):
        raise UserError("there is no labelled cell to train on", "label images first (02), or lower coco.min_area_px")
    if not len(val):
        raise UserError("there is no validation image", "give convert.split a val fraction above 0")
    settings = _settings(config, {})
    settings["diameter_px"] = settings["diameter_px"] or unet.diameter_of(train.instances)
    unet.refuse_small(train, settings, "maskrcnn")
    needed = lambda shape: unet.bytes_for(shape, settings["diameter_px"])  # noqa: E731
    unet.ask_for_memory(train, val, settings["diameter_px"], 28, needed)
    settings["tile_detections"] = room_for(train.instances, settings["diameter_px"])
    model = _start(config, settings, len(train.classes))
    items = [scaled(*train[i], settings["diameter_px"]) for i in range(len(train))]
    unet.refuse_empty([item[0] for item in items], train, "any colour", "convert.channels")
    scored, choosing = unet.scored_along(val, getattr(config, "val_images", 0))
    scorer = _Scorer(model, [val[i] for i in scored], train.classes, settings)
    plan = plan_of(config, "maskrcnn_torchvision")
    rest = (settings, config.batch_size, config.crop_px, config.seed, config.ignore_unknown, scored, choosing)
    stamp = unet.fingerprint(model, [(image, labels, classes) for image, labels, classes in items], plan, *rest)
    loss_at = _Loss(model, items, config)
    history = fit(
        model,
        loss_at,
        scorer,
        plan,
        Path(out),
        stamp,
        "maskrcnn_torchvision",
        choosing,
        val.compared_by("validation score"),
    )
    searched = [key for key in GRID if getattr(config, key, None) is None]
    known = train.without_proposed() or train
    pairs = [known[i] for i in unet.spread(len(known), 6)]
    settings |= best_thresholds(model, pairs, settings, searched, known.compared_by("MAP IoU"))
    metrics = {
        val.compared_by("class_map_iou_validation"): round(history.best_score, 4),
        "chosen_by": [val.records[i].image_id for i in scored] if choosing else [],
        "step": history.best_step,
        "stopped": history.stopped,
        "convention": "kaggle, mean over classes and whole validation images",
        "start": str(config.start),
        "arithmetic": arithmetic(),
    }
    return weights.save_checkpoint(
        Path(out) / "maskrcnn.safetensors",
        model.state_dict(),
        NAME,
        classes=train.classes,
        config=settings,
        metrics=metrics,
        licence="of your images",
    )


def _settings(config: Any, card: dict) -> dict:
    """Merge what the caller set, what the card says, and the defaults, in that order."""
    given = config if isinstance(config, dict) else {k: getattr(config, k, None) for k in DEFAULTS}
    return {
        k: next((x for x in (given.get(k), card.get(k)) if x is not None), default) for k, default in DEFAULTS.items()
    }


def room_for(instances: Sequence[Instances], diameter_px: float) -> int:
    """Return how many cells a tile may report: three times the crowd of the densest labelled image, and at least 1000.

    Examples
    --------
    >>> crowd = Instances.from_labels(np.arange(1, 65 * 65 + 1).reshape(65, 65).repeat(4, 0).repeat(4, 1))
    >>> room_for([crowd], 10.0)  # cells of 4 x 4 px, 12 x 12 px at network scale
    12288
    """
    factor = CELL_PX / diameter_px
    crowd = max((len(x) / (x.shape[0] * x.shape[1] * factor**2) for x in instances), default=0)
    return max(DEFAULTS["tile_detections"], round(3 * crowd * TILE_PX**2))


def check_start(start: str, backbone: str, freeze_backbone: bool) -> None:
    """Refuse what cannot be the start of an encoder, as far as its name and card tell; nothing is loaded.

    Parameters
    ----------
    start : str
        ``maskrcnn.start``; "tuned" is the Cellpose network that notebook 03 keeps.
    """
    from cellkit import weights

    other = "set maskrcnn.start to weights of a ResNet-50, or scratch, or maskrcnn.backbone: cellpose_unet"
    if start == "scratch" and backbone == unet.NAME and freeze_backbone:
        raise UserError("maskrcnn.start is scratch and freeze_backbone is true", "set maskrcnn.freeze_backbone: false")
    if start == "tuned" and backbone != unet.NAME:
        raise UserError(f"maskrcnn.start is tuned, a Cellpose network, and maskrcnn.backbone is {backbone}", other)
    path = None if start in ("scratch", "tuned") else weights.locate_weights(start)
    if path is not None and path.suffix == ".safetensors":
        if backbone == unet.NAME:
            weights.card_for(path, unet.NAME)
        elif (made_by := weights.read_card(path).backend) not in (NAME, "torchvision"):
            raise UserError(f"maskrcnn.start is weights of {made_by}, and maskrcnn.backbone is {backbone}", other)


def _start(config: Any, settings: dict, classes: int):
    """Build the detector, put the start weights into its encoder, and note in `settings` what that was trained on."""
    import torch

    from cellkit import weights
    from cellkit.backends.maskrcnn_network import build
    from cellkit.training import device_and_dtype

    check_start(str(config.start), settings["backbone"], settings["freeze_backbone"])
    network = None
    if settings["backbone"] == "cellpose_unet" and str(config.start) != "scratch":
        network, card = unet.load_network(weights.find_weights(config.start))
        settings["shown"] = card.get("channels", "both")
    torch.manual_seed(config.seed)
    model = build(settings, classes)
    if network is not None:
        model.backbone.unet.load_state_dict(network.state_dict())
    elif str(config.start) != "scratch":
        _load_encoder(model, weights.find_weights(config.start))
    return model.to(device_and_dtype()[0])


def _load_encoder(model, path: Path) -> None:
    """Load a torchvision Mask R-CNN or ResNet-50 checkpoint into the encoder; every tensor of its body must be there."""
    from cellkit import weights

    tensors = {k.removeprefix("backbone."): v for k, v in weights.load_tensors(path).items()}
    if "conv1.weight" in tensors:
        tensors = {f"body.{k}": v for k, v in tensors.items()}
    wanted = model.backbone.state_dict()
    fitting = {k: v for k, v in tensors.items() if k in wanted and wanted[k].shape == v.shape}
    missing = [k for k in wanted if k.startswith("body.") and k not in fitting and "num_batches" not in k]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} tensors of a ResNet-50", "give torchvision's maskrcnn_resnet50_fpn_v2"
        )
    model.backbone.load_state_dict(fitting, strict=False)


# ---- images in, cells out ------------------------------------------------------------------------------------------
def planes_of(image: np.ndarray) -> np.ndarray:
    """Return red, cytoplasm and nuclei of an (H, W, 3) uint8 image as (3, H, W) float32, scaled as the U-Net wants them."""
    red = image[..., 0].astype(np.float32) / 255
    return np.concatenate([red[None], unet.two_channels(image)])


def detect_image(model, image: np.ndarray, settings: dict, left_out: Counter[str] | None = None) -> Instances:
    """Find the cells of one image; where two overlap, the higher score keeps the pixels.

    Parameters
    ----------
    image : (H, W, 3) uint8
    settings : dict
        ``diameter_px`` of the cells in this image, thresholds.
    left_out : Counter, optional
        Takes the number of cells that were found and are not reported, by reason.

    Returns
    -------
    Instances
        Score = probability of being a cell; class 1..K.
    """
    import cv2

    from cellkit.backends.cell_classifier import classify
    from cellkit.disjoint import resolve_overlaps

    planes = planes_of(image)
    factor = CELL_PX / settings["diameter_px"]
    height, width = (max(16, round(side * factor)) for side in image.shape[:2])
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    planes = np.stack([cv2.resize(plane, (width, height), interpolation=how) for plane in planes])
    boxes, scores, masks = _tiled(model, planes, settings, left_out)
    over = model.roi_heads.take_over_cap()
    if left_out is not None and over:
        cap = model.roi_heads.detections_per_img
        left_out[f"left out: more than {cap} in a tile of {TILE_PX} px at network scale; raise max_detections"] += over
    classes = classify(model.cell_classifier, planes, boxes)
    ratio = np.array([image.shape[1] / width, image.shape[0] / height] * 2)
    found = paste(masks, boxes * ratio, image.shape[:2], settings["mask_threshold"])
    small = int(((found.areas_px > 0) & (found.areas_px < settings["min_area_px"])).sum())
    if left_out is not None and small:
        left_out[too_small(settings["min_area_px"])] += small
    return resolve_overlaps(found.with_classes(classes).with_scores(scores), settings["min_area_px"])[0]


def _tiled(
    model, planes: np.ndarray, settings: dict, left_out: Counter[str] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detect over the whole image, or over overlapping tiles: every cell once, and whole (`tiles.join_tiles`)."""
    shape = planes.shape[1:]
    tiles = [
        (Window(y, x, min(y + TILE_PX, shape[0]), min(x + TILE_PX, shape[1])), (top, left, bottom, right))
        for y, top, bottom in _tiles(shape[0])
        for x, left, right in _tiles(shape[1])
    ]

    def look(window: Window) -> Boxes:
        part = planes[:, window.top : window.bottom, window.left : window.right]
        boxes, scores, masks = _forward(model, part)
        return Boxes(boxes + np.array([window.left, window.top] * 2), scores, masks)

    def pixels(found: Boxes) -> Instances:
        return paste(found.masks, found.boxes, shape, settings["mask_threshold"])

    found, pieces = join_tiles(look, pixels, tiles, shape)
    most = settings["max_detections"]
    over = max(len(found) - most, 0) if most is not None else 0
    reasons = {
        f"left out: more than max_detections = {most} in an image; raise it": over,
        f"cut: too long for a window of {LARGEST_PX} px at network scale; raise diameter_px": pieces,
    }
    if left_out is not None:
        left_out.update({why: cells for why, cells in reasons.items() if cells})
    found = found[np.argsort(-found.scores, kind="stable")[:most]]
    return found.boxes, found.scores, found.masks


def _tiles(size: int) -> list[tuple[int, float, float]]:
    """Return, for each tile along one side, where it begins and the part it owns."""
    if size <= TILE_PX + OVERLAP_PX:
        return [(0, -np.inf, np.inf)] if size <= TILE_PX else _cut(size, 2)
    return _cut(size, -(-(size - OVERLAP_PX) // (TILE_PX - OVERLAP_PX)))


def _cut(size: int, count: int) -> list[tuple[int, float, float]]:
    starts = np.linspace(0, size - TILE_PX, count).round().astype(int)
    middles = (starts[1:] + starts[:-1] + TILE_PX) / 2
    return list(zip(starts.tolist(), [-np.inf, *middles], [*middles, np.inf], strict=True))


def _forward(model, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes (N, 4) xyxy, scores (N,), mask probabilities (N, 28, 28) of one tile."""
    import torch

    device = next(model.parameters()).device
    padded = np.pad(planes, ((0, 0), (0, -planes.shape[1] % 16), (0, -planes.shape[2] % 16)), mode="edge")
    with torch.no_grad():
        out = model([torch.from_numpy(padded).to(device)])[0]
    boxes = out["boxes"].cpu().numpy().astype(np.float64).reshape(-1, 4)
    masks = out["masks"].float().cpu().numpy()
    masks = masks.reshape(len(boxes), *masks.shape[-2:]) if len(boxes) else np.zeros((0, 28, 28), np.float32)
    inside = ((boxes[:, 0] + boxes[:, 2]) / 2 < planes.shape[2]) & ((boxes[:, 1] + boxes[:, 3]) / 2 < planes.shape[1])
    return boxes[inside], out["scores"].cpu().numpy()[inside], masks[inside]


def paste(masks: np.ndarray, boxes_xyxy: np.ndarray, shape: tuple[int, int], threshold: float) -> Instances:
    """Put mask probabilities into the image at their exact boxes (torchvision rounds them to whole pixels).

    Parameters
    ----------
    masks : (N, m, m) float32
    boxes_xyxy : (N, 4) float
        In px of the image; pixel (row, column) covers [column, column + 1) x [row, row + 1).
    threshold : float

    Returns
    -------
    Instances
        N objects; one that falls outside the image or below the threshold has no pixel.
    """
    import cv2

    parts, corners = [], []
    for mask, (x0, y0, x1, y1) in zip(masks, boxes_xyxy, strict=True):
        left, top = int(np.floor(x0)), int(np.floor(y0))
        right, bottom = max(int(np.ceil(x1)), left + 1), max(int(np.ceil(y1)), top + 1)
        size = mask.shape[0]
        scale_x, scale_y = size / max(x1 - x0, 1e-6), size / max(y1 - y0, 1e-6)
        padded = np.pad(mask, 1)
        warp = np.array(  # pixel centre of the image -> sample of the padded mask
            [[scale_x, 0, (left + 0.5 - x0) * scale_x - 0.5 + 1], [0, scale_y, (top + 0.5 - y0) * scale_y - 0.5 + 1]]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        parts.append(cv2.warpAffine(padded, warp, (right - left, bottom - top), flags=flags) > threshold)
        corners.append((left, top))
    return Instances.from_boxed_masks(parts, corners, shape)


# ---- training ------------------------------------------------------------------------------------------------------
def scaled(image: np.ndarray, truth: Instances, diameter_px: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring one labelled image to network scale.

    Returns
    -------
    planes : (3, h, w) float32
    labels : (h, w) int32
    class_of : (N + 1,) int64
        Class of each label; 0 = unknown.
    """
    import cv2

    factor = CELL_PX / diameter_px
    size = tuple(max(16, round(side * factor)) for side in image.shape[1::-1])
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    planes = np.stack([cv2.resize(plane, size, interpolation=how) for plane in planes_of(image)])
    labels = cv2.resize(truth.paint().astype(np.float64), size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.int32)
    return planes, labels, np.r_[0, truth.class_ids]


def crop(item, rng: np.random.Generator, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a turned, flipped, scaled crop: planes (3, size, size) float32 and labels (size, size) int32."""
    import cv2

    planes, labels, _ = item
    warp, _ = unet.random_warp(labels, rng, size_px)
    size = (size_px, size_px)
    turned = cv2.warpAffine(np.ascontiguousarray(planes.transpose(1, 2, 0)), warp, size, flags=cv2.INTER_LINEAR)
    ids = cv2.warpAffine(labels.astype(np.float64), warp, size, flags=cv2.INTER_NEAREST)
    return unet.vary(turned.transpose(2, 0, 1), rng), ids.astype(np.int32)


def target(labels: np.ndarray, class_of: np.ndarray, ignore_unknown: bool, min_px: int = 8) -> dict:
    """Return torchvision's target of a crop: boxes (N, 4) xyxy float, labels (N,) all 1 = cell, masks (N, H, W) uint8.

    A cell of unknown class trains boxes and masks like any other; with `ignore_unknown` false it is background.
    """
    import torch

    cells = Instances.from_labels(labels)
    ids = np.unique(labels)
    cells = cells.with_classes(class_of[ids[ids > 0]])
    kept = cells.areas_px >= min_px
    kept &= (cells.boxes_xywh[:, 2:] > 1).all(axis=1) if len(cells) else kept
    if not ignore_unknown:
        kept &= cells.class_ids > 0
    cells = cells[kept]
    boxes = cells.boxes_xywh.astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    masks = np.stack([cells.mask(k) for k in range(len(cells))]) if len(cells) else np.zeros((0, *labels.shape), bool)
    return {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.ones(len(cells), dtype=torch.int64),
        "masks": torch.from_numpy(masks.astype(np.uint8)),
    }


class _Loss:
    """Step number -> sum of torchvision's five losses over a batch of crops, and of the classifier's over one of cells."""

    def __init__(self, model, items: Sequence, config: Any):
        from cellkit.backends.cell_classifier import ClassLoss

        self.model, self.items, self.config = model, items, config
        self.class_loss = ClassLoss(model.cell_classifier, items)

    def __call__(self, step: int):
        import torch

        rng = np.random.default_rng([self.config.seed, step])
        chosen = np.resize(rng.permutation(len(self.items)), self.config.batch_size)
        device = next(self.model.parameters()).device
        planes, targets = [], []
        for index in chosen:
            picture, labels = crop(self.items[index], rng, self.config.crop_px)
            made = target(labels, self.items[index][2], self.config.ignore_unknown)
            planes.append(torch.from_numpy(np.ascontiguousarray(picture)).to(device))
            targets.append({k: v.to(device) for k, v in made.items()})
        return sum(self.model(planes, targets).values()) + self.class_loss(rng)


def best_thresholds(
    model,
    pairs: Sequence[tuple[np.ndarray, Instances]],
    settings: dict,
    searched: Sequence[str] = tuple(GRID),
    called: str = "MAP IoU",
) -> dict[str, float]:
    """Search thresholds one after the other by MAP IoU (kaggle, whatever the class) on labelled images, and set them.

    Give training images: validation images are to judge by. Of equal values the first in `GRID` is taken.
    """
    from cellkit.scores import kaggle, overlaps

    names = {"score_threshold": "score_thresh", "nms_threshold": "nms_thresh"}
    best = {key: getattr(model.roi_heads, name) for key, name in names.items()}

    def score(key: str, value: float) -> float:
        for name, found in {**best, key: value}.items():
            setattr(model.roi_heads, names[name], found)
        found = (overlaps(truth, detect_image(model, image, settings)) for image, truth in pairs)
        return kaggle(list(found), bootstrap=0)["score"]

    chosen = unet.search(score, {key: GRID[key] for key in searched}, best, len(pairs), called)
    for key, value in best.items():
        setattr(model.roi_heads, names[key], value)
    return chosen


class _Scorer:
    """() -> mean over classes of the MAP IoU (kaggle) of each class by itself, on whole validation images."""

    def __init__(self, model, pairs: Sequence[tuple[np.ndarray, Instances]], classes: Sequence[str], settings: dict):
        self.model, self.pairs, self.classes, self.settings = model, pairs, classes, settings

    def __call__(self) -> float:
        found = [detect_image(self.model, image, self.settings) for image, _ in self.pairs]
        return class_score([truth for _, truth in self.pairs], found, self.classes)


def class_score(truths: Sequence[Instances], founds: Sequence[Instances], classes: Sequence[str]) -> float:
    """Return the mean over classes of MAP IoU (kaggle, images that hold the class or a prediction of it).

    A class that is neither in the truth nor found does not count.
    """
    from cellkit.records import ImageRecord
    from cellkit.scores import score_table, summary

    records = [ImageRecord(str(k), "", *truth.shape) for k, truth in enumerate(truths)]
    table = summary(score_table(truths, founds, records, classes=classes), by="class_name", n=0).set_index("class_name")
    scores = [table["score"].get(name, np.nan) for name in classes]
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else 0.0
