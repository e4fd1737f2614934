"""A prediction that was killed goes on, and takes up only what the same settings made of the same images."""

import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import write_png
from predict_cases import THRESHOLD, folder  # noqa: F401

from cellkit.predict.files import predict_files
from cellkit.predict.model import find_model


class TestResume:
    def test_killed_and_repeated_is_the_same_as_not_killed(self, drawn, tmp_path):  # fault 39
        for k in range(40):
            write_png(tmp_path / f"in/{k:02d}.png", drawn.image(k % 6))
        out, parts = tmp_path / "out.json", tmp_path / "out.json.parts"
        command = [sys.executable, "-m", "cellkit", "predict", "threshold", str(tmp_path / "in"), "--diameter", "30"]
        process = subprocess.Popen([*command, "-o", str(out), "--labels", str(tmp_path / "labels")])
        until = time.monotonic() + 60
        while len(list(parts.glob("[!.]*.json"))) < 3 and time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists()
        shutil.rmtree(tmp_path / "labels")
        done = predict_files(THRESHOLD, [tmp_path / "in"], out, tmp_path / "labels")
        assert 3 <= done.resumed < 40
        predict_files(THRESHOLD, [tmp_path / "in"], tmp_path / "whole.json", tmp_path / "whole")
        assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
        assert len(list((tmp_path / "labels").glob("*.tif"))) == 40, "labels of resumed images are written again"
        for path in (tmp_path / "whole").iterdir():
            assert path.read_bytes() == (tmp_path / "labels" / path.name).read_bytes()
        assert not parts.exists()

    @pytest.fixture
    def half_done(self, folder, tmp_path):
        """Two images, of which the first is done, as if the process had been killed then."""
        for name in ("0.png", "1.png"):
            shutil.copy(folder / name, tmp_path / name)
        images, out = [tmp_path / "0.png", tmp_path / "1.png"], tmp_path / "out.json"
        predict_files(THRESHOLD, images, out)
        finished = out.read_bytes()
        out.unlink()

        def stop(*_):
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cellkit.predict.files._assemble", stop)
            with pytest.raises(KeyboardInterrupt):
                predict_files(THRESHOLD, images[:1], out)
        assert len(list((tmp_path / "out.json.parts").glob("*.json"))) == 1
        return images, out, finished

    def test_what_is_done_is_taken_up(self, half_done):
        images, out, finished = half_done
        assert predict_files(THRESHOLD, images, out).resumed == 1
        assert out.read_bytes() == finished

    def test_but_not_with_other_settings_or_another_image(self, half_done, drawn):
        images, out, _ = half_done
        write_png(images[0], drawn.image(4))
        assert predict_files(THRESHOLD, images, out).resumed == 0

    def test_nor_with_other_settings(self, half_done):
        images, out, _ = half_done
        assert predict_files(find_model("threshold", {"diameter_px": 31}), images, out).resumed == 0

    def test_nor_where_an_overlay_is_still_to_be_drawn(self, half_done, tmp_path):
        images, out, _ = half_done
        done = predict_files(THRESHOLD, images, out, overlays=tmp_path / "overlays")
        assert done.resumed == 0
        assert sorted(path.name for path in (tmp_path / "overlays").iterdir()) == ["0.png", "1.png"]

    def test_a_picture_that_cannot_be_read_any_more(self, half_done):
        images, out, _ = half_done
        images[1].write_bytes(b"\x89PNG")
        done = predict_files(THRESHOLD, images, out)
        assert (done.images, done.resumed, len(done.quarantined)) == (1, 1, 1)
