"""`cellkit fetch`: public data and weights, verified, unpacked or converted, or carried here by hand.

Order of a file: download (resumed) or take what was carried here, verify, unpack or convert, and last write the side file
``TARGET.sha256.json``, which says what came from where. A side file whose files are all there means done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from cellkit.errors import UserError, counted
from cellkit.fetch.archives import check_archive, check_text, keep_old, unpack
from cellkit.fetch.download import Patience, Refused, Unreachable, authorization_for, download, real_address
from cellkit.fetch.registry import REGISTRY, Entry, RemoteFile, find_entry, folder_of
from cellkit.files import atomic_path, locked, read_json, sha256_file, write_json
from cellkit.log import LOG
from cellkit.machine import NoRoom, check_space
from cellkit.models import get_backend
from cellkit.models.detectron2_zoo import read_zoo
from cellkit.models.size_model import read_size_model

SIDE = ".sha256.json"
START = {"use": "maskrcnn.start"}
USE = {  # backend -> the setting that takes its weights
    "cellpose_unet": "finetune.base: {}",
    "cellpose_sam": "label.model: {}; label.backend: cellpose_sam",
    "torchvision": "maskrcnn.start: {}; maskrcnn.backbone: resnet50_fpn_v2",
    "detectron2": "maskrcnn.start: {}; maskrcnn.backend: maskrcnn_detectron2; maskrcnn.backbone: resnet50_fpn",
}
PUBLISHED, PREFIX, FIRST_USE = "published", "first digits published", "first download"


def fetch(
    name: str,
    to: str | Path | None = None,
    given: Sequence[str | Path] = (),
    patience: Patience | None = None,
    registry: dict[str, Entry] | None = None,
) -> dict[str, Any]:
    """Bring a data set or weights here; what is here already and whole is left alone.

    Parameters
    ----------
    name : str
        Of the registry.
    to : path, optional
        Folder; by default ``CELLKIT_DATA`` or ``CELLKIT_WEIGHTS``, else a folder in the user's cache.
    given : sequence of paths
        Files carried here by hand, or folders that hold them, known by their names: the network is not used then.

    Returns
    -------
    dict
        name, kind, folder, licence, paper, files (each target, state, sha256, trust), weights (path or None), use (of weights
        the setting that takes them, and how they are called there).

    Raises
    ------
    UserError
        No such name; no way to the server, with what to carry here by hand; wrong bytes; a refused archive; no room.
    """
    entry = find_entry(name, registry)
    root = folder_of(entry, to)
    carried = _carried(entry, given)
    LOG.info(f"{name}: {entry.about}; licence: {entry.licence}")
    root.mkdir(parents=True, exist_ok=True)
    busy = f"{name}: another fetch of it into {root} is running; waiting for it"
    with locked(root / f".{name}.lock", busy, wait=True):
        done, missing = [], []
        for file in entry.files:
            there = not given or file.file_name in carried or is_complete(entry, file, root)
            try:
                if there:
                    done.append(_fetch_file(entry, file, root, carried.get(file.file_name), patience))
                elif not file.optional:
                    missing.append(file)
            except NoRoom:
                raise
            except UserError as error:
                if not file.optional:
                    raise
                LOG.info(
                    f"{name}: without {file.file_name}, which is of use and not needed: {str(error).splitlines()[0]}"
                )
    if missing:
        raise UserError(
            f"{name}: {counted(len(done), 'file is', 'files are')} here, {len(missing)} not yet",
            by_hand(entry, missing, root),
        )
    found = {"name": name, "kind": entry.kind, "folder": str(root), "licence": entry.licence, "paper": entry.paper}
    if entry.kind != "weights":
        return {**found, "files": done, "weights": None}
    return {**found, "files": done, "weights": str(weights_path(entry, root)), "use": use_of(entry, root)}


def use_of(entry: Entry, root: Path) -> str:
    """Return which setting takes weights: by their name, where that finds them in the folder `root`, or by their path."""
    path, by_name = weights_path(entry, root), folder_of(entry).absolute() == root.absolute()
    called = f"{entry.name}, or {path}" if by_name else f"{path}, or with CELLKIT_WEIGHTS={root} {entry.name}"
    return USE.get(entry.backend, "{}").format(called)


def _missing(entry: Entry, root: Path) -> list[RemoteFile]:
    return [file for file in entry.needed if not is_complete(entry, file, root)]


def weights_path(entry: Entry, root: Path) -> Path:
    """Return where the weights of `entry` lie once fetched."""
    return root / f"{entry.name}.safetensors"


def is_complete(entry: Entry, file: RemoteFile, root: Path) -> bool:
    """Tell whether `file` has been fetched to `root` and everything of it is still there, by name and size."""
    record = read_record(file, root)
    if not record:
        return False
    if file.unpack:
        folder = root / file.target
        return bool(record.get("members")) and all(_has(folder / m, size) for m, size in record["members"].items())
    if _converted(entry, file):
        return _is_whole(weights_path(entry, root))
    return _has(root / file.target, record["size_bytes"])


def _converted(entry: Entry, file: RemoteFile) -> bool:
    """Tell whether a file is turned into safetensors: weights are, what comes beside them stays as it is."""
    return entry.converted and not file.optional


def _is_whole(path: Path) -> bool:
    from cellkit.models.weights import read_card

    try:
        return bool(read_card(path))
    except UserError:
        return False


def _has(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


# ---- one file ------------------------------------------------------------------------------------------------------
def _fetch_file(
    entry: Entry, file: RemoteFile, root: Path, carried: Path | None, patience: Patience | None
) -> dict[str, Any]:
    """Bring one file here unless it is; return what to tell about it."""
    record = read_record(file, root)
    if is_complete(entry, file, root):
        return _row(file, root, record, "there")
    place = root / file.place
    state = "by hand" if carried or place.is_file() else "fetched"
    if not carried and not place.is_file():
        new = _download(entry, file, root, record, patience)
    else:
        new = _check(carried or place, file, root, record)
        _copy(carried or place, place)
    try:
        new |= _use(entry, file, root, place)
    except NoRoom:
        raise
    except UserError as error:
        raise _kept_as_bad(error, place) from error
    if new["trust"] == FIRST_USE and not record:
        side = root / f"{file.target}{SIDE}"
        LOG.info(
            f"{file.target}: no sha256 is published for it. This one is trusted, and kept in {side}: {new['sha256']}"
        )
    write_json(root / f"{file.target}{SIDE}", new, indent=1)
    if file.unpack or _converted(entry, file):
        place.unlink(missing_ok=True)
    return _row(file, root, new, state)


def _row(file: RemoteFile, root: Path, record: dict[str, Any], state: str) -> dict[str, Any]:
    row = {key: record[key] for key in ("url", "sha256", "size_bytes", "trust")}
    return {"target": str(root / file.target), "state": state, **row}


def _use(entry: Entry, file: RemoteFile, root: Path, place: Path) -> dict[str, Any]:
    """Unpack or convert a verified download, or look whether it is what its name says."""
    if file.unpack:
        if os.path.lexists(root / file.target):
            check_archive(place, file.max_unpacked_bytes)
            keep_old(root / file.target)
        return {"members": unpack(place, root / file.target, file.max_unpacked_bytes)}
    if _converted(entry, file):
        convert_weights(entry, place, weights_path(entry, root))
    elif place.suffix == ".npy":
        read_size_model(place)
    elif place.suffix == ".json":
        check_text(place, b"{[", b"}]")
    elif place.suffix == ".csv":
        check_text(place, b"", b"")
    return {}


def _copy(source: Path, place: Path) -> None:
    """Copy what was carried here to its place; the file given stays as it is."""
    if place.exists() and place.samefile(source):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    check_space(place.parent, source.stat().st_size, f"a copy of {source.name}")
    with atomic_path(place) as temporary:
        shutil.copyfile(source, temporary)


# ---- by hand -------------------------------------------------------------------------------------------------------
def _carried(entry: Entry, given: Sequence[str | Path]) -> dict[str, Path]:
    """Return {file name: path} of the files of `entry` among those given; a single file may have any name."""
    paths = [child for path in map(Path, given) for child in (sorted(path.iterdir()) if path.is_dir() else [path])]
    wanted, needed = ([file.file_name for file in files] for files in (entry.files, entry.needed))
    for path in paths:
        if not path.exists():
            raise UserError(f"no file at {path}", "give the path of the downloaded file")
    if len(needed) == 1 and len(given) == 1 and Path(given[0]).is_file() and Path(given[0]).name not in wanted:
        return {needed[0]: Path(given[0])}
    found = {path.name: path for path in paths if path.name in wanted and path.is_file()}
    if given and not found:
        raise UserError(
            f"{entry.name}: none of its files is in {', '.join(map(str, given))}", f"it is: {', '.join(wanted)}"
        )
    return found


def by_hand(entry: Entry, files: Iterable[RemoteFile], root: Path) -> str:
    """Return what to carry here by hand: each address, its place and its sha256."""
    lines = []
    for file in files:
        sha256 = file.sha256 or read_record(file, root).get("sha256", "")
        known = sha256 or (f"{file.sha256_prefix}..." if file.sha256_prefix else "none published")
        lines.append(f"{file.url} -> {root / file.place} (sha256 {known}{'; not needed' if file.optional else ''})")
    to = "" if root == folder_of(entry) else f" --to {root}"
    how = f"cellkit fetch {entry.name}{to} --from {'FILE' if len(entry.needed) == 1 else 'FOLDER'}"
    return f"by hand: download {'; '.join(lines)}; then run: {how}"


# ---- the bytes -----------------------------------------------------------------------------------------------------
def read_record(file: RemoteFile, root: Path) -> dict[str, Any]:
    """Return the side file of `file`: url, sha256, size_bytes, trust, date, members; {} when there is none.

    Raises
    ------
    UserError
        It is damaged: what it vouched for cannot be trusted silently.
    """
    path = root / f"{file.target}{SIDE}"
    if not path.is_file():
        return {}
    try:
        record = read_json(path)
        good = (
            isinstance(record["sha256"], str) and isinstance(record["size_bytes"], int) and len(record["sha256"]) == 64
        )
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise UserError(f"{path} is damaged", "delete it and fetch again")
    return record


def _check(path: Path, file: RemoteFile, root: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Verify the bytes at `path` against what is published, else against the first download; return the new record.

    Raises
    ------
    UserError
        Other bytes.
    """
    size, remedy = path.stat().st_size, f"delete it and fetch again, or get it from {file.url}"
    if file.size_bytes is not None and size != file.size_bytes:
        raise UserError(f"{path} has {size:,} bytes, {file.size_bytes:,} are known", remedy)
    sha256 = sha256_file(path)
    trust = PUBLISHED if file.sha256 else PREFIX if file.sha256_prefix else FIRST_USE
    if file.sha256 and sha256 != file.sha256:
        raise UserError(f"{path} has sha256 {sha256}, published is {file.sha256}", remedy)
    if not sha256.startswith(file.sha256_prefix):
        raise UserError(f"{path} has sha256 {sha256}, published is {file.sha256_prefix}...", remedy)
    if not file.sha256 and record and sha256 != record["sha256"]:
        side = root / f"{file.target}{SIDE}"
        raise UserError(
            f"{path} has sha256 {sha256}, the first download had {record['sha256']} ({side})",
            f"if the publisher changed the file and you trust the new one, delete {side} and fetch again",
        )
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"url": file.url, "sha256": sha256, "size_bytes": size, "trust": trust, "date": date}


def _download(
    entry: Entry, file: RemoteFile, root: Path, record: dict[str, Any], patience: Patience | None
) -> dict[str, Any]:
    """Download to the place of `file`: verified first; a resumed download with wrong bytes is begun once more."""
    address, place = real_address(file.url), root / file.place
    authorization = authorization_for(entry, address)
    part = place.with_name(f"{place.name}.part")
    resumed = part.is_file()
    try:
        download(address, part, file.size_bytes, authorization, patience, desc=file.file_name)
    except Unreachable as error:
        problem = f"{entry.name}: no way to {urlsplit(address).hostname}: {error}"
        raise UserError(problem, by_hand(entry, _missing(entry, root), root)) from error
    except Refused as error:
        _explain(entry, file, root, address, error)
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)
    try:
        new = _check(part, file, root, record)
    except UserError as error:
        reason = _kept_as_bad(error, part)
        if resumed:
            LOG.info(f"{file.file_name}: the resumed download has wrong bytes; once more from the beginning")
            return _download(entry, file, root, record, patience)
        raise reason from None
    os.replace(part, place)
    return new


def _kept_as_bad(error: UserError, path: Path) -> UserError:
    """Rename a file with wrong bytes so that nothing takes it for good; return the error that also says so."""
    bad = path.with_name(f"{path.name.removesuffix('.part')}.bad")
    os.replace(path, bad)
    return UserError(f"{error.problem}; the file is kept as {bad.name}", error.remedy)


def _explain(entry: Entry, file: RemoteFile, root: Path, address: str, error: Refused) -> NoReturn:
    """Say what the server's refusal means and what to do."""
    host = urlsplit(address).hostname
    if entry.kaggle and error.status == 401:
        raise UserError(
            "Kaggle does not know this user and key, or this token", "make a new token: kaggle.com, Settings, API"
        ) from error
    if entry.kaggle and error.status == 403:
        rules = f"https://www.kaggle.com/competitions/{entry.kaggle}/rules"
        raise UserError(
            f"Kaggle gives {entry.name} only to who accepted its rules", f"accept them at {rules}"
        ) from error
    raise UserError(
        f"{entry.name}: {host} {error} for {file.url}", by_hand(entry, _missing(entry, root), root)
    ) from error


# ---- weights -------------------------------------------------------------------------------------------------------
def fetched_weights(name: str) -> Path:
    """Return the file of fetched weights, verified; nothing is downloaded here.

    Raises
    ------
    UserError
        They are not here, with the line that fetches them and what to carry here by hand; or other bytes are.
    """
    entry = find_entry(name)
    root = folder_of(entry)
    path = weights_path(entry, root)
    if _missing(entry, root):
        raise UserError(
            f"the weights '{name}' are not here ({path})",
            f"run: cellkit fetch {name}; or {by_hand(entry, entry.files, root)}",
        )
    return path


def swap_inputs(tensors: dict) -> dict:
    """Return the tensors of a Cellpose U-Net that takes its two input channels in the other order and gives the same maps."""
    first = ("downsample.down.res_down_0.conv.conv_0.", "downsample.down.res_down_0.proj.")

    def swapped(key: str, value):
        axis = (
            next((k for k in (0, 1) if value.ndim > k and value.shape[k] == 2), None) if key.startswith(first) else None
        )
        return value if axis is None else value.flip(axis).contiguous()

    return {key: swapped(key, value) for key, value in tensors.items()}


def convert_weights(entry: Entry, source: Path, target: Path) -> Path:
    """Turn a torch file of tensors, or detectron2's pickle of arrays, into safetensors with a card; nothing else is opened.

    Parameters
    ----------
    source : Path
        The verified download.
    target : Path
        ``NAME.safetensors``; the card is ``NAME.json``.

    Raises
    ------
    UserError
        Anything but named tensors, or another network than the entry says.
    """
    import torch

    from cellkit.models.weights import load_tensors, save_checkpoint

    if entry.backend == "detectron2":
        return save_checkpoint(target, read_zoo(source), entry.backend, config=START, licence=entry.licence)
    tensors = {key.removeprefix("module."): value for key, value in load_tensors(source).items()}
    if entry.backend == "cellpose_unet":
        for key in ("diam_mean", "diam_labels"):  # checkpoints of Cellpose 1 lack them
            tensors.setdefault(key, torch.tensor([entry.diam_mean_px]))
    config = START if entry.backend == "torchvision" else {}
    if entry.nuclei_first:
        tensors, config = swap_inputs(tensors), {"channels": "nuclei"}
    save_checkpoint(target, tensors, entry.backend, config=config, metrics={}, licence=entry.licence)
    if entry.backend != "torchvision":
        _check_network(target, entry.backend)
    return target


def _check_network(path: Path, backend: str) -> None:
    """Open converted weights once as the network they are for; remove them if they are of another."""
    try:
        get_backend(backend).load(path)
    except UserError:
        path.unlink()
        path.with_suffix(".json").unlink()
        raise


# ---- what there is ------------------------------------------------------------------------------------------------------
def list_entries(to: str | Path | None = None, registry: dict[str, Entry] | None = None) -> list[dict[str, Any]]:
    """Return what can be fetched, and whether it is here: plain values, ready for JSON."""
    rows = []
    for entry in (REGISTRY if registry is None else registry).values():
        root = folder_of(entry, to)
        files = [
            {"url": file.url, "target": str(root / file.target), "size_bytes": file.size_bytes, "sha256": file.sha256}
            for file in entry.files
        ]
        fetched = not _missing(entry, root)
        about = {key: getattr(entry, key) for key in ("name", "kind", "about", "licence", "paper", "page")}
        rows.append({**about, "here": fetched, "files": files})
    return rows
