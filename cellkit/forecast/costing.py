"""Who says what a section's work costs: its backend; of a recipe the module that its notebook names, or its backend."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from cellkit.config.recipes import costing_module
from cellkit.config.sections import Section
from cellkit.models import backend_module
from cellkit.models.shared.cost import Course
from cellkit.models.shared.inputs import CELL_PX
from cellkit.modules import optional


def costing_name(section: Section) -> str:
    """Return the name of the backend or module that says what a section costs; "" where none does."""
    return section.costs or getattr(section, "backend", "")


def costing_of(section: Section) -> ModuleType | None:
    """Return the module that says what a section costs, see `cellkit.models`; None where none does."""
    if section.costs:
        return costing_module(section.costs)
    backend = getattr(section, "backend", "")
    return backend_module(backend) if backend else None


def told(section: Section, name: str, default: Any = None) -> Any:
    """Return what that module says under a name, else the default."""
    module = costing_of(section)
    found = None if module is None else optional(module, name)
    return default if found is None else found


def course_of(section: Section, images: int) -> Course:
    """Return what a training on so many images does beside its steps."""
    own = told(section, "course_of")
    return own(section, images) if own else Course()


def steps_of(section: Section, images: int) -> int:
    """Return how many steps a training on so many images takes."""
    own = told(section, "steps_of")
    return own(section, images) if own else section.steps


def scale_px(section: Section) -> float | None:
    """Return the diameter (px) that cells are brought to before they are looked for; None where images stay as they are."""
    module = costing_of(section)
    return getattr(module, "CELL_PX", None) if module is not None else CELL_PX
