"""What `cellkit fetch` knows: public data sets and weights, where each file comes from, its sha256, licence and paper.

Only sha256 values that can be looked up are listed, with the place in a comment (repository: file @ commit). Where none is
published the first download is trusted, which is reported, and its sha256 is kept and demanded from then on.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cellkit.errors import UserError, nearest
from cellkit.machine import DATA_VARIABLE

WEIGHTS_VARIABLE = "CELLKIT_WEIGHTS"


@dataclass(frozen=True)
class RemoteFile:
    """One file to fetch.

    Parameters
    ----------
    url : str
        https.
    target : str
        Where it goes below the folder: the file itself, or the folder an archive is unpacked to.
    size_bytes : int, optional
        Known length.
    sha256 : str
        Published value, or "".
    sha256_prefix : str
        Its first digits, where only these are published.
    unpack : bool
        A zip or tar.gz, whose content becomes `target`.
    saved_as : str
        File name of the download; by default that of the address.
    max_unpacked_bytes : int
        Most that an archive may unpack to.
    optional : bool
        Of use, and not needed: the entry is whole without it.
    """

    url: str
    target: str
    size_bytes: int | None = None
    sha256: str = ""
    sha256_prefix: str = ""
    unpack: bool = False
    saved_as: str = ""
    max_unpacked_bytes: int = 10_000_000_000
    optional: bool = False

    @property
    def file_name(self) -> str:
        """Return the file name that the download has, also when it is carried by hand."""
        return self.saved_as or self.url.rpartition("/")[2]

    @property
    def place(self) -> str:
        """Return the path of the download below the folder: beside the unpacked folder, or the target itself."""
        return (
            self.target.rpartition("/")[0] + "/" * ("/" in self.target) + self.file_name if self.unpack else self.target
        )


@dataclass(frozen=True)
class Entry:
    """A name of `cellkit fetch`.

    Parameters
    ----------
    kind : {"data", "weights"}
        Data go below ``CELLKIT_DATA``, weights below ``CELLKIT_WEIGHTS``.
    about, licence, paper, page : str
        What it is; the licence (of weights: of what they were trained on); what to cite; where it is described.
    kaggle : str
        Name of the Kaggle competition whose rules the user must have accepted.
    backend : str
        For weights: what reads them; they are converted to safetensors.
    called : str
        For weights: what they are also called where weights of this backend are wanted, "coco".
    diam_mean_px : float
        For Cellpose 1 to 3: the diameter cells were scaled to, where the checkpoint does not say it.
    nuclei_first : bool
        For Cellpose 1 to 3: nuclei alone, in the first input channel; here nuclei are the second.
    """

    name: str
    kind: Literal["data", "weights"]
    about: str
    files: tuple[RemoteFile, ...]
    licence: str
    paper: str
    page: str
    kaggle: str = ""
    backend: str = ""
    called: str = ""
    diam_mean_px: float = 30.0
    nuclei_first: bool = False

    @property
    def converted(self) -> bool:
        """Tell whether the download is turned into safetensors with a card: weights are."""
        return self.kind == "weights"

    @property
    def needed(self) -> tuple[RemoteFile, ...]:
        """Return the files without which the entry is not whole."""
        return tuple(file for file in self.files if not file.optional)


def find_entry(name: str, registry: dict[str, Entry] | None = None) -> Entry:
    """Return the entry called `name`.

    Raises
    ------
    UserError
        There is none; with the names there are.
    """
    known = REGISTRY if registry is None else registry
    if name not in known:
        raise UserError(f"nothing called '{name}' can be fetched{nearest(name, known)}", f"names: {', '.join(known)}")
    return known[name]


def folder_of(entry: Entry, to: str | Path | None = None) -> Path:
    """Return the folder `entry` goes to: `to`, else the environment's, else one in the user's cache."""
    if to is not None:
        return Path(to)
    return _folder(WEIGHTS_VARIABLE, "weights") if entry.kind == "weights" else _folder(DATA_VARIABLE, "data")


def cache_folder() -> Path:
    """Return the folder of this package in the user's cache: below ``XDG_CACHE_HOME``, else ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cellkit"


def _folder(variable: str, name: str) -> Path:
    return Path(os.environ[variable]) if os.environ.get(variable) else cache_folder() / name


def _read_registry() -> dict[str, Entry]:
    with open(Path(__file__).with_suffix(".toml"), "rb") as file:
        tables = tomllib.load(file)
    files = {name: tuple(RemoteFile(**one) for one in facts.pop("files")) for name, facts in tables.items()}
    return {name: Entry(name=name, files=files[name], **facts) for name, facts in tables.items()}


REGISTRY = _read_registry()
