"""Pages and their two bindings: one HTML file turned with the arrow keys, and a PDF; offline, with the same content.

A `Slide` is a title, a few sentences and a function that draws one picture. The PDF is laid out here by matplotlib, the
HTML by the template beside this file; both call the same drawing.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from cellkit.errors import UserError
from cellkit.files import atomic_path, write_text
from cellkit.show.style import INK, QUIET, STYLE, to_png, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_IN = (10.667, 6.0)  # 16:9; small, so that the pictures' own text is large on the wall
MARGIN_IN, TITLE_IN, FOOT_IN = 0.45, 0.95, 0.42
TEXT_IN, GAP_IN = 3.1, 0.25
WIDE_TEXT_IN = 0.85
TITLE_PT, POINT_PT, CODE_PT, FOOT_PT = 20.0, 11.5, 9.0, 7.5
LEADING = 1.36
ACCENT = "#0072B2"
PICTURE_DPI = 150


@dataclass(frozen=True)
class Slide:
    """One page.

    Parameters
    ----------
    name : str
        Short, for links: "flows".
    title : str
        A sentence.
    points : sequence of str
        What to say; a line that begins with "$ " is a command.
    draw : callable
        Draws into the figure it is given, whose size is `picture_in`.
    alt : str
        What the picture shows, in words.
    foot : str
        Data set, split, convention: where the numbers come from.
    wide : bool
        The picture takes the whole width, below the points.
    """

    name: str
    title: str
    points: Sequence[str]
    draw: Callable[[Figure], object]
    alt: str
    foot: str = ""
    wide: bool = False

    @property
    def picture_in(self) -> tuple[float, float]:
        """Width and height of the picture, in inches of the page."""
        width, height = PAGE_IN[0] - 2 * MARGIN_IN, PAGE_IN[1] - TITLE_IN - FOOT_IN
        return (width, height - WIDE_TEXT_IN) if self.wide else (width - TEXT_IN - GAP_IN, height)

    def _picture(self) -> Figure:
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=self.picture_in, layout="constrained")
            self.draw(figure)
        return figure

    @cached_property
    def svg(self) -> bytes:
        """The picture, for the HTML."""
        return to_svg(self._picture(), PICTURE_DPI)

    @property
    def data(self) -> str:
        """The picture as base64 text."""
        return base64.b64encode(self.svg).decode("ascii")

    @cached_property
    def text_scale(self) -> float:
        """How much smaller than usual the points are set, so that they fit: 1 or less."""
        return fitting_scale(self)

    @property
    def lines(self) -> list[tuple[str, str]]:
        """The points as (kind, text): "code" or "point"."""
        return [("code", text[2:]) if text.startswith("$ ") else ("point", _tied(text)) for text in self.points]

    def page(self, number: int = 1, of: int = 1) -> Figure:
        """Return the whole page as a figure."""
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=PAGE_IN, layout="constrained")
            self.draw(_place_for(figure, self))
            _write(figure, self, number, of)
        return figure

    def _repr_png_(self) -> bytes:
        """Show the page in a notebook."""
        return to_png(self.page(), dpi=110)


@dataclass(frozen=True)
class Deck:
    """Slides in order, and those that could not be made: (name, reason)."""

    title: str
    slides: tuple[Slide, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    def __getitem__(self, name: str) -> Slide:
        """Return a slide by its name."""
        for slide in self.slides:
            if slide.name == name:
                return slide
        known = ", ".join(slide.name for slide in self.slides)
        reason = dict(self.left_out).get(name)
        raise KeyError(f"no slide {name!r}" + (f": {reason}" if reason else f"; there are {known}"))

    def __len__(self) -> int:
        return len(self.slides)

    def __iter__(self) -> Iterator[Slide]:
        return iter(self.slides)


def write_html(deck: Deck, path: str | Path) -> Path:
    """Write the deck as one HTML file: no network; without a script it is a page to scroll and print."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return write_text(path, environment.get_template("deck.html.j2").render(deck=deck))


def write_pdf(deck: Deck, path: str | Path) -> Path:
    """Write the deck as PDF, a page per slide, with text that can be searched: the same bytes for the same run."""
    import matplotlib
    from matplotlib.backends.backend_pdf import PdfPages

    facts = {"Title": deck.title, "Creator": "cellkit", "Producer": None, "CreationDate": None}
    how = matplotlib.rc_context({"pdf.fonttype": 42})
    with how, atomic_path(path) as temporary, PdfPages(temporary, metadata=facts) as pages:
        for number, slide in enumerate(deck, 1):
            pages.savefig(slide.page(number, len(deck)), dpi=PICTURE_DPI)
    return Path(path)


def _tied(text: str) -> str:
    """Keep a number and its unit on one line."""
    text = re.sub(r"(?<=\d) (?=%|px\b|s\b|(?:minute|image|cell)s?\b)", "\u00a0", text)
    return re.sub(r"\bn = (?=\d)", "n\u00a0=\u00a0", text)


# ---- the page as matplotlib lays it out ----------------------------------------------------------------------------
def _place_for(figure: Figure, slide: Slide) -> Figure:
    """Return the part of the page that the picture is drawn into."""
    width, height = slide.picture_in
    top = TITLE_IN + (WIDE_TEXT_IN if slide.wide else 0)
    left = PAGE_IN[0] - MARGIN_IN - width
    columns, rows = (left, width, MARGIN_IN), (top, height, FOOT_IN)
    return figure.subfigures(3, 3, width_ratios=columns, height_ratios=rows, wspace=0, hspace=0)[1, 1]


def _write(figure: Figure, slide: Slide, number: int, of: int) -> None:
    """Write title, points and foot."""
    left, right = MARGIN_IN / PAGE_IN[0], 1 - MARGIN_IN / PAGE_IN[0]
    figure.add_artist(_bar(figure, left))
    how = {"va": "center", "in_layout": False}
    figure.text(left + 0.012, 1 - 0.52 / PAGE_IN[1], slide.title, size=TITLE_PT, weight="bold", **how)
    y = PAGE_IN[1] - TITLE_IN - 0.05
    for kind, size, lines in _set_in_type(slide, slide.text_scale):
        look = {"family": "monospace", "color": ACCENT} if kind == "code" else {"color": INK}
        for line in lines:
            figure.text(left, y / PAGE_IN[1], line, size=size, va="top", in_layout=False, **look)
            y -= LEADING * size / 72
        y -= _space_after(kind, slide.wide) * size / 72
    low = 0.2 / PAGE_IN[1]
    figure.text(left, low, slide.foot, size=FOOT_PT, color=QUIET, **how)
    figure.text(right, low, f"{number} / {of}", size=FOOT_PT, color=QUIET, ha="right", **how)


def _bar(figure: Figure, left: float):
    from matplotlib.patches import Rectangle

    height = 0.36 / PAGE_IN[1]
    place = (left, 1 - 0.52 / PAGE_IN[1] - height / 2)
    return Rectangle(
        place, 0.045 / PAGE_IN[0], height, color=ACCENT, lw=0, transform=figure.transFigure, in_layout=False
    )


def _set_in_type(slide: Slide, scale: float) -> list[tuple[str, float, list[str]]]:
    """Return the points as (kind, size in pt, lines)."""
    width = PAGE_IN[0] - 2 * MARGIN_IN if slide.wide else TEXT_IN
    sizes = {"code": scale * CODE_PT, "point": scale * POINT_PT}
    return [
        (kind, sizes[kind], wrap(text, width, sizes[kind], "monospace" if kind == "code" else "sans-serif"))
        for kind, text in slide.lines
    ]


def _space_after(kind: str, wide: bool) -> float:
    return 0.55 if kind == "code" else 0.1 if wide else 0.62


def fitting_scale(slide: Slide) -> float:
    """Return the largest scale, 1 or less, at which the points fit their place."""
    room = WIDE_TEXT_IN if slide.wide else PAGE_IN[1] - TITLE_IN - FOOT_IN
    for scale in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6):
        typeset = _set_in_type(slide, scale)
        inches = (
            sum((LEADING * len(lines) + _space_after(kind, slide.wide)) * size for kind, size, lines in typeset) / 72
        )
        if inches <= room:
            return scale
    raise UserError(f"slide '{slide.name}' has more text than its page can hold", "say less, or on two pages")


def wrap(text: str, width_in: float, size_pt: float, family: str = "sans-serif") -> list[str]:
    """Break a text into lines no wider than `width_in`; a word wider than that is cut.

    Examples
    --------
    >>> wrap("one two three", 0.9, 12)
    ['one two', 'three']
    """
    lines, line = [], ""
    for word in _pieces(text, width_in, size_pt, family):
        longer = f"{line} {word}" if line else word
        if line and _width_in(longer, size_pt, family) > width_in:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line]


def _pieces(text: str, width_in: float, size_pt: float, family: str) -> Iterator[str]:
    for word in re.split(r"[ \n]+", text.strip()):
        while _width_in(word, size_pt, family) > width_in and len(word) > 1:
            cut = next(
                k for k in range(len(word) - 1, 0, -1) if k == 1 or _width_in(word[:k], size_pt, family) <= width_in
            )
            yield word[:cut]
            word = word[cut:]
        yield word


def _width_in(text: str, size_pt: float, family: str) -> float:
    """Return how wide a text is set, with a little room to spare."""
    words = text.split(" ")
    width = sum(_width_of_word(word, family) for word in words) + (len(words) - 1) * 0.36
    return 1.02 * width * size_pt / 72


@lru_cache(maxsize=10_000)
def _width_of_word(word: str, family: str) -> float:
    """Return the width of a word over the size of its letters."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not word:
        return 0.0
    names = STYLE["font.sans-serif"] if family == "sans-serif" else ["DejaVu Sans Mono"]
    width = TextPath((0, 0), word, size=100, prop=FontProperties(family=names)).get_extents().x1 / 100
    return width + (0.24 if family == "monospace" else 0.0)
