"""Cells drawn into the run folder, with exact truth: files as a microscope would write them, see `cellkit.synthetic`."""

from __future__ import annotations

from cellkit.source_microscope import classes, read

__all__ = ["classes", "read"]
