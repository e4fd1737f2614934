"""Scale bars: round lengths of about a fifth of the width, in every picture of images, and none where nothing is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellkit.cells.instances import Instances
from cellkit.show.conversion import show_channels, show_planes
from cellkit.show.overlays import show_errors, show_image, show_overlay, show_worst
from cellkit.show.sheets import show_crops, show_sheet
from cellkit.show.style import NAME, bar_um, draw_bar, new_figure


def bars(*axes) -> list:
    """The lines of scale bars on Axes."""
    return [
        one for ax in axes for one in ax.findobj(lambda artist: artist.get_gid() == NAME) if hasattr(one, "get_xdata")
    ]


@given(st.integers(1, 100_000), st.floats(1e-3, 100))
def test_a_bar_is_round_and_about_a_fifth_of_the_width(width_px, um_per_px):
    um = bar_um(width_px, um_per_px)
    assert 0.12 < um / um_per_px / width_px < 0.32
    assert f"{um:e}"[0] in "125" and float(f"{um:e}"[1:].split("e")[0] or 0) == 0


@pytest.mark.parametrize("um_per_px", [math.nan, 0.0, -0.5, math.inf, -math.inf, 1e300, 1e-300])
def test_nothing_is_drawn_where_the_pixel_size_is_not_known(um_per_px):
    ax = new_figure(2, 2).subplots()
    show_image(np.zeros((40, 60, 3), np.uint8), ax, um_per_px=um_per_px)
    assert bars(ax) == [] and not ax.texts


def test_the_bar_has_the_length_it_says_and_lies_inside(drawn):
    ax = new_figure(3, 3).subplots()
    show_image(np.zeros((40, 60, 3), np.uint8), ax, um_per_px=0.5)
    (bar,) = bars(ax)
    begin, end = bar.get_xdata()
    assert (end - begin) * 60 * 0.5 == pytest.approx(5.0) and 0 < begin < end < 1
    assert ax.texts[0].get_text() == "5 µm"
    ax.figure.set_dpi(100)
    ax.figure.canvas.draw()
    inside, text = ax.get_window_extent(), ax.texts[0].get_window_extent()
    assert inside.x0 < text.x0 and text.x1 < inside.x1 and inside.y0 < text.y0
    assert text.y0 > bar.get_window_extent().y1  # above its bar, not on it


@pytest.mark.parametrize("ground", [0, 255])
def test_the_bar_is_seen_on_dark_and_on_bright(ground):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((3, 3))
    ax = figure.add_axes((0, 0, 1, 1))
    show_image(np.full((60, 60), ground, np.uint8), ax)
    draw_bar(ax, 0.5)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., 0]
    corner = pixels[-60:, -120:]
    assert corner.min() < 30 and corner.max() > 225


def test_every_picture_of_images_has_one(drawn):
    data = replace(drawn, records=[replace(r, um_per_px=0.45) for r in drawn.records])
    image, cells = data[3]
    how = {"um_per_px": 0.45}
    figure = lambda: new_figure(6, 3)  # noqa: E731
    assert len(bars(show_overlay(image, cells, cells, figure().subplots(), **how))) == 1
    assert len(bars(show_errors(image, cells, cells, figure().subplots(), **how))) == 1
    assert len(bars(show_worst(data, data.instances, figure().subplots()))) == 1
    assert len(bars(*show_channels(image, figure=figure(), **how))) == 1
    assert len(bars(*show_planes(image.transpose(2, 0, 1), "abc", image, figure=figure(), **how))) == 4
    assert len(bars(*show_sheet(data, n=4, figure=figure()).flat)) == 1  # all at one scale
    assert len(bars(*show_crops(data, n=3, figure=figure()).flat)) == 1
    mixed = [replace(r, um_per_px=(0.45, 0.9, math.nan)[k % 3]) for k, r in enumerate(data.records)]
    mixed = replace(data, records=mixed)
    assert len(bars(*show_sheet(mixed, n=6, figure=figure()).flat)) == 4
    assert not bars(*show_sheet(drawn, n=4, figure=figure()).flat)
    assert not bars(*show_crops(drawn, n=3, figure=figure()).flat)


def test_the_planes_of_a_file_that_was_scaled_have_their_own_length():
    planes, image = np.zeros((1, 80, 120)), np.zeros((40, 60, 3), np.uint8)  # halved
    plane, _, picture = show_planes(planes, "a", image, figure=new_figure(6, 3), um_per_px=1.0)
    lengths = [np.ptp(bars(ax)[0].get_xdata()) for ax in (plane, picture)]
    assert lengths[0] == pytest.approx(lengths[1]) and plane.texts[0].get_text() == picture.texts[0].get_text()


def test_no_cells_no_crash():
    empty = Instances.empty((40, 60))
    ax = show_overlay(np.zeros((40, 60), np.uint8), empty, ax=new_figure(2, 2).subplots(), um_per_px=1.0)
    assert len(bars(ax)) == 1
