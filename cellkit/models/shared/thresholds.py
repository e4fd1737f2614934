"""The thresholds that flows are read with: their bounds, those of Cellpose, and a stricter reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from cellkit.settings import Number

LARGEST_LOGIT = 12
STRICTER = 1.0  # logit: a step of the grid that is searched
AS_CELLPOSE = {"flow_threshold": 0.4, "cellprob_threshold": 0.0, "min_area_px": 15}  # its defaults
FlowError = Annotated[Number, Field(ge=0, le=100)]
Logit = Annotated[Number, Field(ge=-LARGEST_LOGIT, le=LARGEST_LOGIT)]


def stricter(settings: Any, used: Mapping[str, Any]) -> Any:
    """Return settings with a threshold that fewer pixels pass.

    What cells this changes are in doubt: `cellkit.labelling.planner` asks which.

    Parameters
    ----------
    used : mapping
        What the model is read with by these settings, `Segmenter.settings`.
    """
    limit = min(used["cellprob_threshold"] + STRICTER, LARGEST_LOGIT)
    return settings.model_copy(update={"cellprob_threshold": limit})
