"""Backends: modules with two functions, ``train`` and ``load``, found by name."""

from __future__ import annotations

import importlib
import os
import sys
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
    use_granted_processors()
    return module


def use_granted_processors() -> None:
    """Let torch use no more threads than processors are granted: a container may grant fewer than the machine has.

    OMP_NUM_THREADS, where it is set, is left alone.
    """
    torch = sys.modules.get("torch")
    if torch is None or "OMP_NUM_THREADS" in os.environ:
        return
    from joblib import cpu_count

    if torch.get_num_threads() > cpu_count():
        torch.set_num_threads(cpu_count())
