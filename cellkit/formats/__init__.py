"""Other people's files, there and back: one file for each format, with read and write.

It may import `cells`, `microscope` and the ground.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
