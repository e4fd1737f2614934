"""What a person reads in a bundle: its notebook, and how it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cellkit.formats.competitions import get_profile
from cellkit.predict.locked_packages import REQUIRED, WHEELS, download_line

TITLE = """# Submission, {profile}

Made by `cellkit kaggle-bundle`. It needs no network: attach the bundle and the competition's data, and name both here."""
PLACES = """bundle = "."  # the bundle; on Kaggle /kaggle/input/NAME
images = "test"  # the folder of test images
sample = "sample_submission.csv"  # every id of it gets a row
out = "submission.csv\""""
PACKAGES = """The packages: the wheels that are attached. What has no wheel there has to be on the machine already."""
INSTALL = """import subprocess
import sys
from pathlib import Path

folder = Path(bundle, "{wheels}")
wheels = sorted(map(str, folder.glob("*.whl")))
install = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps"]
if wheels:
    subprocess.run([*install, *wheels], check=True)
sys.path.insert(0, str(Path(bundle, "code")))"""
FILES = "Every file must be the one that was bundled."
CHECK = """from cellkit.predict.kaggle_bundle import check_bundle, submit_bundle

check_bundle(bundle)"""
SUBMIT = """Every test image, in the competition's form: each `{column}` of the sample has a row, an empty one where its
image is not there or cannot be read, and no cells overlap. Images that the sample does not ask for are not handed in.
The file is checked before it takes its place."""
RUN = "print(submit_bundle(bundle, images, sample, out))"

ABOUT = """# Bundle of {name}

Attach this folder as a data set to a notebook without a network, and run `submit.ipynb` there with the folders named in its
first cell. It writes `submission.csv` for {profile}.

| file | what |
|---|---|
| `model.json`, `models/` | the model: settings, weights (safetensors) and their cards |
| `code/` | cellkit, as it was when the bundle was made |
| `{required}` | the {needed} packages that a prediction takes, with hashes |
| `{wheels}/` | {copied} wheels of them |
| `manifest.json` | sha256 of every file |

What the machine lacks is attached as wheels. They come with this line, on a machine with a network and the same Python; then
`cellkit kaggle-bundle` takes them with `--wheels {wheels}`. Leave out of a copy of the list what the machine has.

```sh
{download}
```
"""


REMEDY = "see that the machine has them, or bundle again with a lock that has them: --lock FILE"
ALONE = """
The model needs these too, and they are not in `{required}`, as the lock has none of them: {alone}. Where the notebook runs they
must be there before it does; {remedy}.
"""


def notebook(profile: str) -> dict[str, Any]:
    """Return the notebook that writes a submission, in the form of its file."""
    column = get_profile(profile).columns[0]
    texts = [
        ("markdown", TITLE.format(profile=profile)),
        ("code", PLACES),
        ("markdown", PACKAGES),
        ("code", INSTALL.format(wheels=WHEELS)),
        ("markdown", FILES),
        ("code", CHECK),
        ("markdown", SUBMIT.format(column=column)),
        ("code", RUN),
    ]
    cells = []
    for number, (kind, text) in enumerate(texts, 1):
        more = {"execution_count": None, "outputs": []} if kind == "code" else {}
        tags = {"tags": ["parameters"]} if text == PLACES else {}
        cells.append({"cell_type": kind, "id": f"submit-{number:02d}", "metadata": tags, "source": text, **more})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def readme(name: str, profile: str, needed: int, copied: int, alone: Sequence[str] = ()) -> str:
    """Return how a bundle is used, as Markdown.

    Parameters
    ----------
    needed, copied : int
        Packages that a prediction takes, and wheels of them in the bundle.
    alone : sequence of str
        Packages that the model takes besides, and no lock has.
    """
    how = {"required": REQUIRED, "wheels": WHEELS, "download": download_line(REQUIRED)}
    text = ABOUT.format(name=name, profile=profile, needed=needed, copied=copied, **how)
    names = ", ".join(f"`{package}`" for package in alone)
    return text + (ALONE.format(required=REQUIRED, alone=names, remedy=REMEDY) if alone else "")
