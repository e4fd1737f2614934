#!/bin/sh
# Installs cellkit by its lock where a notebook is hosted, on Colab or Kaggle; the notebooks call it there. The torch that is
# there, built for that machine's GPU, stays where it is new enough.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
new='from importlib.metadata import version as v; t = [tuple(map(int, v(n).split("+")[0].split(".")[:2])) for n in ("torch", "torchvision")]'
part=$("$python" -c "$new; print('--no-torch' if t[0] >= (2, 10) and t[1] >= (0, 25) else '')" 2>/dev/null || true)
# shellcheck disable=SC2086
"$python" scripts/lock_for.py cuda requirements/lock.txt $part > hosted.txt
"$python" -m pip install --quiet --no-deps --require-hashes -r hosted.txt
"$python" -m pip install --quiet --no-deps --no-build-isolation --editable .
rm hosted.txt
