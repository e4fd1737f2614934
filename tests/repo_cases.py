"""Where the repository is, for the tests of its own files."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
