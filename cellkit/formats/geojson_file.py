"""The text of a GeoJSON file: unpacked, parsed, and whether cellkit wrote it as it is."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellkit.errors import UserError
from cellkit.files import decoded

OURS = "cellkit"  # a member of the FeatureCollection that cellkit writes, which QuPath drops when it saves
LARGEST_BYTES, SMALL_BYTES, MOST_PACKED = 2**31, 2**20, 200  # unpacked; above a megabyte nothing is packed better


def top_of(path: str | Path) -> tuple[list, dict[str, Any]]:
    """Return the features of a file, and what cellkit noted beside them, empty where it did not write the file.

    Raises
    ------
    UserError
        It is no GeoJSON, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file at {path}", "give a GeoJSON file")
    try:
        data = json.loads(decoded(_unpacked(path)))
    except (ValueError, RecursionError, EOFError, OSError, zlib.error) as error:
        raise UserError(
            f"{path} is no JSON: {str(error)[:80]}", "export the objects again (QuPath: File, Export objects)"
        ) from error
    if isinstance(data, dict) and data.get("type") == "Feature":
        data = [data]
    ours = data.get(OURS) if isinstance(data, dict) else None
    features = data.get("features") if isinstance(data, dict) else data
    if not isinstance(features, list):
        raise UserError(f"{path} is no GeoJSON: it has no list of features", "export a FeatureCollection")
    return features, ours if isinstance(ours, dict) else {}


def stamp_of_features(features: Sequence[Any]) -> str:
    """Return what tells later whether features are still as they were: a hash of all that they say."""
    digest = hashlib.sha256()
    for feature in features:
        digest.update(json.dumps(feature).encode())
    return digest.hexdigest()[:32]


def is_as_written(features: Sequence[Any], ours: Mapping[str, Any]) -> bool:
    """Tell whether nobody changed the features of a file since cellkit wrote it."""
    return bool(ours) and ours.get("stamp") == stamp_of_features(features)


def _unpacked(path: Path) -> bytes:
    """Return the text of a file, unpacked where it is gzip, but not for ever."""
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    packed = path.stat().st_size
    most = min(LARGEST_BYTES, max(SMALL_BYTES, MOST_PACKED * packed))
    with gzip.open(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path} unpacks from {packed} bytes to more than {most}", "export the objects again, unpacked")
    return content
