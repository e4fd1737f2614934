"""Writes what a lock installs as a bill of materials (CycloneDX 1.6, JSON) to standard output; asks no network.

python scripts/sbom.py requirements/lock.txt > cellkit.cdx.json

Every file that the lock allows is named by its sha256. The same lock gives the same bytes: there is no date, and the serial
number is made of the content.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from pathlib import Path
from typing import Any

from lock_for import blocks

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"(?P<name>[^=\s]+)==(?P<version>[^\s;]+)(?:\s*;\s*(?P<marker>.*?))?\s*\\?")
HASH = re.compile(r"\s*--hash=sha256:([0-9a-f]{64})")


def component(lines: list[str]) -> dict[str, Any]:
    """Return one package of a lock: its pin, and the hashes of its files, in the order of the lock."""
    pin = PIN.fullmatch(lines[0])
    if pin is None:
        raise SystemExit(f"'{lines[0]}' is no pin: wanted NAME==VERSION")
    name = re.sub(r"[-_.]+", "-", pin["name"]).lower()
    purl = f"pkg:pypi/{name}@{pin['version']}"
    files = [found[1] for line in lines[1:] if (found := HASH.match(line))]
    made: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": pin["version"], "purl": purl}
    made["externalReferences"] = [
        {"type": "distribution", "url": purl, "hashes": [{"alg": "SHA-256", "content": one} for one in files]}
    ]
    if pin["marker"]:
        made["properties"] = [{"name": "cellkit:only-where", "value": pin["marker"]}]
    return made


def bill_of(text: str, version: str) -> dict[str, Any]:
    """Return the bill of materials of a lock.

    Parameters
    ----------
    text : str
        The lock: pins, each with its hashes.
    version : str
        Of cellkit.
    """
    whole = {
        "type": "application",
        "bom-ref": f"pkg:generic/cellkit@{version}",
        "name": "cellkit",
        "version": version,
        "purl": f"pkg:generic/cellkit@{version}",  # not pypi: the package of that name there is somebody else's
        "licenses": [{"license": {"id": "MIT"}}],
    }
    parts = [component(lines) for _, lines in blocks(text)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([whole, parts]))}",
        "version": 1,
        "metadata": {"component": whole},
        "components": parts,
        "dependencies": [{"ref": whole["bom-ref"], "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def version_of_code() -> str:
    """Return the version that the code names."""
    code = (ROOT / "cellkit" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', code, re.MULTILINE)[1]


if __name__ == "__main__":
    (path,) = sys.argv[1:]
    bill = bill_of(Path(path).read_text(encoding="utf-8"), version_of_code())
    sys.stdout.write(json.dumps(bill, indent=1) + "\n")
