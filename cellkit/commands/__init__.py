"""The command line: one file for each command, its flags and its few lines.

It may import every folder; nobody imports it.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
