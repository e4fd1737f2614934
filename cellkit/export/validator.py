"""The validator of bioimage.io, which its publishers run on every package that is handed in."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path

from cellkit.errors import UserError
from cellkit.export.onnx_graph import INSTALL

PACKAGES = ("bioimageio.spec", "bioimageio.core")


def check_package(description: Path) -> str:
    """Check a package's description and files, and run all its weights on its test tensors; return who says that it is right.

    Parameters
    ----------
    description : Path
        ``rdf.yaml``, in the folder of all other files.

    Raises
    ------
    UserError
        The validator is not installed, or refuses.
    """
    require_validator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # files it leaves open, and torch's word on TorchScript
        from bioimageio.core import test_model
        from loguru import logger

        logger.disable("bioimageio")
        summary = test_model(description)
        logger.enable("bioimageio")
    if summary.status != "passed":  # "valid-format" is valid and runs wrong
        faults = [f"{detail.name}: {error.msg}" for detail in summary.details for error in detail.errors]
        raise UserError(f"the validator refuses the package: {faults[0] if faults else summary.status}", INSTALL)
    return ", ".join(f"{package} {version(package)}" for package in PACKAGES)


def require_validator() -> None:
    """Refuse to go on without the packages of the extra.

    Raises
    ------
    UserError
        One of them is missing.
    """
    from importlib.util import find_spec

    for package in ("bioimageio", *PACKAGES, "onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise UserError(f"a bioimage.io package is checked before it leaves, and '{package}' is missing", INSTALL)
