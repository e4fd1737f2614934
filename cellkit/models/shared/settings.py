"""Fields that the settings of several backends have in common, with their bounds and units."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cellkit.settings import Frozen, Number

Diameter = Annotated[Number, Field(ge=2, le=2000)]
Area = Annotated[int, Field(ge=0, le=10**9)]
Share = Annotated[Number, Field(ge=0, le=1)]
Channels = Literal["both", "nuclei", "cytoplasm"]
SMALLEST = "smaller objects are dropped (px)"


class Schedule(Frozen):
    """How long and how fast a network is trained, see `cellkit.models.training.Plan`; and on which crops and images."""

    seed: int = Field(0, ge=0, lt=2**63, description="random seed; the top-level seed unless set here")
    steps: int = Field(300, ge=1, description="most optimiser steps")
    batch_size: int = Field(8, ge=1, description="crops per step")
    crop_px: int = Field(160, ge=32, multiple_of=8, description="height and width of a crop (px)")
    learning_rate: Number = Field(1e-3, gt=0, le=1, description="largest learning rate")
    weight_decay: Number = Field(1e-4, ge=0, le=1, description="AdamW weight decay")
    warmup_steps: int = Field(20, ge=0, description="steps over which the learning rate rises from 0")
    eval_every: int = Field(50, ge=1, description="steps between two scores on validation images")
    patience: int = Field(6, ge=1, description="evaluations without a better score before training stops")
    min_area_px: Area = Field(15, description=SMALLEST)
    val_images: int = Field(0, ge=0, description="most whole images scored during training; 0 = all")
