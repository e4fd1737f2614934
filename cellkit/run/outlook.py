"""What a look ahead found: each problem with its remedy."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.config.reading import known_keys
from cellkit.config.sections import Config
from cellkit.sources.listing import SourceImage

ERROR, WARNING = "error", "warning"
MOST_NAMED = 12


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes
    ----------
    severity : {"error", "warning"}
        An error ends the run; with a warning it goes on, and what is named is set aside or not used.
    problem, remedy : str
        What came, and what to do.
    key : str
        The setting it is about, "" where it is about none.
    """

    severity: str
    problem: str
    remedy: str = ""
    key: str = ""

    def told(self) -> str:
        """Return it in two lines."""
        return f"{self.severity}: {self.problem}" + (f"\n  {self.remedy}" if self.remedy else "")


@dataclass
class Outlook:
    """What was found, and what would be run: `records` of the images that can be used, read from `reads`."""

    cfg: Config
    run_dir: Path
    findings: list[Finding] = field(default_factory=list)
    records: list[ImageRecord] = field(default_factory=list)
    instances: list[Instances | None] = field(default_factory=list)
    items: list[SourceImage] = field(default_factory=list)
    root: Path = Path()
    reads: str = ""

    def errors(self) -> list[Finding]:
        """Return the findings that end a run."""
        return [one for one in self.findings if one.severity == ERROR]

    def add(self, severity: str, problem: str, remedy: str = "", key: str = "") -> None:
        """Note a finding, once; without a key, the first setting that its text names."""
        found = Finding(severity, problem, remedy, key or _key_in(f"{problem} {remedy}"))
        if found.problem not in {one.problem for one in self.findings}:
            self.findings.append(found)

    def plan(self) -> str:
        """Return in a line what would be run: images of each split and class, and what is read."""
        parts = []
        for split, kinds in self.counts().items():
            parts.append(f"{split} {', '.join(f'{name} {count}' for name, count in kinds.items())}")
        labels = {"truth": "their labels", "proposed": "labels proposed"}.get(self.cfg.label.use, self.cfg.label.use)
        images = f"{len(self.records)} image(s) ({'; '.join(parts) or 'none'})"
        return f"would run: {images} of {self.reads or 'no data'}; {labels}; into {self.run_dir}"

    def counts(self) -> dict[str, dict[str, int]]:
        """Return {split: {class: images}}; images without a split are "unused", without a class "unknown"."""
        told = Counter((one.split or "unused", one.cell_type or "unknown") for one in self.records)
        splits = [name for name in ("train", "val", "test", "unused") if any(split == name for split, _ in told)]
        return {name: {kind: told[s, kind] for s, kind in sorted(told) if s == name} for name in splits}

    def tell(self) -> list[str]:
        """Return the findings in words, errors first, how many there are, and what would be run."""
        told = [one.told() for one in self.findings]
        warnings = len(told) - len(self.errors())
        told.append(f"{len(self.errors())} error(s), {warnings} warning(s)" if told else "no problem is found")
        return [*told, *([self.plan()] if self.reads else [])]

    def to_json(self) -> dict[str, Any]:
        """Return plain values: ok, errors, warnings, findings, images {split: {class: count}}, reads, run."""
        count = Counter(one.severity for one in self.findings)
        return {
            "ok": not count[ERROR],
            "errors": count[ERROR],
            "warnings": count[WARNING],
            "findings": [vars(one) for one in self.findings],
            "images": self.counts(),
            "reads": self.reads,
            "run": str(self.run_dir),
        }


def _key_in(text: str) -> str:
    words = re.findall(r"[a-z_]+(?:\.[a-z_]+)+|[a-z_]+(?=:)", text)
    return next((word for word in words if word in known_keys()), "")
