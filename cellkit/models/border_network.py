"""A U-Net on an encoder of any name, of segmentation-models-pytorch: as many classes of pixels as are asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cellkit.errors import UserError, nearest
from cellkit.machine import arithmetic
from cellkit.models import weights
from cellkit.models.shared.inputs import CHANNELS
from cellkit.models.training import random_state_kept
from cellkit.models.unet_network import placed, placed_to_train

TIMM = "tu-"  # before the name of an encoder of the package timm
SHAPE = ("encoder", "encoder_depth", "decoder_width", "channels", "kinds")  # what a card says of the network


class BorderUNet(nn.Module):
    """Planes of an image in, a logit of each class of pixels out.

    Parameters
    ----------
    encoder : str
        A name that segmentation-models-pytorch knows; one of timm with "tu-" before it.
    encoder_weights : str or None
        What the encoder has learned from; None = nothing, and nothing is fetched.
    encoder_depth : int
        Times that it halves height and width.
    decoder_width : int
        Channels of the decoder at full resolution; twice as many at each level below.
    channels : str
        What the network is shown, see `cellkit.models.shared.inputs.CHANNELS`.
    kinds : int
        Classes of pixels.

    Attributes
    ----------
    arithmetic : cellkit.machine.Arithmetic
        What it is computed in.
    step_px : int
        Height and width of what it is shown are multiples of it.
    """

    def __init__(
        self,
        encoder: str,
        encoder_weights: str | None = None,
        encoder_depth: int = 5,
        decoder_width: int = 16,
        channels: str = "both",
        kinds: int = 3,
    ):
        from segmentation_models_pytorch import Unet

        super().__init__()
        self.arithmetic, self.step_px = arithmetic(), 2**encoder_depth
        self.unet = Unet(
            encoder,
            encoder_depth=encoder_depth,
            encoder_weights=bool(encoder_weights) or None if encoder.startswith(TIMM) else encoder_weights,
            decoder_channels=[decoder_width * 2**level for level in reversed(range(encoder_depth))],
            in_channels=len(CHANNELS[channels]),
            classes=kinds,
        )

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) float to logits (B, kinds, H, W)."""
        return self.unet(planes)


class Together(nn.Module):
    """Several networks of one shape: planes in, the logarithm of the mean of their probabilities out."""

    def __init__(self, networks: Sequence[BorderUNet]):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.arithmetic, self.step_px = networks[0].arithmetic, networks[0].step_px

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) float to (B, kinds, H, W)."""
        each = [torch.log_softmax(network(planes).float(), dim=1) for network in self.networks]
        return torch.logsumexp(torch.stack(each), dim=0) - math.log(len(each))


def check_encoder(encoder: str, encoder_weights: str | None) -> None:
    """Refuse an encoder, or weights of it, that segmentation-models-pytorch does not know; nothing is fetched.

    Raises
    ------
    UserError
        With the names that are known.
    """
    from segmentation_models_pytorch.encoders import encoders

    if encoder.startswith(TIMM):
        import timm

        name = encoder.removeprefix(TIMM)
        if not timm.is_model(name):
            near = nearest(name, timm.list_models())
            raise UserError(f"the package timm has no encoder '{name}'{near}", "choose one of timm.list_models()")
        if encoder_weights and not timm.models.is_model_pretrained(name):
            raise UserError(f"timm has no weights of '{name}'", "set encoder_weights: null, or choose another encoder")
        return
    if encoder not in encoders:
        known = ", ".join(("efficientnet-b3", "efficientnet-b0", "resnet18", "resnet34", "mobilenet_v2"))
        raise UserError(
            f"segmentation-models-pytorch has no encoder '{encoder}'{nearest(encoder, list(encoders))}",
            f"choose one that it lists, such as {known}, or one of timm as {TIMM}NAME",
        )
    known = sorted(encoders[encoder]["pretrained_settings"])
    if encoder_weights and encoder_weights not in known:
        raise UserError(
            f"the encoder '{encoder}' has no weights '{encoder_weights}'{nearest(encoder_weights, known)}",
            f"choose of {', '.join(known) or 'none'}, or null to train from scratch",
        )


def start_network(encoder_weights: str | None, seed: int, precision: str, shape: Mapping[str, Any]) -> BorderUNet:
    """Return the network that a training starts from: random numbers from `seed`, the encoder as its weights have it.

    Parameters
    ----------
    shape : mapping
        Of the names in `SHAPE`.

    Raises
    ------
    UserError
        The encoder is not known, or its weights cannot be had; a training never starts from scratch instead.
    """
    check_encoder(shape["encoder"], encoder_weights)
    with random_state_kept():
        torch.manual_seed(seed)
        network = _built(encoder_weights, shape)
    return placed_to_train(placed(network, precision))


def join_checkpoints(checkpoints: Sequence[Path], to: Path, backend: str) -> Path:
    """Write one checkpoint of several networks that were trained alike, on other images: the mean of their answers is its own.

    Raises
    ------
    UserError
        They differ in how they are built or read.
    """
    cards = [weights.card_for(path, backend) for path in checkpoints]
    if any(card.config != cards[0].config or card.classes != cards[0].classes for card in cards):
        raise UserError(
            "networks that are built or read differently cannot answer together", "train them with one configuration"
        )
    tensors = {
        f"networks.{number}.{name}": tensor
        for number, path in enumerate(checkpoints)
        for name, tensor in weights.load_tensors(path).items()
    }
    config, metrics = (
        cards[0].config | {"networks": len(cards)},
        cards[0].metrics | {"steps": [card.metrics["step"] for card in cards]},
    )
    return weights.save_checkpoint(
        to, tensors, backend, classes=cards[0].classes, config=config, metrics=metrics, licence=cards[0].licence
    )


def load_network(checkpoint: Path, backend: str, precision: str | None = None) -> tuple[nn.Module, weights.Card]:
    """Return the network of a checkpoint, or several together, in evaluation mode, and its card; nothing is fetched.

    Raises
    ------
    UserError
        No such checkpoint, one of another network, or tensors that do not fit what the card says.
    """
    card = weights.card_for(checkpoint, backend)
    shape, several = {key: card.told(key, checkpoint) for key in SHAPE}, card.config.get("networks", 1)
    precision = precision or card.config.get("precision", "auto")
    networks = [placed(_built(None, shape), precision) for _ in range(several)]
    network = Together(networks) if several > 1 else networks[0]
    try:
        network.load_state_dict(weights.load_tensors(checkpoint))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"the tensors of {checkpoint} do not fit its card: {reason}", "copy both files again, or train again"
        ) from None
    return network.eval(), card


def _built(encoder_weights: str | None, shape: Mapping[str, Any]) -> BorderUNet:
    """Return a network; the package's own errors become one that says what to do.

    Raises
    ------
    UserError
        Its weights cannot be had, or the encoder cannot be built so deep.
    """
    name = shape["encoder"]
    try:
        return BorderUNet(encoder_weights=encoder_weights, **shape)
    except Exception as error:  # of the network, of the disk, of the hub's client, of the package
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        if encoder_weights:
            raise UserError(
                f"the weights '{encoder_weights}' of the encoder '{name}' cannot be had: {reason}",
                "connect to the internet once (they are kept), or set encoder_weights: null to train from scratch",
            ) from error
        raise UserError(
            f"the encoder '{name}' cannot be built at a depth of {shape['encoder_depth']}: {reason}",
            "choose another encoder, or another encoder_depth",
        ) from error
