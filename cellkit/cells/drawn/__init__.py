"""Cells drawn with exact truth: how a field of them lies, how it looks stained or in transmitted light, how a camera sees it.

What is written to files of them is in `cellkit.sources.drawn`.
"""
