"""Mask R-CNN applied to an image: what it finds in tiles, and the cells in the whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.models.cell_regression import softmax
from cellkit.models.class_shares import told_together
from cellkit.models.shared import live
from cellkit.models.shared.detections import Reading, read_detections
from cellkit.models.shared.inputs import CELL_PX, bytes_for, network_shape, planes_of, resized
from cellkit.models.shared.live import AREA, Live, Range, Read
from cellkit.models.shared.tiles import LARGEST_PX, Boxes, Window, join_tiles, owned_tiles, paste

TILE_PX, OVERLAP_PX = 768, 128
LOOSEST_SCORE = 0.05  # what a network looks with whose thresholds are moved afterwards
MOVED = {"score_threshold": Range(LOOSEST_SCORE, 0.95, 0.01), "covered_share": Range(0, 1, 0.05), "min_area_px": AREA}
PROPOSALS = 2000  # of a picture, at least


def detect_image(model, image: np.ndarray, settings: dict, left_out: Counter[str] | None = None) -> Instances:
    """Find the cells of one image, disjoint; see `cellkit.models.shared.detections` for how detections become cells.

    Parameters
    ----------
    image : (H, W, 3) uint8
    settings : dict
        ``diameter_px`` of the cells in this image, how detections are read, ``max_detections``.
    left_out : Counter, optional
        Takes the number of cells that were found and are not reported, by reason.

    Returns
    -------
    Instances
        Score = probability of being a cell, times that of its mask where ``mask_score`` is set; class 1..K.
    """
    return SeenByDetector(model, image, settings, left_out).cells(settings, left_out)


class SeenByDetector:
    """All that a detector says of an image, read with one set of thresholds after another.

    Parameters
    ----------
    model, image, settings, left_out
        As for `detect_image`; the settings are those that the network looks with.
    """

    def __init__(self, model, image: np.ndarray, settings: dict, left_out: Counter[str] | None = None):
        found, planes = raw_detections(model, image, settings, left_out)
        scale = np.array([planes.shape[2] / image.shape[1], planes.shape[1] / image.shape[0]] * 2)
        self._see(model, image, found, planes, scale, np.zeros(4))

    @classmethod
    def of(
        cls, model: Any, image: np.ndarray, found: Boxes, planes: np.ndarray, scale: np.ndarray, shift: np.ndarray
    ) -> SeenByDetector:
        """Return what was seen of a part of an image.

        Parameters
        ----------
        found : Boxes
            In px of the part.
        planes : (3, h, w) float32
            The part as the network is shown it.
        scale, shift : (4,) float
            A box (left, top, right, lower side) is at ``box * scale + shift`` in them.
        """
        seen = cls.__new__(cls)
        seen._see(model, image, found, planes, scale, shift)
        return seen

    def _see(self, model: Any, image: np.ndarray, found: Boxes, planes: np.ndarray, scale: Any, shift: Any) -> None:
        self.model, self.image, self.found, self.planes = model, image, found, planes
        self.scale, self.shift = scale, shift
        self.logits: dict[int, np.ndarray] = {}  # what the network on cut-outs says of a detection, where it was asked
        self.texture: dict[int, np.ndarray] = {}  # what its texture voted last

    def cells(self, settings: dict, left_out: Counter[str] | None = None, quick: bool = False) -> Instances:
        """Return the cells that detections are read as with these settings.

        With `quick`, the texture of a cell votes as when it was looked at last, with other edges perhaps.
        """
        if not settings.get("by_line"):
            return self._read(settings, left_out, quick)
        line = settings.get("line")  # known already, of an image that this is a part of
        own = settings["by_line"].get(
            line_of(self._read(settings, None, quick).class_ids) if line is None else line, {}
        )
        return self._read(settings | own, left_out, quick)

    def _read(self, settings: dict, left_out: Counter[str] | None, quick: bool) -> Instances:
        cells, places = read_detections(self.found, self.image.shape[:2], Reading.of(settings), left_out)
        cells, places = _at_most(settings["max_detections"], cells, places, left_out)
        texture = self._texture_votes_of(cells, places, settings, quick)
        return cells.with_classes(_classes(self._logits_of(places), self.found[places].votes, texture))

    def _texture_votes_of(self, cells: Instances, places: np.ndarray, settings: dict, quick: bool) -> np.ndarray | None:
        """Return what the texture of the cells votes; with `quick`, only of detections that were not asked before anew."""
        known = [quick and place in self.texture for place in places.tolist()]
        told = _texture_votes(self.model, self.image, cells[~np.array(known, bool)], settings)
        if told is None:
            return None
        own = self.texture | dict(zip(places[~np.array(known, bool)].tolist(), told, strict=True))
        self.texture |= own  # another thread may write there meanwhile
        return np.stack([own[place] for place in places.tolist()]) if len(places) else told

    def _logits_of(self, places: np.ndarray) -> np.ndarray:
        """Return what the network on cut-outs says of these detections, (N, K) float32; each is looked at once."""
        from cellkit.models.cell_classifier import class_logits

        new = [place for place in places.tolist() if place not in self.logits]
        boxes = self.found[np.array(new, int)].boxes * self.scale + self.shift
        told = class_logits(self.model.cell_classifier, self.planes, boxes)
        self.logits |= dict(zip(new, told, strict=True))
        return np.stack([self.logits[place] for place in places.tolist()]) if len(places) else told


def live_detector(model, used: dict, bytes_per_px: int) -> Live:
    """Return the same network, which looks at an image down to a low score, so that thresholds can be moved afterwards.

    Those are moved of which a better box knows nothing: what overlapping boxes and tiles are joined by is decided in the look.
    """
    model.roi_heads.score_thresh = min(LOOSEST_SCORE, model.roi_heads.score_thresh)

    def look(image: np.ndarray) -> Read:
        capped: Counter[str] = Counter()
        seen = SeenByDetector(model, image, used, capped)

        def read(changed: Mapping[str, Any], left_out: Counter[str], quick: bool) -> live.Reading:
            left_out.update(capped)
            cells = seen.cells(changed_by(used, changed), left_out, quick)
            return live.Reading(cells, not (quick and seen.texture))

        return read

    return Live(look, used, MOVED, bytes_by(used, bytes_per_px))


def bytes_by(used: dict, bytes_per_px: int) -> Callable[[tuple[int, int]], int]:
    """Return the function (height, width) -> bytes of memory that finding the cells of an image takes."""
    return lambda shape: bytes_for(shape, used["diameter_px"], used["flips"] * bytes_per_px)


def changed_by(used: dict, changed: Mapping[str, Any]) -> dict:
    """Return the settings of a detector with some changed: these hold for every class.

    Examples
    --------
    >>> used = {"score_threshold": 0.4, "by_line": {"1": {"score_threshold": 0.2, "min_area_px": 30}}}
    >>> changed_by(used, {"score_threshold": 0.6})
    {'score_threshold': 0.6, 'by_line': {'1': {'min_area_px': 30}}}
    """
    lines = {line: {k: v for k, v in own.items() if k not in changed} for line, own in (used["by_line"] or {}).items()}
    return used | dict(changed) | {"by_line": lines or None}


def line_of(class_ids: np.ndarray) -> str:
    """Return the number of the class that most cells of an image are of, as text; the first of equal ones, "" of none.

    Examples
    --------
    >>> line_of(np.array([2, 1, 0, 2]))
    '2'
    """
    known = class_ids[class_ids > 0]
    return str(np.bincount(known).argmax()) if len(known) else ""


def raw_detections(
    model, image: np.ndarray, settings: dict, left_out: Counter[str] | None = None
) -> tuple[Boxes, np.ndarray]:
    """Return all that the network says of an image, in px of the image, and the image as it was shown, (3, h, w) float32."""
    height, width = network_shape(image.shape[:2], settings["diameter_px"], 16)
    planes = resized(planes_of(image), (height, width), settings["diameter_px"] > CELL_PX)
    loosened(model, settings)
    found = _tiled(model, planes, settings, left_out)
    capped = capped_in(model, len(found))
    if left_out is not None:
        left_out.update(capped)
    ratio = np.array([image.shape[1] / width, image.shape[0] / height] * 2)
    return replace(found, boxes=found.boxes * ratio), planes


def loosened(model: Any, settings: dict) -> None:
    """Let a network report what the thresholds of any line take."""
    heads, lines = model.roi_heads, (settings.get("by_line") or {}).values()
    heads.score_thresh = min(
        [heads.score_thresh, *(own["score_threshold"] for own in lines if "score_threshold" in own)]
    )
    heads.nms_thresh = max([heads.nms_thresh, *(own["nms_threshold"] for own in lines if "nms_threshold" in own)])


def capped_in(model: Any, found: int) -> Counter[str]:
    """Return how many cells a network's caps cut since they were last counted, and how many were found where it ran out."""
    over, ran_out = model.roi_heads.take_counts()
    tile, counts = f"in a tile of {TILE_PX} px at network scale", Counter()
    if over:
        counts[f"left out: more than {model.roi_heads.detections_per_img} {tile}; raise max_detections"] = over
    if ran_out:
        counts[f"found where proposals ran out ({ran_out} {tile}): others may be missing; raise max_detections"] = found
    return counts


def most_proposals(height: int, width: int, detections: int) -> int:
    """Return how many proposals a picture gets: `PROPOSALS` at least, a dozen a cell of 30 px, twice the detections kept.

    So that detections are cut, which is counted and said, before proposals are.

    Parameters
    ----------
    height, width : int
        In px at network scale.
    detections : int
        Most of a tile.

    Examples
    --------
    >>> most_proposals(768, 768, 1000), most_proposals(96, 96, 1000), most_proposals(768, 768, 9000)
    (9830, 2000, 18000)
    """
    area = height * width
    return max(PROPOSALS, area // 60, 2 * detections * area // TILE_PX**2)


class Capped:
    """Counts what the caps of a detector cut; the heads of either engine inherit it.

    Attributes
    ----------
    detections_per_img : int
        Most detections of a tile.
    """

    detections_per_img = 0
    over, ran_out = 0, 0

    def capped(self, detections: int) -> int:
        """Return how many of a tile's detections stay, and count the others."""
        self.over += max(detections - self.detections_per_img, 0)
        return min(detections, self.detections_per_img)

    def count_proposals(self, proposals: Iterable[int], shapes: Iterable[tuple[int, int]]) -> None:
        """Note where pictures of these shapes have as many proposals as they may: some were cut, perhaps."""
        for count, shape in zip(proposals, shapes, strict=True):
            if count >= most_proposals(*shape, self.detections_per_img):
                self.ran_out = max(self.ran_out, count)

    def take_counts(self) -> tuple[int, int]:
        """Return how many detections were cut since the last call, and the proposals of a tile that had its fill, else 0."""
        counts, self.over, self.ran_out = (self.over, self.ran_out), 0, 0
        return counts


def _at_most(
    most: int | None, cells: Instances, places: np.ndarray, left_out: Counter[str] | None
) -> tuple[Instances, np.ndarray]:
    """Return the cells of the highest scores, at most so many."""
    over = max(len(cells) - most, 0) if most is not None else 0
    if left_out is not None and over:
        left_out[f"left out: more than max_detections = {most} in an image; raise it"] += over
    kept = np.sort(np.argsort(-cells.scores, kind="stable")[:most])
    return cells[kept], places[kept]


def _texture_votes(model, image: np.ndarray, cells: Instances, settings: dict) -> np.ndarray | None:
    """Return log probabilities (N, V, K) of classes by the texture of cells; None where the detector has not learned it.

    Of the V votes the second, where there is one, is that of the cell without its surroundings.
    """
    from cellkit.models.cell_texture import texture_of_cells

    votes = [vote for name in ("cell_texture", "cell_alone") if (vote := getattr(model, name, None)) is not None]
    if not votes:
        return None
    texture = texture_of_cells(image, cells, settings["diameter_px"])
    return np.stack([vote.votes(texture) for vote in votes], axis=1)


def _classes(logits: np.ndarray, votes: np.ndarray | None, texture: np.ndarray | None = None) -> np.ndarray:
    """Return the likeliest class, (N,) int64 in 1..K, by the mean of what is said of it.

    Parameters
    ----------
    logits : (N, K) float
        Of the classifier on cut-outs.
    votes : (N, K) float or None
        Log probabilities that the detector gives by itself.
    texture : (N, V, K) float or None
        Of `_texture_votes`. Where the cell alone has a vote, the cells are told together, see `class_shares`.
    """
    said = [logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)]
    said += [] if votes is None else [votes]
    said += [] if texture is None else [texture[:, 0]]
    mean = np.mean(said, axis=0)
    if texture is None or texture.shape[1] < 2:
        return mean.argmax(axis=1) + 1
    return told_together(softmax(mean), np.exp(texture[:, 1])).argmax(axis=1) + 1


def _tiled(model, planes: np.ndarray, settings: dict, left_out: Counter[str] | None = None) -> Boxes:
    """Detect over the whole image, or over overlapping tiles: every cell once, and whole (`tiles.join_tiles`)."""
    shape = planes.shape[1:]

    def detect(window: Window) -> Boxes:
        part = planes[:, window.top : window.bottom, window.left : window.right]
        found = Boxes(*forward(model, part), margin=settings.get("mask_box_margin", 0.0))
        return replace(found, boxes=found.boxes + np.array([window.left, window.top] * 2))

    def pixels(found: Boxes) -> Instances:
        return paste(found.masks, found.mask_boxes, shape, settings["mask_threshold"])

    found, pieces = join_tiles(detect, pixels, owned_tiles(shape, TILE_PX, OVERLAP_PX), shape)
    if left_out is not None and pieces:
        left_out[f"cut: too long for a window of {LARGEST_PX} px at network scale; raise diameter_px"] += pieces
    return found


def forward(model, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Return boxes (N, 4) xyxy, scores (N,), mask probabilities (N, 28, 28) of one tile, and votes (N, K) where there are.

    To multiples of 16 px the tile is filled up by its edge, although crops of a training show zeros there, as the U-Net is shown
    around an image: for this detector they are no better. MAP IoU on eight test images each, zeros minus edge, by detectors
    whose thresholds were searched with the edge: two_lines -0.015 (standard error 0.006; 67 of 97 cells at the border found,
    not 73), drawn cells 0.003 (0.008). A further frame of 16 px of zeros: -0.011 (0.007), -0.010 (0.011).
    """
    import torch

    device = next(model.parameters()).device
    padded = np.pad(planes, ((0, 0), (0, -planes.shape[1] % 16), (0, -planes.shape[2] % 16)), mode="edge")
    with torch.no_grad():
        out = model([torch.from_numpy(padded).to(device)])[0]
    boxes = out["boxes"].cpu().numpy().astype(np.float64).reshape(-1, 4)
    masks = out["masks"].float().cpu().numpy()
    masks = masks.reshape(len(boxes), *masks.shape[-2:]) if len(boxes) else np.zeros((0, 28, 28), np.float32)
    inside = ((boxes[:, 0] + boxes[:, 2]) / 2 < planes.shape[2]) & ((boxes[:, 1] + boxes[:, 3]) / 2 < planes.shape[1])
    votes = out["votes"].float().cpu().numpy()[inside] if "votes" in out else None
    return boxes[inside], out["scores"].cpu().numpy()[inside], masks[inside], votes
