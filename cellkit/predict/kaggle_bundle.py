"""A model as a folder that makes a submission where there is no network: weights, code, wheels, a notebook, all hashed.

A competition runs the notebook again on images nobody has seen, with what was attached to it. So everything the prediction takes
lies in the folder, and ``manifest.json`` says what each file has to be.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cellkit import __version__
from cellkit.errors import UserError, counted
from cellkit.fetch.find import of_a_run
from cellkit.files import PACKAGE, atomic_path, read_json, read_stored, sha256_each, sha256_file, write_json, write_text
from cellkit.formats.competitions import get_profile
from cellkit.log import LOG
from cellkit.manifest import finished_entries, read_manifest
from cellkit.microscope.convert import Conversion
from cellkit.models import FUSED
from cellkit.predict.bundle_texts import REMEDY, notebook, readme
from cellkit.predict.bundled_models import (
    backends_of,
    copy_files,
    copy_models,
    copy_own_modules,
    is_joined,
    open_models,
)
from cellkit.predict.joined import fuse_models, open_model
from cellkit.predict.locked_packages import (
    REQUIRED,
    WHEELS,
    copy_wheels,
    lock_file,
    packages_of,
    packages_to_predict,
    read_lock,
    version_here,
)
from cellkit.predict.model import Model, find_model

MANIFEST, MODEL, NOTEBOOK, README = "manifest.json", "model.json", "submit.ipynb", "README.md"
CODE, WEIGHTS = "code", "models"
EVALUATE = "06_evaluate_map_iou"
SHOWN = 10  # ids named of many
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # of every file in a ZIP, which then depends on its content alone


# ---- write -----------------------------------------------------------------------------------------------------------
def write_bundle(
    name: str,
    out: str | Path,
    profile: str,
    overrides: Mapping[str, Any] | None = None,
    wheels: str | Path | None = None,
    lock: str | Path | None = None,
) -> dict[str, Any]:
    """Write the bundle of a model: the same files for the same model, settings and code.

    Parameters
    ----------
    name : str
        ``RUN:NAME``, a file of models, ``RUN/folds/of_K:NAME``, or ``RUN`` alone for the model that its notebook 06
        handed in.
    out : path
        A folder, or a file that ends with ``.zip``. An earlier bundle is replaced, anything else refused.
    profile : str
        The competition.
    overrides : mapping, optional
        Settings for the prediction.
    wheels : path, optional
        Folder of wheels: those of the lock are copied. One that is not as the lock says is refused.
    lock : path, optional
        Locked packages with hashes; default ``requirements/lock.txt`` beside the package.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    UserError
        No such model, one that takes images of a run to choose, no lock, a wheel that is another file, or a place that is no
        bundle.
    """
    out = _place_of(out)
    model, settings = _model_of(name, overrides), dict(overrides or {})
    run, key = of_a_run(model.name)
    title = f"{Path(run).name}:{key}" if run else Path(model.name).name
    copy = copy_models if is_joined(model) else copy_files
    get_profile(profile)
    _refuse_other(out, wheels)
    locked = read_lock(lock_file(lock))
    needed, of_backends = packages_to_predict(), packages_of(backends_of(model))
    alone = [version_here(package) for package in of_backends if package not in {*needed, *locked}]
    needed = sorted({*needed, *(package for package in of_backends if package in locked)})
    if alone:
        LOG.warning(
            f"the lock has no {', '.join(alone)}, which the model needs: {README} of the bundle names them too; {REMEDY}"
        )
    with tempfile.TemporaryDirectory(prefix=".cellkit-bundle-", dir=_parent(out)) as made:
        folder = Path(made) / "bundle"
        folder.mkdir()
        about = {
            "name": title,
            "profile": profile,
            "model": copy(model, folder / WEIGHTS, WEIGHTS),
            "settings": settings,
            "classes": list(model.classes),
            "conversion": _plain(model.conversion),
        }
        write_json(folder / MODEL, about, indent=1)
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "starter")
        shutil.copytree(PACKAGE, folder / CODE / "cellkit", ignore=ignored)
        copy_own_modules(folder / CODE / "cellkit")
        lacking = [package for package in needed if package not in locked]
        if lacking:
            raise UserError(
                f"the lock has no {', '.join(lacking)}", "write it again (make lock), or give another: --lock FILE"
            )
        write_text(folder / REQUIRED, "".join(locked[package].text for package in needed))
        copied = copy_wheels(Path(wheels), folder / WHEELS, {p: locked[p] for p in needed}) if wheels else []
        write_json(folder / NOTEBOOK, notebook(profile), indent=1)
        write_text(folder / README, readme(title, profile, len(needed), len(copied), alone))
        manifest = {
            "cellkit": __version__,
            "bundle": 1,
            "model": title,
            "files": dict(sorted(sha256_each(folder).items())),
        }
        write_json(folder / MANIFEST, manifest, indent=1)
        if out.suffix.lower() == ".zip":
            _zip(folder, out)
        else:
            _put_in_place(folder, out, Path(made) / "replaced")
    return manifest


def _model_of(name: str, overrides: Mapping[str, Any] | None) -> Model:
    """Return the model of a name; for a run alone, the one that its notebook 06 handed in."""
    if not Path(name).is_dir():
        return open_model(name, overrides)
    summary = Path(name) / "summary.json"
    remedy = "repeat `cellkit run`: 06_evaluate_map_iou writes it again; or name the model: RUN:NAME"
    best = read_stored(summary, {"best": str}, remedy=remedy).get("best") if summary.is_file() else None
    if not best:
        raise UserError(f"{name} has no summary.json that says which model is best", "name the model: RUN:NAME")
    if best == FUSED:
        members = finished_entries(read_manifest(Path(name)))[EVALUATE]["config"]["fuse"]
        return fuse_models([f"{name}:{one}" for one in members], overrides=overrides, name=f"{name}:{FUSED}")
    return find_model(f"{name}:{best}", overrides)


def profile_of(name: str) -> str:
    """Return the competition of a run, as its notebook 06 handed in.

    Raises
    ------
    UserError
        It has handed in nothing.
    """
    run = Path(name) if Path(name).is_dir() else Path(of_a_run(name)[0] or name)
    stages = finished_entries(read_manifest(run)) if (run / "manifest.json").is_file() else {}
    profile = stages.get(EVALUATE, {}).get("config", {}).get("profile")
    if profile is None:
        raise UserError(f"{name} does not say for which competition it is", "name it: --profile sartorius or dsb2018")
    return profile


def _place_of(out: str | Path) -> Path:
    """Return where a bundle goes: where a link leads; refuse the current folder, and one that holds it."""
    place, here = Path(out).resolve(), Path.cwd().resolve()
    if place == here or place in here.parents:
        raise UserError(f"'{out}' is the current folder, or holds it", "name a new folder, or a .zip file")
    return place if Path(out).is_symlink() else Path(out)


def _put_in_place(folder: Path, out: Path, aside: Path) -> None:
    """Let a folder take the place of another, which stays whole until it has: if that fails, it is put back."""
    if out.exists():
        out.rename(aside)
    try:
        folder.rename(out)
    except BaseException:
        if aside.exists():
            aside.rename(out)
        raise


def _refuse_other(out: Path, wheels: str | Path | None) -> None:
    """Refuse to write over anything but an earlier bundle, wheels that are copied again, or an empty folder."""
    if out.suffix.lower() == ".zip":
        if out.is_dir():
            raise UserError(f"'{out}' is a folder", "name another file")
        if out.exists() and not _is_bundle(out):
            raise UserError(f"'{out}' is another file than a bundle", "name a new file")
        return
    if out.is_dir() and any(out.iterdir()):
        manifest = out / MANIFEST
        if not manifest.is_file() or "bundle" not in read_json(manifest):
            raise UserError(f"'{out}' holds other files than a bundle", "name a new folder")
        kept = [path for path in sorted(out.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
        listed = {out / name for name in (*read_json(manifest)["files"], MANIFEST)}
        kept = [
            path
            for path in kept
            if path not in listed and not (wheels and path.parent.resolve() == Path(wheels).resolve())
        ]
        if kept:
            raise UserError(f"{kept[0]} was added to the bundle and would be lost", "move it, or name a new folder")
    elif out.exists() and not out.is_dir():
        raise UserError(f"'{out}' is a file", "name a new folder, or a .zip file")


def _is_bundle(archive: Path) -> bool:
    """Tell whether a file is the ZIP of a bundle."""
    try:
        with zipfile.ZipFile(archive) as files:
            return "bundle" in json.loads(files.read(MANIFEST))
    except (zipfile.BadZipFile, KeyError, ValueError):
        return False


def _parent(out: Path) -> Path:
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    return parent


def _plain(conversion: Conversion | None) -> dict[str, Any] | None:
    return None if conversion is None else json.loads(json.dumps(asdict(replace(conversion, made=None))))


def _conversion_of(plain: Mapping[str, Any] | None) -> Conversion | None:
    if plain is None:
        return None
    pair = {key: tuple(plain[key]) if plain[key] is not None else None for key in ("percentiles",)}
    limits = plain["limits"] and {colour: tuple(ends) for colour, ends in plain["limits"].items()}
    return Conversion(**{**plain, **pair, "limits": limits})


def _zip(folder: Path, out: Path) -> None:
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in [*read_json(folder / MANIFEST)["files"], MANIFEST]:
            entry = zipfile.ZipInfo(name, LONG_AGO)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, (folder / name).read_bytes(), zipfile.ZIP_DEFLATED)


# ---- use -------------------------------------------------------------------------------------------------------------
def check_bundle(bundle: str | Path) -> None:
    """Refuse a bundle of which a file is missing, or another than was bundled; of what was added, wheels of the lock are taken.

    Raises
    ------
    UserError
        Naming the file.
    """
    bundle = Path(bundle)
    if not (bundle / MANIFEST).is_file():
        raise UserError(f"{bundle} has no {MANIFEST}", "name the folder that `cellkit kaggle-bundle` wrote")
    files = read_json(bundle / MANIFEST)["files"]
    for name, wanted in files.items():
        path = bundle / name
        if not path.is_file() or sha256_file(path) != wanted:
            what = "is not as it was bundled (sha256 differs)" if path.is_file() else "is missing"
            raise UserError(f"{path} {what}", "attach the whole bundle again")
    code = (path.relative_to(bundle).as_posix() for path in sorted((bundle / CODE).rglob("*.py")))
    if added := [name for name in code if name not in files]:
        raise UserError(f"{bundle / added[0]} was not bundled", "attach the whole bundle again, and nothing else in it")
    hashes = set(re.findall(r"[0-9a-f]{64}", (bundle / REQUIRED).read_text(encoding="utf-8")))
    for path in sorted((bundle / WHEELS).glob("*.whl")):
        if sha256_file(path) not in hashes:
            raise UserError(f"{path} is none of the wheels of {REQUIRED}", "remove it, or download it again")


def submit_bundle(bundle: str | Path, images: str | Path, sample: str | Path, out: str | Path) -> str:
    """Find the cells of the test images with the model of a bundle, and write the competition's file.

    Parameters
    ----------
    bundle : path
    images : path
        Folder of the test images; their names are the ids.
    sample : path
        The competition's sample_submission.csv.
    out : path
        The CSV.

    Returns
    -------
    str
        Images, cells, and lines that name what has an empty row and what is not handed in.

    Raises
    ------
    UserError
        No id of the sample has an image, or one has several; or as `predict_files`.
    """
    from cellkit.cells.disjoint import resolve_overlaps
    from cellkit.cells.instances import Instances
    from cellkit.cells.names import repeated, stem_of
    from cellkit.formats.coco_reading import read_coco
    from cellkit.formats.samples import sample_ids
    from cellkit.formats.submission import write_submission
    from cellkit.microscope.frames import find_images
    from cellkit.predict.files import predict_files

    about = read_json(Path(bundle) / MODEL)
    wanted, unread_files = sample_ids(sample, about["profile"]), []
    paths = [path for path, _ in find_images([images], outside=unread_files)]
    ids = set(wanted)
    asked = [path for path in paths if stem_of(path) in ids]
    if not asked:
        raise UserError(
            f"none of {counted(len(wanted), 'id')} of {sample} has an image in {images}, e.g. {wanted[0]}",
            "name the folder of test images and the sample_submission.csv that belong together",
        )
    if twice := repeated(map(stem_of, asked)):
        raise UserError(f"{images} has several images of the id {twice[0]}", "leave one of each there")
    model = open_bundle(bundle)
    with tempfile.TemporaryDirectory(prefix="cellkit-bundle-") as made:
        named = [images] if len(asked) == len(paths) else asked
        done = predict_files(model, named, Path(made) / "found.json")
        coco = read_coco(done.path)
    frames = [stem_of(record.path) for record in coco.records]
    if twice := repeated(frames):
        raise UserError(f"the image {twice[0]} has several frames", "give files of one image each")
    found = dict(zip(frames, coco.instances, strict=True))
    reasons = {stem_of(item.item): item.reason for item in (*unread_files, *done.quarantined)}
    cells = [resolve_overlaps(found[name])[0] if name in found else Instances.empty((1, 1)) for name in wanted]
    write_submission(out, wanted, cells, about["profile"])
    text = f"{out}: {counted(len(wanted), 'image')}, {counted(sum(map(len, cells)), 'cell')}"
    there = {*map(stem_of, asked), *reasons}
    told = [f"{n}: an empty row, {reasons.get(n, 'not read')}" for n in wanted if n not in found and n in there]
    missing = [name for name in wanted if name not in there]
    others = [stem_of(path) for path in paths if stem_of(path) not in ids]
    told += _named(missing, f"of {sample} without an image in {images}, an empty row each", "id")
    told += _named(others, f"in {images} that {sample} does not ask for, not handed in", "image")
    return "\n".join([text, *told])


def _named(names: list[str], what: str, kind: str) -> list[str]:
    """Return a line that counts and names ids, the first of many; none of no id."""
    shown = f"{', '.join(names[:SHOWN])}{' ...' * (len(names) > SHOWN)}"
    return [f"{counted(len(names), kind)} {what}: {shown}"] if names else []


def open_bundle(bundle: str | Path) -> Model:
    """Return the model of a bundle, with the conversion of files that its run had."""
    bundle = Path(bundle)
    about = read_json(bundle / MODEL)
    if isinstance(about["model"], dict):
        model = open_models(about["model"], bundle, about["name"])
        return replace(model, conversion=_conversion_of(about["conversion"]))
    path = bundle / about["model"]
    model = find_model(path if path.is_file() else about["model"], about["settings"])
    return replace(model, name=about["name"], conversion=_conversion_of(about["conversion"]))
