"""What `cellkit fetch` knows: public data sets and weights, where each file comes from, its sha256, licence and paper.

Only sha256 values that can be looked up are listed, with the place in a comment (repository: file @ commit). Where none is
published the first download is trusted, which is reported, and its sha256 is kept and demanded from then on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cellkit.errors import UserError, nearest
from cellkit.machine import DATA_VARIABLE

WEIGHTS_VARIABLE = "CELLKIT_WEIGHTS"
KAGGLE_URL = "https://www.kaggle.com/api/v1/competitions/data/download-all/"
BBBC = "https://data.broadinstitute.org/bbbc"
CELLPOSE = "https://www.cellpose.org/models"
LIVECELL = "https://livecell-dataset.s3.eu-central-1.amazonaws.com/LIVECell_dataset_2021"
TORCHVISION = "https://download.pytorch.org/models"


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
    """

    url: str
    target: str
    size_bytes: int | None = None
    sha256: str = ""
    sha256_prefix: str = ""
    unpack: bool = False
    saved_as: str = ""
    max_unpacked_bytes: int = 10_000_000_000

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
        For weights: what reads them. ``cellpose_unet`` and ``torchvision`` checkpoints are converted to safetensors;
        others stay as they came.
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
    diam_mean_px: float = 30.0
    nuclei_first: bool = False

    @property
    def converted(self) -> bool:
        """Tell whether the download is turned into safetensors with a card."""
        return self.backend in ("cellpose_unet", "torchvision")


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


# ---- data ----------------------------------------------------------------------------------------------------------
_DSB2018 = "Caicedo et al., Nature Methods 2019, doi:10.1038/s41592-019-0612-7"
_CELLPOSE_DATA = "trained on data under CC BY-NC: research and non-commercial use"  # README of cellpose 4.2.1.1
_COCO_DATA = "trained on COCO 2017: annotations CC BY 4.0, pictures under their owners' terms; code BSD-3-Clause"

_DATA = (
    Entry(
        name="bbbc038",
        kind="data",
        about="nuclei of six kinds of pictures, stage 1 training set of the 2018 Data Science Bowl, 670 images",
        files=(
            # fsantibanezleal/CAOS_FrothSeg: data/derived/real-adjacent-dataset-manifest.json @ 1e7e8674; the same value
            # stands in four further repositories
            RemoteFile(
                f"{BBBC}/BBBC038/stage1_train.zip",
                "bbbc038/stage1_train",
                sha256="dcb6edc2690f137406638b2309581a71522c4dff19157d118453b448dcddcb68",
                unpack=True,
            ),
        ),
        licence="CC0-1.0",
        paper=_DSB2018,
        page="https://bbbc.broadinstitute.org/BBBC038",
    ),
    Entry(
        name="bbbc038_test",
        kind="data",
        about="test sets of both stages of the 2018 Data Science Bowl, with the solutions",
        files=(
            RemoteFile(f"{BBBC}/BBBC038/stage1_test.zip", "bbbc038/stage1_test", unpack=True),
            RemoteFile(f"{BBBC}/BBBC038/stage1_solution.csv", "bbbc038/stage1_solution.csv"),
            RemoteFile(f"{BBBC}/BBBC038/stage2_test_final.zip", "bbbc038/stage2_test_final", unpack=True),
            RemoteFile(f"{BBBC}/BBBC038/stage2_solution_final.csv", "bbbc038/stage2_solution_final.csv"),
        ),
        licence="CC0-1.0",
        paper=_DSB2018,
        page="https://bbbc.broadinstitute.org/BBBC038",
    ),
    Entry(
        name="bbbc039",
        kind="data",
        about="nuclei of U2OS cells in a chemical screen, 200 fields of 16 bits, with the published split",
        files=(  # OpenHCSDev/openhcs: benchmark/datasets/registry.py @ b70f59bc (sizes and sha256)
            RemoteFile(
                f"{BBBC}/BBBC039/images.zip",
                "bbbc039/images",
                size_bytes=77_915_748,
                sha256="6f30a5d4fe38c928ded972704f085975f8dc0d65d9aa366df00e5a9d449fddd7",
                unpack=True,
            ),
            RemoteFile(
                f"{BBBC}/BBBC039/masks.zip",
                "bbbc039/masks",
                size_bytes=2_753_811,
                sha256="f9e6043d8ca56344a4886f96a700d804d6ee982f31e2b2cd3194af2a053c2710",
                unpack=True,
            ),
            RemoteFile(
                f"{BBBC}/BBBC039/metadata.zip",
                "bbbc039/metadata",
                size_bytes=17_816,
                sha256="a2c1f900bed9ba92a99553efd4c2ae98598433691c7401d818653ab61110deb2",
                unpack=True,
            ),
        ),
        licence="CC0-1.0",
        paper="Caicedo et al., Cytometry A 2019, doi:10.1002/cyto.a.23863",
        page="https://bbbc.broadinstitute.org/BBBC039",
    ),
    Entry(
        name="livecell",
        kind="data",
        about="phase contrast of eight cell lines, 5,239 images, 1.6 million cells (COCO); 1.3 GB and 1.5 GB of annotations",
        files=(  # addresses: sartorius-research/LIVECell: README.md @ 01923ac4, there as http
            RemoteFile(f"{LIVECELL}/images.zip", "livecell/images", unpack=True),
            *(
                RemoteFile(
                    f"{LIVECELL}/annotations/LIVECell/livecell_coco_{split}.json",
                    f"livecell/annotations/livecell_coco_{split}.json",
                )
                for split in ("train", "val", "test")
            ),
        ),
        licence="CC BY-NC 4.0",  # sartorius-research/LIVECell: README.md @ 01923ac4, section LICENSE
        paper="Edlund et al., Nature Methods 2021, doi:10.1038/s41592-021-01249-6",
        page="https://sartorius-research.github.io/LIVECell/",
    ),
    Entry(
        name="sartorius",
        kind="data",
        about="Kaggle: Sartorius - Cell Instance Segmentation (2021), phase contrast of three lines",
        files=(
            RemoteFile(
                f"{KAGGLE_URL}sartorius-cell-instance-segmentation",
                "sartorius",
                unpack=True,
                saved_as="sartorius-cell-instance-segmentation.zip",
                max_unpacked_bytes=60_000_000_000,
            ),
        ),
        licence="rules of the competition: non-commercial",
        paper="https://www.kaggle.com/competitions/sartorius-cell-instance-segmentation",
        page="https://www.kaggle.com/competitions/sartorius-cell-instance-segmentation",
        kaggle="sartorius-cell-instance-segmentation",
    ),
    Entry(
        name="dsb2018_kaggle",
        kind="data",
        about="Kaggle: 2018 Data Science Bowl as Kaggle packs it (zips inside the zip); bbbc038 is the same, open to all",
        files=(
            RemoteFile(
                f"{KAGGLE_URL}data-science-bowl-2018",
                "dsb2018_kaggle",
                unpack=True,
                saved_as="data-science-bowl-2018.zip",
            ),
        ),
        licence="CC0-1.0, and the rules of the competition",
        paper=_DSB2018,
        page="https://www.kaggle.com/competitions/data-science-bowl-2018",
        kaggle="data-science-bowl-2018",
    ),
)


# ---- weights -------------------------------------------------------------------------------------------------------
def _cellpose(name: str, about: str, file: str, paper: str, **facts: Any) -> Entry:
    """Return the entry of a U-Net of Cellpose 1 to 3; its publisher gives no sha256."""
    return Entry(
        name=name,
        kind="weights",
        about=about,
        files=(
            RemoteFile(f"{CELLPOSE}/{file}", file, saved_as=file),
        ),  # MouseLand/cellpose: docs/models.rst @ 02b83a5a
        licence=_CELLPOSE_DATA,
        paper=paper,
        page="https://cellpose.readthedocs.io/en/v3.1.1.1/models.html",
        backend="cellpose_unet",
        **facts,
    )


_CELLPOSE1 = "Stringer et al., Nature Methods 2021, doi:10.1038/s41592-020-01018-x"
_CELLPOSE2 = "Pachitariu and Stringer, Nature Methods 2022, doi:10.1038/s41592-022-01663-4"
_CELLPOSE3 = "Stringer and Pachitariu, Nature Methods 2025, doi:10.1038/s41592-025-02595-5"

_WEIGHTS = (
    _cellpose("cyto3", "Cellpose 3, cells, trained on nine data sets", "cyto3", _CELLPOSE3),
    _cellpose("cyto2", "Cellpose 2, cells, with pictures users sent", "cyto2torch_0", _CELLPOSE2),
    _cellpose("cyto", "Cellpose 1, cells", "cytotorch_0", _CELLPOSE1),
    _cellpose("nuclei", "Cellpose 1, nuclei", "nucleitorch_0", _CELLPOSE1, diam_mean_px=17.0, nuclei_first=True),
    Entry(
        name="cpsam_v2",
        kind="weights",
        about="Cellpose-SAM, June 2026, 1.2 GB: for a GPU",
        files=(  # address: cellpose 4.2.1.1 (PyPI): cellpose/models.py;
            # wanglab-broad/starfinder: src/python/starfinder/segmentation/_models.py @ 145ec890 (size and sha256)
            RemoteFile(
                "https://huggingface.co/mouseland/cellpose-sam/resolve/main/cpsam_v2",
                "cpsam_v2",
                size_bytes=1_233_586_851,
                sha256="0f1cc3f7ecdd8a037a57c6c48d9d8921391be4cbce3fa9f13c3e3a2e1253c667",
            ),
        ),
        licence=_CELLPOSE_DATA,
        paper="Pachitariu, Rariden, Stringer, bioRxiv 2025, doi:10.1101/2025.04.28.651001",
        page="https://huggingface.co/mouseland/cellpose-sam",
        backend="cellpose_sam",
    ),
    Entry(
        name="maskrcnn_resnet50_fpn_v2",
        kind="weights",
        about="torchvision's Mask R-CNN, ResNet-50 and FPN, COCO: a start for the detector (maskrcnn.start)",
        files=(  # address: torchvision 0.29.2: models/detection/mask_rcnn.py;
            # ToppyMicroServices/YOLOZU: yolozu/adaptive/checkpoint_preparation.py @ d9ee5d5a (size and sha256); the file
            # name carries its first digits
            RemoteFile(
                f"{TORCHVISION}/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
                "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
                size_bytes=185_828_065,
                sha256="73cbd0190fcbe3ba339921fbce2c3a0b6bb9126c9a133c85e43a2a8e060a109e",
                sha256_prefix="73cbd019",
            ),
        ),
        licence=_COCO_DATA,
        paper="Li et al., arXiv:2111.11429",
        page="https://docs.pytorch.org/vision/stable/models.html",
        backend="torchvision",
    ),
    Entry(
        name="resnet50",
        kind="weights",
        about="torchvision's ResNet-50, ImageNet (second weights): a start for the detector's encoder (maskrcnn.start)",
        files=(  # torchvision 0.29.2: models/resnet.py; the file name carries the first digits of its sha256
            RemoteFile(f"{TORCHVISION}/resnet50-11ad3fa6.pth", "resnet50-11ad3fa6.pth", sha256_prefix="11ad3fa6"),
        ),
        licence="trained on ImageNet: research and non-commercial use; code BSD-3-Clause",
        paper="He et al., CVPR 2016, arXiv:1512.03385",
        page="https://docs.pytorch.org/vision/stable/models.html",
        backend="torchvision",
    ),
)

REGISTRY: dict[str, Entry] = {entry.name: entry for entry in (*_DATA, *_WEIGHTS)}
