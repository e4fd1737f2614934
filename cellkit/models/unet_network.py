"""The residual U-Net with a style vector of Cellpose 1 to 3, with the parameter names of its published checkpoints.

Source: Stringer, Wang, Michaelos, Pachitariu, "Cellpose: a generalist algorithm for cellular segmentation", Nature
Methods 2021, methods section; parameter names as in the checkpoints cyto, cyto2, cyto3, nuclei of the cellpose package 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cellkit.errors import UserError
from cellkit.machine import arithmetic
from cellkit.models import weights

BACKEND = "cellpose_unet"  # whose checkpoints hold this network
WIDTHS = (32, 64, 128, 256)
DIAM_MEAN_PX = 30.0


def _block(inputs: int, outputs: int, size: int, relu: bool = True) -> nn.Sequential:
    """Batch norm, ReLU, convolution: the pre-activation order of the published network."""
    layers: list[nn.Module] = [nn.BatchNorm2d(inputs, eps=1e-5, momentum=0.05)]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Conv2d(inputs, outputs, size, padding=size // 2))
    return nn.Sequential(*layers)


class _Down(nn.Module):
    """Two residual pairs of 3 x 3 convolutions."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Sequential()
        for index in range(4):
            self.conv.add_module(f"conv_{index}", _block(inputs if index == 0 else outputs, outputs, 3))
        self.proj = _block(inputs, outputs, 1, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(x) + self.conv[1](self.conv[0](x))
        return x + self.conv[3](self.conv[2](x))


class _Styled(nn.Module):
    """A convolution whose input is shifted, channel by channel, by the image's style."""

    def __init__(self, channels: int, style: int):
        super().__init__()
        self.conv = _block(channels, channels, 3)
        self.full = nn.Linear(style, channels)

    def forward(self, style: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x + self.full(style)[:, :, None, None])


class _Up(nn.Module):
    """Two residual pairs; the skip connection is added after the first convolution."""

    def __init__(self, inputs: int, outputs: int, style: int):
        super().__init__()
        self.conv = nn.Sequential()
        self.conv.add_module("conv_0", _block(inputs, outputs, 3))
        for index in (1, 2, 3):
            self.conv.add_module(f"conv_{index}", _Styled(outputs, style))
        self.proj = _block(inputs, outputs, 1, relu=False)

    def forward(self, x: torch.Tensor, skip: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Map features as large as the skip connection, or half as high and wide: these are doubled on the way.

        The published network doubles first. What is done to each pixel by itself comes out the same before and after.
        """
        if x.shape[2:] == skip.shape[2:]:
            first, x = self.conv[0](x), self.proj(x)
        else:
            norm, relu, convolution = self.conv[0]
            first = doubled_convolution(relu(norm(x)), convolution)
            x = nn.functional.interpolate(self.proj(x), scale_factor=2, mode="nearest")
        x = x + self.conv[1](style, first + skip)
        return x + self.conv[3](style, self.conv[2](style, x))


def doubled_convolution(x: torch.Tensor, convolution: nn.Conv2d) -> torch.Tensor:
    """Return the 3 x 3 convolution of `x` with every pixel doubled in both directions, at half the time.

    Three neighbours in the doubled picture are but two pixels of `x`: one alone, and one twice. So each of the four results
    at a pixel is a convolution with 2 x 2 weights, in which those of the pixel met twice are summed.

    Parameters
    ----------
    x : (B, C, H, W)
    convolution : torch.nn.Conv2d
        3 x 3, padded by 1.

    Returns
    -------
    (B, outputs, 2 H, 2 W)
    """
    sums = convolution.weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # result, pixel, weight
    weights = torch.einsum("pak,qbl,oikl->pqoiab", sums, sums, convolution.weight).flatten(0, 2)
    return _Woven.apply(nn.functional.conv2d(x, weights, convolution.bias.repeat(4), padding=1))


class _Woven(torch.autograd.Function):
    """Four pictures, (B, 4 C, H + 1, W + 1), put together to one of every second pixel each, (B, C, 2 H, 2 W)."""

    @staticmethod
    def forward(ctx: Any, parts: torch.Tensor) -> torch.Tensor:
        shape = (len(parts), parts.shape[1] // 4, 2 * parts.shape[2] - 2, 2 * parts.shape[3] - 2)
        ctx.order = order_in_memory(parts)
        whole = torch.empty(shape, dtype=parts.dtype, device=parts.device, memory_format=ctx.order)
        for pixels, part in _Woven.places(shape):
            whole[pixels] = parts[part]
        return whole

    @staticmethod
    def backward(ctx: Any, whole: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = whole.shape
        shape = (batch, 4 * channels, height // 2 + 1, width // 2 + 1)
        parts = torch.empty(shape, dtype=whole.dtype, device=whole.device, memory_format=ctx.order).zero_()
        for pixels, part in _Woven.places(whole.shape):
            parts[part] = whole[pixels]
        return parts

    @staticmethod
    def places(shape: Sequence[int]) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """Yield where each of the four lies in the whole, of that shape, and what of the parts lies there."""
        _, channels, height, width = shape
        for k, (y, x) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            rows, columns = slice(y, y + height // 2), slice(x, x + width // 2)
            part = (slice(None), slice(k * channels, (k + 1) * channels), rows, columns)
            yield (slice(None), slice(None), slice(y, None, 2), slice(x, None, 2)), part


def order_in_memory(x: torch.Tensor) -> torch.memory_format:
    """Return whether the channels of a pixel lie side by side, or the pixels of a channel."""
    plain = x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if plain else torch.channels_last


class _DownPath(nn.Module):
    def __init__(self, channels: int, widths: tuple[int, ...]):
        super().__init__()
        self.down = nn.Sequential()
        for index, (inputs, outputs) in enumerate(zip((channels, *widths[:-1]), widths, strict=True)):
            self.down.add_module(f"res_down_{index}", _Down(inputs, outputs))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for index, level in enumerate(self.down):
            x = level(nn.functional.max_pool2d(x, 2) if index else x)
            features.append(x)
        return features


class _UpPath(nn.Module):
    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        self.up = nn.Sequential()
        for index, (inputs, outputs) in enumerate(zip((*widths[1:], widths[-1]), widths, strict=True)):
            self.up.add_module(f"res_up_{index}", _Up(inputs, outputs, widths[-1]))

    def forward(self, style: torch.Tensor, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the decoder's features, finest first."""
        levels = [self.up[-1](features[-1], features[-1], style)]
        for level, skip in zip(reversed(self.up[:-1]), reversed(features[:-1]), strict=True):
            levels.append(level(levels[-1], skip, style))
        return levels[::-1]


class CellposeUNet(nn.Module):
    """Two channels in (cytoplasm, nuclei), three maps out (flow y, flow x, cell probability logit).

    Parameters
    ----------
    channels : int
        Input channels: 2.
    widths : sequence of int
        Channels at strides 1, 2, 4 and 8. Those of the published checkpoints are the default: 6.6 million parameters.

    Attributes
    ----------
    arithmetic : cellkit.machine.Arithmetic
        What it is computed in.

    Notes
    -----
    Height and width of the input are multiples of 8. ``diam_mean`` and ``diam_labels`` are the cell diameter in px the
    weights expect, and the mean diameter of the labels they were trained on.
    """

    def __init__(self, channels: int = 2, widths: Sequence[int] = WIDTHS):
        super().__init__()
        self.widths, self.arithmetic = tuple(widths), arithmetic()
        self.downsample = _DownPath(channels, self.widths)
        self.upsample = _UpPath(self.widths)
        self.output = _block(self.widths[0], 3, 1)
        self.diam_mean = nn.Parameter(torch.tensor([DIAM_MEAN_PX]), requires_grad=False)
        self.diam_labels = nn.Parameter(torch.tensor([DIAM_MEAN_PX]), requires_grad=False)
        self.frozen: list[nn.Module] = []
        self.fixed_norms = False

    def freeze(self, levels: int, fixed_norms: bool = False) -> None:
        """Keep the first levels as they are: the encoder's from fine to coarse, then the decoder's from coarse to fine.

        They stay in evaluation mode and have no gradients, so that a training step keeps nothing of them for the way back.

        Parameters
        ----------
        levels : int
            0 = none, 4 = the encoder, 7 = all but the last level and the output.
        fixed_norms : bool
            Keep the means and variances that batch norm divides by, everywhere; its scale and shift are trained.
        """
        self.fixed_norms = fixed_norms
        self.frozen = [*self.downsample.down, *reversed(self.upsample.up)][:levels]
        for level in self.frozen:
            level.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> CellposeUNet:
        """Set training mode; frozen levels, and batch norm that is fixed, stay in evaluation mode."""
        super().train(mode)
        norms = [one for one in self.modules() if isinstance(one, nn.BatchNorm2d)] if self.fixed_norms else []
        for level in (*self.frozen, *norms):
            level.eval()
        return self

    @property
    def config(self) -> dict[str, list[int]]:
        """What a card has to say of the network: its widths, where they are not the published ones."""
        return {} if self.widths == WIDTHS else {"widths": list(self.widths)}

    def features(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return encoder features (`widths` channels at strides 1, 2, 4, 8) and decoder features (likewise)."""
        down = self.downsample(x)
        return down, self.upsample(_style(down[-1]).to(down[-1].dtype), down)

    def style(self, x: torch.Tensor) -> torch.Tensor:
        """Return the style of each image of (B, 2, H, W): the mean of its deepest features, of length 1; (B, d) float32."""
        return _style(self.downsample(x)[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, 2, H, W) float to (B, 3, H, W)."""
        return self.output(self.features(x)[1][0])


def _style(deepest: torch.Tensor) -> torch.Tensor:
    style = deepest.float().mean(dim=(2, 3))
    return style / style.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)


def load_network(checkpoint: str | Path, precision: str | None = None) -> tuple[CellposeUNet, dict[str, Any]]:
    """Return the network in evaluation mode and the config of its card ({} for a published checkpoint).

    The widths are those of the card, without a card those of the tensors.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16"}, optional
        See `cellkit.machine.arithmetic`; None = as the card says, else auto.

    Raises
    ------
    UserError
        The checkpoint is of another network, its tensors are not as wide as the card says, or its cells have no width.
    """
    checkpoint = Path(checkpoint)
    config: dict[str, Any] = {}
    if checkpoint.suffix == ".safetensors":
        config = weights.card_for(checkpoint, BACKEND).config
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in weights.load_tensors(checkpoint).items()}
    if "W2" in tensors or any(k.startswith("encoder.") for k in tensors):
        raise UserError(f"{checkpoint} is a Cellpose-SAM checkpoint", "open it with backend: cellpose_sam")
    widths = widths_of(tensors) or WIDTHS
    told = config.get("widths", list(WIDTHS)) if config else list(widths)
    if told != list(widths):
        raise UserError(
            f"the tensors of {checkpoint} are {list(widths)} channels wide, its card says {told}",
            "copy the .json that was written with it, or train again",
        )
    network = CellposeUNet(widths=widths)
    expected = network.state_dict()
    missing = [k for k in expected if k not in tensors and not k.startswith("diam_")]
    if not missing and "diam_mean" not in tensors:
        raise UserError(
            f"{checkpoint} does not say to which diameter its cells were scaled, as those of Cellpose 1",
            "take it in under its name: cellkit fetch cyto --from FILE; or cyto2, or nuclei",
        )
    wrong = [k for k in expected if k in tensors and not fits(k, tensors[k], expected[k])]
    if missing or wrong:
        raise UserError(
            f"{checkpoint} is no two-channel Cellpose U-Net ({len(missing)} tensors missing, {len(wrong)} of another size)",
            "give a checkpoint of Cellpose 1 to 3 or one that 03_finetune_cellpose wrote",
        )
    for name in (k for k in ("diam_mean", "diam_labels") if k in tensors and not tensors[k].item() > 0):
        raise UserError(
            f"{checkpoint} says that cells are {tensors[name].item():g} px wide ({name}), wanted is more than 0",
            "take a checkpoint as its training wrote it",
        )
    network.load_state_dict({k: tensors.get(k, v).reshape(v.shape) for k, v in expected.items()})
    return placed(network, precision or config.get("precision", "auto")).eval(), config


def widths_of(tensors: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """Return the channels at strides 1, 2, 4 and 8 of a U-Net, as its tensors have them; () where they are of no such network.

    Examples
    --------
    >>> widths_of(CellposeUNet(widths=(4, 8, 12, 16)).state_dict()), widths_of({})
    ((4, 8, 12, 16), ())
    """
    names = [f"downsample.down.res_down_{level}.proj.1.weight" for level in range(len(WIDTHS))]
    return tuple(len(tensors[name]) for name in names) if all(name in tensors for name in names) else ()


def fits(name: str, tensor: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Tell whether a tensor has the shape that is wanted; a diameter may be a bare number."""
    return tensor.shape == wanted.shape or (name.startswith("diam_") and tensor.numel() == 1)


def placed(network: CellposeUNet, precision: str) -> CellposeUNet:
    """Return the network where, and in the order of memory in which, it is computed; in that precision from now on."""
    network.arithmetic = arithmetic(precision)
    return network.arithmetic.placed(network)


def placed_to_train(network: CellposeUNet) -> CellposeUNet:
    """Return the network with its weights in the order of memory that a training step is fastest in.

    Measured on an AVX2 processor in float32, one thread: where the pixels of a channel lie side by side, the way back takes 0.8
    of the time of the other order, which is slow in the gradient of the weights; the way forward takes 1.2 of it, the step 0.92.
    """
    on, capability = network.arithmetic, torch.backends.cpu.get_cpu_capability()
    if on.device.type == "cpu" and on.dtype == torch.float32 and capability == "AVX2":
        return network.to(memory_format=torch.contiguous_format)
    return network


def load_start(
    base: str | Path, seed: int = 0, widths: Sequence[int] = WIDTHS, precision: str = "auto"
) -> CellposeUNet:
    """Return the network to start from: a checkpoint, or "scratch", random numbers from `seed` in a network of `widths`."""
    from cellkit.models.training import random_state_kept

    if str(base) == "scratch":
        with random_state_kept():
            torch.manual_seed(seed)
            return placed_to_train(placed(CellposeUNet(widths=widths), precision))
    return placed_to_train(load_network(base, precision)[0])


def cell_px_of(base: str | Path) -> float:
    """Return how wide the cells are at the network scale of weights (px): 30 where there is no such file, as of "scratch"."""
    return float(load_network(base)[0].diam_mean.item()) if Path(base).is_file() else DIAM_MEAN_PX
