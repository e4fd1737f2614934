"""Backends: modules with two functions, ``train`` and ``load``, found by name."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
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
    check_backend(name)
    try:
        module = importlib.import_module(f"cellkit.backends.{name}")
        for package in _packages(name):
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise _lacks(name, error.name) from error
    use_granted_processors()
    return module


def check_backend(name: str, needs: Iterable[str] = ()) -> None:
    """Refuse what `get_backend` would, before anything is imported; and a backend without one of the functions in `needs`."""
    if name not in BACKENDS:
        raise UserError(f"no backend '{name}'{nearest(name, BACKENDS)}", f"choose from {', '.join(BACKENDS)}")
    if missing := [package for package in _packages(name) if importlib.util.find_spec(package) is None]:
        raise _lacks(name, missing[0])
    if lacks := [function for function in needs if function not in _functions(name)]:
        able = [other for other in BACKENDS if set(needs) <= _functions(other)]
        raise UserError(f"backend '{name}' has no {' and no '.join(lacks)}", f"choose from {', '.join(able)}")


def _packages(name: str) -> list[str]:
    return [{"scikit-image": "skimage"}.get(package, package) for package in BACKENDS[name].split()]


def _lacks(name: str, package: str | None) -> UserError:
    return UserError(f"backend '{name}' needs the package '{package}'", f"pip install {BACKENDS[name]}")


def _functions(name: str) -> set[str]:
    """Return the names of the functions of a backend's module, which is read and not imported."""
    tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


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
