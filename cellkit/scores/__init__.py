"""How good: one file for each convention of scoring, the matching they share, intervals, and why a score is lost.

No file is opened here; it may import `cells` and the ground.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
