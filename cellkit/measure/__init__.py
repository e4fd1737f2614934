"""How large, how round, how bright: a table with one row per cell, from its pixels and the raw channels of its file.

It may import `cells`, `config`, `formats`, `microscope`, `sources` and the ground.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
