"""Real microscope files, measured in their own values."""

from __future__ import annotations

import numpy as np
import pytest
from measure_cases import assert_as_regionprops
from scipy import ndimage

from cellkit.cells.instances import Instances
from cellkit.measure.channels import raw_channels
from cellkit.measure.table import measure
from cellkit.microscope.convert import Conversion
from cellkit.microscope.open import open_file

FILES = (
    "ometiff/FOV7_HV110_P0500510000.ome.tiff",
    "nd2/example-multichannel.nd2",
    "nd2/example-zstack.nd2",
    "lif/LeicaLASX_wavelength-sweep_example.lif",
    "tiff/5channel.tif",
    "tiff/piximi_8b_3c_composite_FluorescentCells.tif",
)

pytestmark = pytest.mark.realdata


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["max", "mean"])
def test_every_channel_is_the_planes_of_the_file(data_folder, name, how):
    with open_file(data_folder / "raw_formats" / name) as opened:
        scene = next(k for k, series in enumerate(opened.info.series) if not series.problem)
        series = opened.info.series[scene]
        channels = raw_channels(opened, scene, 0, Conversion(projection=how))
        assert len(channels) == len(series.channels)
        for k, (name, plane) in enumerate(channels.items()):
            planes = np.stack([opened.plane(scene, 0, z, k) for z in range(series.size("Z"))])
            wanted = planes.max(axis=0) if how == "max" or len(planes) == 1 else planes.mean(axis=0)
            np.testing.assert_array_equal(plane(), wanted, err_msg=name)


@pytest.mark.parametrize("name", FILES[1:3])
def test_sixteen_bits_of_a_camera_are_measured_as_regionprops_measures_them(data_folder, name):
    from skimage.filters import threshold_otsu

    with open_file(data_folder / "raw_formats" / name) as opened:
        channels = {channel: plane() for channel, plane in raw_channels(opened).items()}
    first = next(iter(channels.values()))
    assert first.dtype == np.uint16 and first.max() > 255
    labels = ndimage.label(first > threshold_otsu(first))[0].astype(np.int32)
    table = measure(Instances.from_labels(labels), channels)
    assert len(table) > 10
    assert_as_regionprops(table, labels, channels)
