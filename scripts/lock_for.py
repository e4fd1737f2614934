"""Writes the lock for a container to standard output.

python scripts/lock_for.py cuda requirements/lock.txt             # all of it
python scripts/lock_for.py cpu requirements/lock.txt              # without the compiler for GPUs
python scripts/lock_for.py cpu requirements/lock.txt --no-torch   # torch comes from elsewhere, built for processors alone
python scripts/lock_for.py cpu requirements/lock.txt --only-torch # names and versions of what comes from there
"""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from pathlib import Path

FOR_GPUS = ("triton", "cuda-*")  # torch runs on a processor without them
LINKED = ("nvidia-*",)  # the torch that the lock names does not start without them
TORCH = ("torch", "torchvision")


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """Return the name and the lines, pin and hashes, of each package of a lock."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line[:1].strip():
            found.append((line.partition("==")[0], []))
        found[-1][1].append(line)
    return found


def lock_for(device: str, text: str, torch: str = "") -> str:
    """Return the part of a lock that a device needs; `torch` is "", "--no-torch" or "--only-torch"."""
    packages = blocks(text)
    if torch == "--only-torch":
        return "".join(lines[0].split(" ")[0] + "\n" for name, lines in packages if name in TORCH)
    out = (FOR_GPUS if device == "cpu" or torch else ()) + (LINKED + TORCH if torch else ())
    return "".join("\n".join(lines) + "\n" for name, lines in packages if not any(fnmatch(name, one) for one in out))


if __name__ == "__main__":
    device, path, *rest = sys.argv[1:]
    if device not in ("cpu", "cuda"):
        raise SystemExit(f"DEVICE is '{device}': use cpu or cuda")
    sys.stdout.write(lock_for(device, Path(path).read_text(encoding="utf-8"), *rest))
