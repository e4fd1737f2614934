"""Cells drawn into the run folder, with exact truth: files as a microscope would write them."""

from __future__ import annotations

from cellkit.sources.microscope import classes, read

__all__ = ["classes", "read"]
