"""From a microscope file to an 8-bit picture: one reader for each maker, light, conversion, quality.

It may import `cells` and the ground.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
