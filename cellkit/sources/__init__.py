"""Data sets: one file for each layout of folders, and what becomes of their images.

It may import `cells`, `config`, `formats`, `microscope`, `scores` and the ground.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
