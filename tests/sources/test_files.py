"""Files are written whole or not at all, and known by their content."""

import json
import os
import stat
import subprocess
import sys
import textwrap
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellkit.files import atomic_path, read_json, sha256_file, sha256_tree, write_json, write_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def left_behind(folder) -> list[str]:
    return sorted(path.name for path in folder.rglob(".tmp-*"))


class TestAtomicPath:
    def test_the_file_appears_under_its_name_when_the_block_ends(self, tmp_path):
        target = tmp_path / "new" / "a.txt"
        with atomic_path(target) as temporary:
            temporary.write_text("whole")
            assert not target.exists()
            assert temporary.parent == target.parent
            assert temporary.suffix == ".txt"
        assert target.read_text() == "whole"
        assert left_behind(tmp_path) == []

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_an_error_leaves_what_was_there(self, tmp_path, error):
        target = tmp_path / "a.txt"
        target.write_text("before")
        with pytest.raises(error), atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error
        assert target.read_text() == "before"
        assert left_behind(tmp_path) == []

    def test_a_block_that_removes_its_file_changes_nothing(self, tmp_path):
        (tmp_path / "a.txt").write_text("before")
        with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt") as temporary:
            temporary.unlink()
        assert (tmp_path / "a.txt").read_text() == "before"

    def test_others_may_read_what_the_umask_lets_them(self, tmp_path):
        before = os.umask(0o027)
        try:
            write_text(tmp_path / "a.txt", "x")
            assert os.umask(0o027) == 0o027, "reading the umask leaves it as it is"
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640

    def test_a_full_disk_keeps_the_old_file(self, tmp_path):  # fault 38
        target = tmp_path / "a.bin"
        target.write_bytes(b"before")
        code = f"""
            import resource, signal
            from cellkit.files import atomic_path
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            with atomic_path({str(target)!r}) as temporary:
                temporary.write_bytes(bytes(5000))
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
        assert done.returncode == 1
        assert "File too large" in done.stderr
        assert target.read_bytes() == b"before"
        assert left_behind(tmp_path) == []

    def test_kill_at_any_moment_leaves_one_version_or_the_other(self, tmp_path):  # fault 39
        target = tmp_path / "a.json"
        code = f"""
            from cellkit.files import write_json
            for number in range(10**9):
                write_json({str(target)!r}, [number] * 2000)
        """
        for wait_s in (0.0, 0.013, 0.029):
            process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
            until = time.monotonic() + 10
            while not target.exists() and time.monotonic() < until:
                time.sleep(0.005)
            time.sleep(wait_s)
            process.kill()
            process.wait()
            value = read_json(target)
            assert len(value) == 2000
            assert len(set(value)) == 1
            target.unlink()


class TestText:
    def test_lines_end_the_same_on_every_system(self, tmp_path):
        write_text(tmp_path / "a.txt", "one\ntwo µm\n")
        assert (tmp_path / "a.txt").read_bytes() == "one\ntwo µm\n".encode()

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
    @given(value=JSON)
    def test_json_comes_back(self, tmp_path, value):
        assert read_json(write_json(tmp_path / "a.json", value)) == value

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), {"score": -float("inf")}])
    def test_numbers_that_json_lacks_are_refused(self, tmp_path, bad):  # fault 34
        write_json(tmp_path / "a.json", 1)
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", bad)
        assert read_json(tmp_path / "a.json") == 1

    def test_keys_keep_their_order_and_letters_stay_letters(self, tmp_path):
        write_json(tmp_path / "a.json", {"b": "é", "a": 1})
        assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{"b": "é", "a": 1}\n'

    def test_a_byte_order_mark_is_no_part_of_the_json(self, tmp_path):
        (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([1]).encode())
        assert read_json(tmp_path / "a.json") == [1]


class TestHashes:
    def test_of_a_file_is_the_published_value(self, tmp_path):
        (tmp_path / "a").write_bytes(b"abc")
        assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert sha256_tree(tmp_path / "a") == sha256_file(tmp_path / "a")

    def test_of_a_folder_depends_on_names_and_contents_alone(self, tmp_path):
        for folder in ("one", "two"):
            write_text(tmp_path / folder / "x/a.txt", "a")
            write_text(tmp_path / folder / "b.txt", "b")
        write_text(tmp_path / "two" / ".hidden", "not counted")
        write_text(tmp_path / "two" / ".cache/a.txt", "not counted")
        os.utime(tmp_path / "two" / "b.txt", (0, 0))  # fault 53: times mean nothing
        assert sha256_tree(tmp_path / "one") == sha256_tree(tmp_path / "two")

    @pytest.mark.parametrize(("name", "text"), [("x/a.txt", "A"), ("x/c.txt", "a"), ("a.txt", "a")])
    def test_of_a_folder_changes_with_a_name_or_a_byte(self, tmp_path, name, text):
        write_text(tmp_path / "one/x/a.txt", "a")
        write_text(tmp_path / "two" / name, text)
        assert sha256_tree(tmp_path / "one") != sha256_tree(tmp_path / "two")

    def test_of_nothing_is_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no file or folder"):
            sha256_tree(tmp_path / "none")
