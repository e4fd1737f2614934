"""Backends: one module each, found by name; everything about a backend is in its module.

It may import `cells`, `formats`, `scores` and the ground.

A module of this folder that states a ``TITLE`` is a backend; one without is a helper. Besides ``TITLE`` it has

- ``REQUIRES``: packages it needs, by the names they are imported by; none unless stated,
- ``INSTALL``: the line that installs them, where pip alone does not,
- ``Settings``: what may change from prediction to prediction, a class of `cellkit.settings.Frozen`,
- ``TrainSettings``: what a training may be told, likewise,
- ``train(train, val, config, out)``: labelled images -> path of a checkpoint,
- ``load(checkpoint, settings=None)``: path -> a `Segmenter`, a function from a stream of images to the cells in each; decorated
  with `cellkit.finding.opens_again`, so that other processes can open the model too,
- ``BYTES_PER_PX``: memory that finding the cells of an image takes, per pixel; where the module states ``CELL_PX``, the
  diameter to which cells are scaled, per pixel at that scale.

It may also have ``ceiling(train, config)``, ``calibrate(train, config, to)``, ``estimate_diameter(checkpoint, images,
settings)``, ``style(checkpoint, images, settings)``, ``stricter(settings, used)``, ``check(config)``, ``cost(config, image,
truth)``, ``seen_px(shape, config, cells)``, the pixels that the network sees of an image where that is not the image at its
scale, ``KEPT_BYTES``, of memory that each of them of training images keeps, ``steps_of(config, images)``, the steps of a training
where they depend on the number of images, ``course_of(config, images)``, what else it does (`shared.cost.Course`),
``live(checkpoint, settings)``, the model in two halves, of which the second alone is done again when a threshold is moved
(`shared.live`), and
``published(tensors)``, whether it reads a checkpoint without a card; ask for those with `if_able`. One for a GPU may name in
``LIGHTER`` the backend that does without. One that works without training states ``NEEDS_CHECKPOINT = False``. The module
imports torch and the like within its functions.

Files of one's own may lie in the folders of the environment variable CELLKIT_MODULES, or in an installed package, as which they
are named in full, ``package.module``; see `cellkit.modules`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from pkgutil import extend_path
from types import ModuleType
from typing import Any

from cellkit.errors import UserError
from cellkit.machine import keep_freed_memory
from cellkit.modules import load, names_of, none_called, optional, path_of

__path__ = extend_path(__path__, __name__)  # files of one's own, see `cellkit.modules`
INSTALLED_AS = {"skimage": "scikit-image", "cv2": "opencv-python-headless"}  # where pip has another name
STATED = ("TITLE", "REQUIRES", "INSTALL", "NEEDS_CHECKPOINT")  # read from a module without importing it
TEACHER = "teacher"  # the model whose proposals taught the others
FUSED = "fused"  # several models of a run made one, see `evaluate.fuse`
MODEL_NAMES = {  # in the order of every table; one without a name of its own is called as its backend is
    "threshold": "",
    "teacher": "Teacher",
    "cellpose_base": "Cellpose, base",
    "cellpose_tuned": "Cellpose, tuned",
    "cellpose_classes": "Cellpose, with classes",
    "maskrcnn": "Mask R-CNN",
    FUSED: "Fused",
}


def backend_names() -> list[str]:
    """Return the names of all backends, sorted."""
    return list(names_of("backend"))


def is_backend(name: Any) -> bool:
    """Tell whether there is a backend called so: one that is listed, or an installed one named in full, ``package.module``.

    Raises
    ------
    UserError
        The package that is named stops while it is imported.

    Examples
    --------
    >>> is_backend("threshold"), is_backend("no.such"), is_backend(5), is_backend(None)
    (True, False, False, False)
    """
    return isinstance(name, str) and bool(name) and path_of("backend", name) is not None


def title_of(name: str) -> str:
    """Return how a backend is called in print; nothing is imported."""
    return _about(name)["TITLE"]


def needs_checkpoint(name: str) -> bool:
    """Tell whether a backend has to be trained; one that states ``NEEDS_CHECKPOINT = False`` loads None as well."""
    return _about(name).get("NEEDS_CHECKPOINT", True)


def get_backend(name: str) -> ModuleType:
    """Return the backend module called `name`, when the packages it needs are there.

    Raises
    ------
    UserError
        An unknown name, with the choices; or a missing package, with the line that installs it.
    """
    check_backend(name)
    try:
        module = backend_module(name)
        for package in _about(name)["REQUIRES"]:
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise _lacks(name, error.name) from error
    use_granted_processors()
    keep_freed_memory()
    return module


def backend_module(name: str) -> ModuleType:
    """Return the module of a backend, for its settings: the packages it needs are not imported."""
    _about(name)
    return load("backend", name)


def check_backend(name: str) -> None:
    """Refuse what `get_backend` would, before anything is imported.

    Raises
    ------
    UserError
        An unknown name, or a package that is missing.
    """
    if missing := [package for package in _about(name)["REQUIRES"] if importlib.util.find_spec(package) is None]:
        raise _lacks(name, missing[0])


def required_by(name: str) -> tuple[str, ...]:
    """Return the packages that a backend needs, by the names they are imported by; nothing is imported.

    Raises
    ------
    UserError
        An unknown name.
    """
    return tuple(_about(name)["REQUIRES"])


def if_able(backend: ModuleType, ability: str, *arguments: Any) -> Any:
    """Return what an optional function of a backend answers; None where the backend has no such function."""
    function = optional(backend, ability)
    return None if function is None else function(*arguments)


def _about(name: str) -> dict[str, Any]:
    """Return what a backend's module states of itself, which is read and not imported."""
    path = path_of("backend", name)
    if path is None:
        raise none_called("backend", name)
    return {"REQUIRES": (), **_stated(path, path.stat().st_mtime_ns)}


@lru_cache
def _stated(path: Path, changed_ns: int) -> dict[str, Any]:
    """Return the constants in `STATED` of a module.

    Raises
    ------
    UserError
        One of them has to be computed, or the file is no Python.
    """
    found = {}
    try:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if isinstance(targets[0], ast.Name) and targets[0].id in STATED:
                found[targets[0].id] = ast.literal_eval(node.value)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a backend: {error}", "TITLE and REQUIRES are plain texts") from error
    return found


def install_line(name: str) -> str:
    """Return the line that installs what a backend needs."""
    about = _about(name)
    if "INSTALL" in about:
        return about["INSTALL"]
    return f"pip install {' '.join(INSTALLED_AS.get(package, package) for package in about['REQUIRES'])}"


def _lacks(name: str, package: str | None) -> UserError:
    return UserError(f"backend '{name}' needs the package '{INSTALLED_AS.get(package, package)}'", install_line(name))


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


def model_name(name: str) -> str:
    """Return how a predictions file is called in print: a name of the table, or the title of the backend called so.

    Names that are not known stay as they are.

    Examples
    --------
    >>> model_name("cellpose_tuned"), model_name("my_unet")
    ('Cellpose, tuned', 'my_unet')
    """

    return MODEL_NAMES.get(name) or (title_of(name) if is_backend(name) else name)


def order_models(names: Iterable[str]) -> list[str]:
    """Return the names in the order of every table: the floor, the teacher, Cellpose (before, after, with classes), the others.

    Examples
    --------
    >>> order_models(["unet", "maskrcnn", "threshold"])
    ['threshold', 'maskrcnn', 'unet']
    """
    names, known = set(names), list(MODEL_NAMES)
    return [name for name in known if name in names] + sorted(names - set(known))
