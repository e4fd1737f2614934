"""The formats in which a model leaves, and what each is for."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cellkit.errors import UserError
from cellkit.export import FORMATS, texts
from cellkit.export.network import exported, title_of_model
from cellkit.files import write_text
from cellkit.predict.model import AUTO, Model

PUBLISHED = ("bioimageio", "huggingface")  # with a licence; of these the first names authors, too


def export_model(
    model: Model, kind: str, out: str | Path, licence: str | None = None, authors: Sequence[str] = ()
) -> list[str]:
    """Write a model in a format of `FORMATS`; return what is to be said of it, line by line.

    Beside a bare network (onnx, torchscript, torch-export) lies a page of the same name that says how its maps become masks.

    Parameters
    ----------
    licence : str, optional
        By its SPDX name; default: the one that the model's card begins with.
    authors : sequence of str
        Names, for the description of a bioimage.io package; refused elsewhere, as a licence is where none goes along.

    Raises
    ------
    UserError
        The model cannot leave in that format, `out` is not called as it has to be, or would take the place of anything but an
        earlier export; or as the writer of the format.
    """
    out, suffix = Path(out), FORMATS[kind]
    for given, name, kinds in ((licence, "licence", PUBLISHED), (authors, "author", PUBLISHED[:1])):
        if given and kind not in kinds:
            raise UserError(f"{kind} has no place for --{name}", f"leave it out, or use --format {' or '.join(kinds)}")
    if model.config.get("diameter_px") == AUTO:
        raise UserError(
            "diameter_px: auto is found for the images at hand, and a model that leaves has none", "give it in px"
        )
    if suffix and out.suffix.lower() != suffix:
        raise UserError(f"{out} does not end with {suffix}", f"name the file so: -o {out.stem or 'model'}{suffix}")
    own = (Path(model.name), model.checkpoint, model.cell_classes)
    if out.exists() and any(path and path.exists() and path.samefile(out) for path in own):
        raise UserError(f"{out} is the model that is to be exported", "name another file")
    if suffix:
        _refuse_other_file(kind, out)
    if kind == "huggingface":
        from cellkit.export.huggingface import write_folder

        return [f"{out}: {title_of_model(model.name)} as a folder for the Hub", *write_folder(model, out, licence)]
    network = exported(model)
    if kind == "bioimageio":
        from cellkit.export.bioimageio import write_package

        return [f"{out}: {network.title} as a package of bioimage.io", *write_package(network, out, licence, authors)]
    about, page = texts.about(network), out.with_suffix(".md")
    if page.exists() and not texts.is_page(page):
        raise UserError(f"{page}, where the page of the export goes, is another text", "name the export otherwise")
    if page.exists() and not texts.is_page(page, out.name):
        raise UserError(
            f"{page}, where the page of the export goes, is that of another export", "name this one otherwise"
        )
    _writer(kind)(network.network, out, about)
    write_text(page, texts.page(network, about, out.name))
    return [f"{out}: {network.title}, planes (B, 2, H, W) -> maps (B, 3, H, W)", f"{page}: how maps become masks"]


def _refuse_other_file(kind: str, out: Path) -> None:
    """Refuse to write over a file that is no export: a package says in itself that it is one, a bare network on its page."""
    if not out.exists():
        return
    if out.is_dir():
        raise UserError(f"{out} is a folder", "name a file")
    page = out.with_suffix(".md")
    ours = _is_package(out) if kind == "bioimageio" else page.is_file() and texts.is_page(page, out.name)
    if not ours:
        raise UserError(f"{out} is there and no earlier export", "name a file that does not exist, or move it away")


def _is_package(path: Path) -> bool:
    """Tell whether a file is a ZIP that holds the card which a package of cellkit has."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "cellkit.json" in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def _writer(kind: str) -> Callable[..., Path]:
    from cellkit.export.onnx_graph import write_onnx
    from cellkit.export.torch_files import write_program, write_torchscript

    return {"onnx": write_onnx, "torchscript": write_torchscript, "torch-export": write_program}[kind]
