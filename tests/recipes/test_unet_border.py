"""Recipe 11 through `cellkit run`'s own notebook, on drawn cells: it learns the border in few steps, and 06 scores it."""

from __future__ import annotations
