"""Backends: modules with two functions, ``train`` and ``load``, found by name."""

from __future__ import annotations

import importlib
from types import ModuleType

from cellkit.errors import UserError, nearest

BACKENDS = {
    "threshold": "scikit-image",
    "cellpose_unet": "torch cellpose",
    "maskrcnn_torchvision": "torch torchvision",
}


def get_backend(name: str) -> ModuleType:
    """Return the backend module called `name`.

    Raises
    ------
    UserError
        An unknown name, with the choices; or a missing package, with the line that installs it.
    """
    if name not in BACKENDS:
        raise UserError(f"no backend '{name}'{nearest(name, BACKENDS)}", f"choose from {', '.join(BACKENDS)}")
    try:
        module = importlib.import_module(f"cellkit.backends.{name}")
        for package in BACKENDS[name].split():
            importlib.import_module({"scikit-image": "skimage"}.get(package, package))
    except ModuleNotFoundError as error:
        raise UserError(
            f"backend '{name}' needs the package '{error.name}'", f"pip install {BACKENDS[name]}"
        ) from error
    return module
