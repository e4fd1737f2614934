"""How Cellpose-SAM is adapted: settings, and the loss of a step. The loop, the gate and the resume are those of every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from cellkit.errors import UserError
from cellkit.models.shared.contract import Schedule, Share
from cellkit.models.shared.flow_loss import FlowLoss, Prepared, Variation
from cellkit.models.shared.in_parts import InParts, Part
from cellkit.settings import Number

if TYPE_CHECKING:
    import torch

LEAST_PX = 64  # of a tile, where memory is short: two cells of usual size side by side
REMEDY = "set finetune.way: head or late, finetune.recompute: true, or use a machine with more memory"
WAYS: dict[str, dict[str, Any]] = {  # as published, see `TrainSettings`; head: no published rate, ten times that of blocks
    "head": {"learning_rate": 1e-4, "steps": 5000, "batch_size": 1, "weight_decay": 0.1},
    "late": {"learning_rate": 1e-5, "steps": 5000, "batch_size": 1, "weight_decay": 0.1},
    "lora": {
        "learning_rate": 3e-3, "steps": 300, "batch_size": 32, "weight_decay": 0.01, "stochastic_depth": 0.0,
        "warmup_steps": 90, "warmup_share": 0.3, "eval_every": 30,
    },
    "all": {"learning_rate": 1e-5, "steps": 800, "batch_size": 1, "weight_decay": 0.1, "eval_every": 100},
}  # fmt: skip
PUBLISHED = WAYS["all"] | {"way": "all", "warmup_steps": 0, "hold_share": 0.5, "stochastic_depth": 0.4}
TOO_HIGH = 10  # times the rate of the way: late blocks collapse at 50 times (peft-sam)
EPOCH = 8  # crops of an epoch of the published recipe at least


class Adaptation(Schedule):
    """What an adaptation of Cellpose-SAM may be told; what is not set follows from the way.

    Notes
    -----
    Where the numbers are from. late: blocks 9 to 11 of 12, AdamW 1e-5, at most 100 epochs of 50 crops (micro-sam and peft-sam,
    arXiv 2502.00418; between 5e-6 and 5e-5 the rate hardly matters there, at 5e-4 training collapses). lora: rank 4, dropout
    0.1, at most 3e-3 after a rise over 30 % of the steps, 300 epochs of 32 crops (CellSeg1, arXiv 2412.01410); here no dropout
    unless set, so that crops at a time and GPUs change the result by rounding alone. all, and the
    recipe published: AdamW 1e-5, decay 0.1, 100 epochs of max(8, N) crops, one at a time, the rate flat for one half
    (cellpose, paper/cpsam/train_subsets.py).
    """

    recipe: Literal["ours", "published"] = Field(
        "ours",
        description="published = as Cellpose-SAM's authors train on few images: all weights, AdamW 1e-5, 100 epochs of "
        "max(8, N) crops; steps then counts those of up to 8 images, and with N it takes N / 8 times as many",
    )
    way: Literal["head", "late", "lora", "all"] = Field(
        "late",
        description="what is trained: what follows the blocks, that and the last blocks, low-rank parts (LoRA; they are "
        "merged in the end), or all",
    )
    late_blocks: int = Field(6, ge=1, le=64, description="how many blocks are the last ones (way: late)")
    lora_rank: int = Field(4, ge=1, le=256, description="rank of the low-rank parts (way: lora)")
    lora_dropout: Share = Field(
        0.0,
        description="of what enters the low-rank parts, what is left out (way: lora; CellSeg1 takes 0.1); above 0, at_once, gpus "
        "and a shortage of memory change what is drawn, and so the result",
    )
    stochastic_depth: Share = Field(
        0.4,
        description="of the crops, those that leave out the last block, with fewer the earlier; only trained blocks",
    )
    at_once: int = Field(4, ge=1, description="crops of a batch at a time; where memory is short, fewer and fewer")
    gpus: int = Field(
        1,
        ge=1,
        le=64,
        description="GPUs that share each batch; changes a result by rounding alone (but see lora_dropout); needs accelerate",
        json_schema_extra={"hash": False, "unless": "draws_by_parts"},
    )
    recompute: bool | None = Field(
        None,
        description="compute the inside of trained blocks again on the way back: less memory, up to a third more time; null = "
        "where more than half of the blocks are gone back through",
    )
    steps: int = Field(WAYS["late"]["steps"], ge=1, description="most optimiser steps; unless set, those of the way")
    batch_size: int = Field(
        WAYS["late"]["batch_size"], ge=1, description="crops per step; unless set, those of the way"
    )
    crop_px: int = Field(
        256, ge=64, le=256, multiple_of=16, description="height and width of a crop (px); half of it is whole tokens"
    )
    learning_rate: Number = Field(
        WAYS["late"]["learning_rate"], gt=0, le=1, description="largest learning rate; unless set, that of the way"
    )
    weight_decay: Number = Field(
        WAYS["late"]["weight_decay"], ge=0, le=1, description="AdamW weight decay; unless set, that of the way"
    )
    eval_every: int = Field(250, ge=1, description="steps between two scores on validation images")
    rotate: bool = Field(True, description="turn crops by any angle; false = only flip and zoom them")
    intensities: Literal["mild", "strong"] = Field(
        "mild", description="how crops vary: gamma, gain, noise; strong = more of it, and offset, blur and inversion"
    )

    @property
    def draws_by_parts(self) -> bool:
        """Whether dropout draws for each part of a batch anew, so that parts change a result by more than rounding."""
        return self.way == "lora" and self.lora_dropout > 0

    @model_validator(mode="before")
    @classmethod
    def _of_the_way(cls, given: Any) -> Any:
        """Fill in what the way, or the published recipe, says and nobody set."""
        if not isinstance(given, Mapping):
            return given
        if given.get("recipe") == "published":
            if given.get("way", "all") != "all":
                raise ValueError(
                    f"has recipe: published, which trains all weights, and way: {given['way']}; leave one out"
                )
            return PUBLISHED | dict(given)
        way = given.get("way")
        return WAYS.get(way if isinstance(way, str) else "", {}) | dict(given)


def steps_of(config: Adaptation, images: int) -> int:
    """Return how many steps a training takes: of the published recipe more where there are more images than 8.

    Examples
    --------
    >>> steps_of(Adaptation(recipe="published"), 3), steps_of(Adaptation(recipe="published"), 16)
    (800, 1600)
    >>> steps_of(Adaptation(way="lora"), 16)
    300
    """
    if config.recipe != "published":
        return config.steps
    return round(config.steps * max(EPOCH, images) / EPOCH)


def how_adapted(config: Adaptation) -> dict[str, Any]:
    """Return what decides which weights are trained, and how, beside the plan: for the card, and to tell trainings apart."""
    of_way = {"late": ("late_blocks",), "lora": ("lora_rank", "lora_dropout")}.get(config.way, ())
    return {name: getattr(config, name) for name in ("way", *of_way, "stochastic_depth", "recipe")}


def where_parts_matter(config: Adaptation) -> tuple[int, ...]:
    """Return crops at a time and GPUs where they change the result by more than rounding: dropout draws for each part anew.

    Examples
    --------
    >>> where_parts_matter(Adaptation(way="lora")), where_parts_matter(Adaptation(way="lora", lora_dropout=0.1))
    ((), (4, 1))
    """
    return (config.at_once, config.gpus) if config.draws_by_parts else ()


def high_rate(config: Adaptation) -> tuple[str, str] | None:
    """Return problem and remedy of a learning rate far above that of the way, such as one meant for a U-Net; None of others.

    Weights that begin as random numbers may learn as fast as they are told.

    Examples
    --------
    >>> high_rate(Adaptation(learning_rate=6e-4))[0]
    'finetune.learning_rate is 0.0006, more than 10 times the 1e-05 of way: late'
    >>> high_rate(Adaptation()), high_rate(Adaptation(way="lora"))
    (None, None)
    """
    own = WAYS[config.way]["learning_rate"]
    if getattr(config, "base", "") == "scratch" or config.learning_rate <= TOO_HIGH * own:
        return None
    return (
        f"finetune.learning_rate is {config.learning_rate:g}, more than {TOO_HIGH} times the {own:g} of way: {config.way}",
        f"leave it out, so that it is {own:g}, and with it steps, batch_size and eval_every that were meant for a U-Net",
    )


def check_shape(network: torch.nn.Module, config: Adaptation) -> None:
    """Refuse a network that cannot be adapted as the settings say.

    Raises
    ------
    UserError
        It is another network, a crop is larger than what it is shown, or there are fewer blocks than late ones.
    """
    from cellkit.models.sam_network import CellposeSAM
    from cellkit.models.sam_ways import check_late

    if not isinstance(network, CellposeSAM):
        raise UserError(
            "finetune.base is Cellpose-DINO, which finds cells here and is not adapted", "set base: cpsam_v2"
        )
    if config.crop_px > network.shape.tile_px:
        raise UserError(
            f"finetune.crop_px is {config.crop_px}, the network sees squares of {network.shape.tile_px} px",
            f"set finetune.crop_px to at most {network.shape.tile_px}",
        )
    if config.way == "late":
        check_late(config.late_blocks, network.shape.depth)


def check_lora() -> None:
    """Refuse LoRA where the package that it needs is missing.

    Raises
    ------
    UserError
        With the line that installs it.
    """
    if find_spec("peft") is None:
        raise UserError("finetune.way is lora, which needs the package 'peft'", "pip install peft, or set way: late")


def loss_of(network: torch.nn.Module, items: Sequence[Prepared], config: Adaptation) -> InParts:
    """Return the loss of a training's steps; the network then trains what the way says, and no more.

    Parameters
    ----------
    network : cellkit.models.sam_network.CellposeSAM
    items : sequence of Prepared
        Three channels each.

    Raises
    ------
    UserError
        It is another network, a crop is larger than what it is shown, there are fewer blocks than late ones, or peft is
        missing.
    """
    from cellkit.models.sam_network import keep_tables
    from cellkit.models.sam_ways import dropped, forward, train_by

    check_shape(network, config)
    if config.way == "lora":
        check_lora()
    frozen = train_by(network, config.way, config.late_blocks, config.lora_rank, config.lora_dropout, config.seed)
    keep_tables(network)
    blocks = network.shape.depth
    recompute = 2 * frozen < blocks if config.recompute is None else config.recompute
    variation = Variation(config.rotate, config.intensities == "strong")

    def maps(planes: torch.Tensor, part: Part, step: int) -> torch.Tensor:
        left_out = dropped(step, config.seed, config.batch_size, blocks, config.stochastic_depth)[part.crops]
        return forward(network, planes, frozen, left_out, (part.y_px, part.x_px), recompute)

    loss_at = FlowLoss(network, items, config.batch_size, config.crop_px, config.seed, variation)
    return InParts(loss_at, config.at_once, LEAST_PX, REMEDY, maps)
