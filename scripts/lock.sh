#!/bin/sh
# Writes requirements/lock.txt (what runs), requirements/dev.txt (what tests it) and requirements/docs.txt (what builds the
# manual), the last two without what the first already holds.
# Needs uv. No address is written: the index is whatever the machine is set up with.
set -eu
cd "$(dirname "$0")/.."
UV_OPTS="--universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet"
# shellcheck disable=SC2086
uv pip compile $UV_OPTS requirements/build.in pyproject.toml -c requirements/pins.txt -o requirements/lock.txt
# shellcheck disable=SC2086
uv pip compile $UV_OPTS requirements/build.in pyproject.toml --extra test --extra bench --extra lora --extra export --extra unet --extra app --extra large --extra cluster --extra anndata --extra parquet --extra tensorboard --override requirements/overrides.txt -c requirements/lock.txt -c requirements/pins.txt -o requirements/dev.all
# shellcheck disable=SC2086
uv pip compile $UV_OPTS requirements/build.in pyproject.toml --extra docs -c requirements/dev.all -c requirements/pins.txt -o requirements/docs.all
python3 - <<'PY'
from pathlib import Path
def blocks(path):
    out, block = {}, []
    for line in Path(path).read_text().splitlines():
        if line[:1].strip() and not line.startswith("#"):
            block = out.setdefault(line.split(" \\")[0].strip(), [])
        block.append(line)
    return out
lock = blocks("requirements/lock.txt")
for path in map(Path, ("requirements/dev.all", "requirements/docs.all")):
    path.with_suffix(".txt").write_text("".join("\n".join(b) + "\n" for k, b in blocks(path).items() if k not in lock))
    path.unlink()
PY
