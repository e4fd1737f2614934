"""What a detector on a U-Net reads: its features, a small pyramid that learns on them, and masks from the finest of them.

The U-Net already knows where a cell ends: its maps of the cells' probability and of the flow to their middle, at every pixel.
Boxes are found on two levels that are trained, at a quarter and an eighth of the height and width. Masks are read in the boxes
alone, from the U-Net's own features at full and half size: no convolution over the whole picture, and no way back through it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from cellkit.models.cell_classifier import down_level
from cellkit.models.shared.inputs import CHANNELS
from cellkit.models.unet_network import CellposeUNet

STEM = (12, 24, 48)
STRIDES = (1, 2, 4, 8)
ENCODED = ("fine", "half", "quarter", "eighth")
AROUND_PX = (40, 80)  # squares around the middle of a cell, of about 30 px, in which its class is looked for too
MASK_SIZE = 28
FINE = 24  # channels of the mask head where a mask has its full size
MASKS_AT_ONCE, CLASSES_AT_ONCE = 256, 1024  # boxes; measured, a box takes 0.65 MB for its mask


class UNetPyramid(nn.Module):
    """A feature pyramid at strides 4 and 8 over the U-Net's encoder and decoder and a small stem on the colours.

    The decoder is what the flows are read from, so it already knows where a cell ends; the stem sees all three colours at a
    width that trains in minutes and adds what the U-Net was not shown.

    Parameters
    ----------
    unet : CellposeUNet
    channels : int
        Width of the pyramid.
    shown : {"both", "nuclei", "cytoplasm"}
        What the U-Net was trained on and is shown here too; the stem sees everything.
    frozen : bool
        Keep the U-Net as it is, in evaluation mode and without gradients: then its features need not be computed again.
    """

    def __init__(self, unet: CellposeUNet, channels: int, frozen: bool, shown: str = "both"):
        super().__init__()
        seen = [float(k in CHANNELS[shown]) for k in (1, 2)]
        self.register_buffer("seen", torch.tensor(seen).view(1, 2, 1, 1), persistent=False)
        self.unet, self.frozen, self.out_channels = unet, frozen, channels
        self.train_unet(not frozen)
        self.stem = nn.ModuleList(down_level(a, b) for a, b in zip((3, *STEM[:-1]), STEM, strict=True))
        inputs = [2 * width + stem for width, stem in zip(unet.widths[2:], STEM[1:], strict=True)]
        self.lateral = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(n), nn.Conv2d(n, channels, 1)) for n in inputs)
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
            for _ in inputs
        )

    def train(self, mode: bool = True) -> UNetPyramid:
        """Set training mode; a frozen U-Net stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.unet.eval()
        return self

    def train_unet(self, yes: bool) -> None:
        """Let the U-Net's parameters belong to a training, or not; while it is frozen they have no gradients."""
        for name, parameter in self.unet.named_parameters():
            parameter.requires_grad_(yes and not name.startswith("diam_"))

    def unfreeze(self) -> None:
        """Train the U-Net too from now on; which of its parameters have gradients is settled before a training."""
        self.frozen = False
        self.train(self.training)

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (B, 3, H, W), red, cytoplasm, nuclei, to what the U-Net makes of it, one tensor for each of `STRIDES`.

        The first holds its finest features and its three maps, the others encoder and decoder side by side.
        """
        with self.unet.arithmetic.autocast(), torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            down, up = self.unet.features(self.unet.arithmetic.placed(x)[:, 1:3] * self.seen)
            finest = torch.cat([up[0], self.unet.output(up[0])], dim=1)
            return [finest, *(torch.cat(pair, dim=1) for pair in zip(down[1:], up[1:], strict=True))]

    def forward(self, x: torch.Tensor, encoded: Sequence[torch.Tensor] | None = None) -> OrderedDict[str, torch.Tensor]:
        """Map (B, 3, H, W) to levels "1" and "2", (B, channels, H/4, W/4) and H/8, and the U-Net's own, named in `ENCODED`.

        Parameters
        ----------
        x : (B, 3, H, W)
        encoded : sequence of tensors, optional
            What `encode` made of `x`, where that is known.
        """
        fine, half, *coarse = self.encode(x) if encoded is None else encoded
        with self.unet.arithmetic.autocast():
            stem, inputs = self.stem[0](self.unet.arithmetic.placed(x)), []
            for level, features in zip(self.stem[1:], coarse, strict=True):
                stem = level(stem)
                inputs.append(torch.cat([features.to(stem.dtype), stem], dim=1))
            last = self.lateral[1](inputs[1])
            both = [self.lateral[0](inputs[0]) + F.interpolate(last, scale_factor=2, mode="nearest"), last]
            levels = [smooth(level) for smooth, level in zip(self.smooth, both, strict=True)]
        found = {"1": levels[0], "2": levels[1], **dict(zip(ENCODED, (fine, half, *coarse), strict=True))}
        return OrderedDict(
            (name, level.float().contiguous()) for name, level in found.items()
        )  # as boxes are cut from it


def peaks(objectness: torch.Tensor) -> torch.Tensor:
    """Return logits (B, anchors, H, W) in which all are -inf but the likeliest anchor of its place and the eight around it.

    So a cell is proposed once or twice, not dozens of times: unlikely cells are not crowded out, and heads look at few boxes.

    Examples
    --------
    >>> peaks(torch.tensor([[[[1.0, 3.0, 2.0, 0.0, 5.0]], [[0.0, 4.0, 0.0, 0.0, 0.0]]]]))[0, :, 0]
    tensor([[-inf, -inf, -inf, -inf, 5.],
            [-inf, 4., -inf, -inf, -inf]])
    """
    around = F.max_pool2d(objectness.amax(dim=1, keepdim=True), 3, 1, 1)
    return objectness.masked_fill(objectness < around, -torch.inf)


class MaskPool(nn.Module):
    """(features by name, boxes (N, 4) xyxy of each picture, their shapes) -> what masks are made of, for all boxes.

    Two tensors: (N, C, 14, 14) of the half-size features and the finer level of the pyramid, (N, D, 28, 28) of the finest ones.
    """

    def forward(
        self, features: Mapping[str, torch.Tensor], boxes: Sequence[torch.Tensor], shapes: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both; a box has about as many pixels of a level as it is sampled at."""
        around, half, fine = (
            roi_align(features[name], list(boxes), MASK_SIZE // stride, 1 / stride, 1, aligned=True)
            for name, stride in (("1", 4), ("half", 2), ("fine", 1))
        )
        coarse = torch.cat([half, F.interpolate(around, scale_factor=2, mode="nearest")], dim=1)
        order = torch.channels_last  # for a quarter less of the heads' time
        return coarse.contiguous(memory_format=order), fine.contiguous(memory_format=order)


def to_the_middle(maps: torch.Tensor) -> torch.Tensor:
    """Return, (N, 3, M, M), how far each pixel of a box lies from its middle, and how far the flow leads there.

    Parameters
    ----------
    maps : (N, 3, M, M)
        Flow down, flow right, and cell probability in boxes.

    Returns
    -------
    (N, 3, M, M)
        The place, down and right, -1 to 1; and the flow along the way to the middle: where it leads away, another cell begins.
    """
    place = torch.linspace(-1, 1, maps.shape[-1], device=maps.device, dtype=maps.dtype)
    down, right = (x.expand(len(maps), 1, -1, -1) for x in torch.meshgrid(place, place, indexing="ij"))
    distance = (down.square() + right.square()).sqrt().clamp(min=1e-3)
    return torch.cat([down, right, -(maps[:, :1] * down + maps[:, 1:2] * right) / distance], dim=1)


class _Norm(nn.BatchNorm2d):
    """Batch normalisation that leaves no boxes as they are: there is no mean of nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if len(x) else x


class MaskHead(nn.Module):
    """Two convolutions at half the size of a mask; the finest features pass by them."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.norm, self.first = _Norm(inputs), nn.Conv2d(inputs, channels, 1)
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Map what `MaskPool` gives to (N, channels, 14, 14) and what is finest, as it came."""
        coarse, fine = x
        coarse = self.first(self.norm(coarse))
        for convolution in self.convolutions:
            coarse = F.relu(convolution(coarse))
        return coarse, fine


class MaskPredictor(nn.Module):
    """One mask per cell, (N, 2, 28, 28) logits: from both, at full size."""

    def __init__(self, channels: int, finest: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, FINE, 2, 2)
        self.norm, self.side = _Norm(finest + 3), nn.Conv2d(finest + 3, FINE, 1)
        self.mix, self.last = nn.Conv2d(FINE, FINE, 3, padding=1), nn.Conv2d(FINE, 1, 1)

    def forward(self, x: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Map what `MaskHead` gives to logits; torchvision takes the second of the two, that of cells."""
        coarse, fine = x
        fine = self.side(self.norm(torch.cat([fine, to_the_middle(fine[:, -3:])], dim=1)))
        return self.last(F.relu(self.mix(F.relu(self.up(coarse) + fine)))).expand(-1, 2, -1, -1)


class ClassHead(nn.Module):
    """Which class a cell is of: a weighted sum of the U-Net's features in its box and in squares around its middle.

    It knows little, and soon: beside the classifier on cut-outs, which has to learn what a cell looks like, it has but one layer.

    Parameters
    ----------
    widths : sequence of int
        Of the U-Net.
    classes : int
    """

    def __init__(self, widths: Sequence[int], classes: int):
        super().__init__()
        features = widths[0] + 3 + 2 * sum(widths[1:])
        self.norm = nn.BatchNorm1d((2 + len(AROUND_PX)) * features, affine=False)
        self.last = nn.Linear((2 + len(AROUND_PX)) * features, classes)

    def forward(self, features: Mapping[str, torch.Tensor], boxes: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return logits (N, classes) of the boxes (N, 4) xyxy of each picture, in px."""
        middles = [(one[:, :2] + one[:, 2:]).repeat(1, 2) / 2 for one in boxes]
        around = [[one + one.new_tensor([-k, -k, k, k]) / 2 for one in middles] for k in AROUND_PX]
        own = [features[name].detach() for name in ENCODED]
        quarter = torch.cat([F.avg_pool2d(own[0], 4), F.avg_pool2d(own[1], 2), own[2]], dim=1)
        seen = []
        for level, stride in (
            (quarter, 4),
            (own[3], 8),
        ):  # the finer ones as means: half the time, and as good
            inside, *beside = (roi_align(level, one, 4, 1 / stride, 1, aligned=True) for one in (list(boxes), *around))
            seen += [inside.mean(dim=(2, 3)), inside.amax(dim=(2, 3)), *(one.mean(dim=(2, 3)) for one in beside)]
        return self.last(self._normed(torch.cat(seen, dim=1)))

    def votes(self, features: Mapping[str, torch.Tensor], boxes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return log probabilities (n, classes) of the boxes of each picture."""
        return in_parts(lambda some: self(features, some).log_softmax(dim=1), boxes, CLASSES_AT_ONCE)

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise by what was seen so far: the cells of one step may all be of one class, which their mean would hide."""
        if self.training and len(x) > 1:
            self.norm(x)
        return F.batch_norm(x, self.norm.running_mean, self.norm.running_var, eps=self.norm.eps)

    def loss(self, features: Mapping[str, torch.Tensor], targets: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
        """Return the cross entropy at true boxes, moved a little; every class there counts the same, unknown ones do not."""
        boxes = [one["boxes"] for one in targets]
        sides = [(one[:, 2:] - one[:, :2]).repeat(1, 2) for one in boxes]
        moved = [one + 0.1 * side * (2 * torch.rand_like(one) - 1) for one, side in zip(boxes, sides, strict=True)]
        classes = torch.cat([one["classes"] for one in targets])
        known = classes > 0
        logits = self(features, moved)[known]
        if not len(logits):
            return logits.sum()
        wanted = classes[known] - 1
        counts = torch.bincount(wanted, minlength=logits.shape[1])
        each = F.cross_entropy(logits, wanted, label_smoothing=0.05, reduction="none")
        return (each / counts[wanted]).sum() / (counts > 0).sum()


def in_parts(
    rows_of: Callable[[list[torch.Tensor]], torch.Tensor], boxes: Sequence[torch.Tensor], most: int
) -> list[torch.Tensor]:
    """Return what is said of the boxes of each picture, a row for each box, looking at so many of a picture at once.

    Memory then does not grow with the crowd.

    Examples
    --------
    >>> boxes = [torch.arange(12.0).reshape(3, 4), torch.zeros(0, 4)]
    >>> [rows.tolist() for rows in in_parts(lambda some: torch.cat(some)[:, :1], boxes, 2)]
    [[[0.0], [4.0], [8.0]], []]
    """
    found: list[list[torch.Tensor]] = [[] for _ in boxes]
    for first in range(0, max(1, *map(len, boxes)), most):
        some = [one[first : first + most] for one in boxes]
        for own, rows in zip(found, rows_of(some).split([len(one) for one in some]), strict=True):
            own.append(rows)
    return [torch.cat(own) for own in found]


def masks_in_boxes(masks: torch.Tensor, boxes: torch.Tensor, which: torch.Tensor, size: int) -> torch.Tensor:
    """Return what share of each of size x size parts of a box a mask covers.

    torchvision's own ``project_masks_on_boxes`` takes the middle of a pixel for its corner: what is trained with it draws every
    outline half a pixel too high and too far left.

    Parameters
    ----------
    masks : (M, H, W)
    boxes : (N, 4) float
        Left, top, right, bottom in px; pixel (row, column) covers [column, column + 1) x [row, row + 1).
    which : (N,) int
        The mask of each box.

    Returns
    -------
    (N, size, size) of the type of the boxes

    Examples
    --------
    >>> mask = torch.zeros(1, 8, 8)
    >>> mask[0, 2:6, 2:4] = 1
    >>> masks_in_boxes(mask, torch.tensor([[2.0, 2, 6, 6]]), torch.tensor([0]), 2)[0].tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """
    rois = torch.cat([which[:, None].to(boxes), boxes], dim=1)
    return roi_align(masks[:, None].to(boxes), rois, (size, size), 1.0, 2, aligned=True)[:, 0]
