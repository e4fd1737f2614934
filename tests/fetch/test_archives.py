"""Archives that try to leave their folder, overwrite, link, or fill the disk: refused, and nothing is written (fault 44)."""

import errno
import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellkit.errors import UserError
from cellkit.fetch import archives
from cellkit.fetch.archives import Bad, check_archive, checked_name, unpack
from cellkit.machine import NoRoom

FILES = {"a.png": b"one", "masks/a.png": b"two", "masks/deep/b.png": b""}


def make_zip(path: Path, files: dict[str, bytes], attributes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (attributes or {}).get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], **special) -> Path:
    """special: kind (a tarfile type) and linkname of one more member, called "odd"."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if special:
            info = tarfile.TarInfo("odd")
            info.type, info.linkname = special["kind"], special.get("linkname", "")
            archive.addfile(info)
    return path


MAKERS = {"zip": make_zip, "tar.gz": make_tar}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def refused(tmp_path):
    """Unpack, check that it is refused with these words and that nothing at all was written."""

    def call(path: Path, words: str, **limits) -> None:
        before = contents(tmp_path)
        for act in (lambda: check_archive(path, **limits), lambda: unpack(path, tmp_path / "deep/er/out", **limits)):
            with pytest.raises(UserError, match=words) as caught:
                act()
            assert len(str(caught.value).splitlines()) == 2
            assert path.name in str(caught.value)
        assert contents(tmp_path) == before
        assert [child for child in (tmp_path / "deep/er").glob("*")] == []

    return call


@pytest.fixture(params=MAKERS)
def make(request, tmp_path):
    return lambda files, **how: MAKERS[request.param](tmp_path / f"a.{request.param}", files, **how)


class TestGood:
    def test_everything_appears(self, make, tmp_path):
        path = make(FILES)
        sizes = {name: len(content) for name, content in FILES.items()}
        assert check_archive(path) == sizes
        assert unpack(path, tmp_path / "out") == sizes
        assert contents(tmp_path / "out") == FILES
        assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "out"]

    def test_a_single_folder_of_that_name_is_not_repeated(self, make, tmp_path):
        path = make({"./images/a.png": b"x", "images/b/c.png": b"yy", "__MACOSX/images/._a.png": b"z"})
        assert unpack(path, tmp_path / "images") == {"a.png": 1, "b/c.png": 2}
        assert contents(tmp_path / "images") == {"a.png": b"x", "b/c.png": b"yy"}

    def test_a_single_folder_of_another_name_stays(self, make, tmp_path):
        unpack(make({"train/a.png": b"x"}), tmp_path / "images")
        assert contents(tmp_path / "images") == {"train/a.png": b"x"}

    def test_what_a_mac_adds_is_left_out(self, make):
        path = make({"a.png": b"x", ".DS_Store": b"y", "b/._a.png": b"z", "__MACOSX/a": b"w", "b/.keep": b""})
        assert check_archive(path) == {"a.png": 1, "b/.keep": 0}

    def test_names_of_all_kinds(self, make, tmp_path):
        files = dict.fromkeys(["ä ö.png", "-x", "{a}.png", "日本.tif", "con.txt", "a" * 250 + ".tif"], b"1")
        unpack(make(files), tmp_path / "out")
        assert contents(tmp_path / "out") == files

    def test_left_over_of_a_killed_one_is_cleared(self, make, tmp_path):
        (tmp_path / ".out.unpacking-abc").mkdir()
        (tmp_path / ".out.unpacking-abc/half").write_bytes(b"x")
        path = make(FILES)
        unpack(path, tmp_path / "out")
        assert not (tmp_path / ".out.unpacking-abc").exists()

    def test_never_over_something(self, make, tmp_path):
        (tmp_path / "out").mkdir()
        with pytest.raises(UserError, match="exists already"):
            unpack(make(FILES), tmp_path / "out")

    def test_no_room(self, make, tmp_path, monkeypatch):
        usage = archives.shutil.disk_usage(tmp_path)
        monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage._replace(free=50_000_000))
        with pytest.raises(NoRoom, match="MB free"):
            unpack(make(FILES), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_the_disk_fills_up(self, make, tmp_path, monkeypatch):  # fault 38
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(archives, "_write", full)
        with pytest.raises(NoRoom, match="the disk is full"):
            unpack(make(FILES), tmp_path / "out")
        assert len(list(tmp_path.iterdir())) == 1


class TestNames:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("../evil.png", "outside the folder"),
            ("a/../../evil.png", "outside the folder"),
            ("a/..", "outside the folder"),
            ("/etc/evil", "absolute path"),
            ("//host/evil", "absolute path"),
            ("C:/evil", "absolute path"),
            ("C:evil", "absolute path"),
            ("..\\evil.png", "backslash"),
            ("a\nb.png", "control character"),
            ("x" * 256, "too long"),
            ("/".join("abcde" * 20), "too long"),
        ],
    )
    def test_refused(self, make, refused, name, words):
        refused(make({"good.png": b"x", name: b"evil"}), words)

    def test_a_name_with_a_nul(self, refused, tmp_path):
        path = make_zip(tmp_path / "a.zip", {"good.png": b"x", "evil?../x": b"y"})
        path.write_bytes(path.read_bytes().replace(b"evil?", b"evil\0"))
        refused(path, "control character")

    @pytest.mark.parametrize(
        "names", [("a.png", "A.png"), ("ß.png", "SS.png"), ("\u00e9.png", "e\u0301.png"), ("b/x", "B/y")]
    )
    def test_names_that_differ_in_case_alone(self, make, refused, names):  # fault 25
        refused(make(dict.fromkeys(names, b"x")), "(would be the same file|in each other's place)")

    def test_a_file_where_a_folder_is(self, make, refused):
        refused(make({"a": b"x", "a/b": b"y"}), "in each other's place")
        refused(make({"a/b": b"y", "a": b"x"}), "in each other's place")

    def test_twice_the_same(self, refused, tmp_path):
        with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("a.png", b"good")
            archive.writestr("a.png", b"evil")
        refused(tmp_path / "a.zip", "would be the same file")

    @given(st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "", "a", "b c"]), max_size=8).map("/".join))
    def test_what_is_accepted_stays_inside(self, name):
        try:
            inside = checked_name(name)
        except Bad:
            return
        root = Path("/data/set").resolve()
        assert inside == "" or root in Path(os.path.normpath(root / inside)).parents
        assert checked_name(inside) == inside


class TestKinds:
    def test_symbolic_link_in_a_zip(self, refused, tmp_path):
        odd = {"odd": stat.S_IFLNK | 0o777}
        refused(make_zip(tmp_path / "a.zip", {"a": b"x", "odd": b"/etc/passwd"}, odd), "'odd' is a symbolic link")

    def test_device_in_a_zip(self, refused, tmp_path):
        refused(make_zip(tmp_path / "a.zip", {"odd": b""}, {"odd": stat.S_IFCHR | 0o666}), "no regular file")

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            (tarfile.SYMTYPE, "a symbolic link"),
            (tarfile.LNKTYPE, "a hard link"),
            (tarfile.CHRTYPE, "a device"),
            (tarfile.BLKTYPE, "a device"),
            (tarfile.FIFOTYPE, "a pipe"),
        ],
    )
    def test_in_a_tar(self, refused, tmp_path, kind, words):
        path = make_tar(tmp_path / "a.tar.gz", {"a.png": b"x"}, kind=kind, linkname="../../etc")
        refused(path, f"member 'odd' is {words}")

    def test_encrypted(self, refused, tmp_path):
        path = make_zip(tmp_path / "a.zip", {"a.png": b"x"})
        content = bytearray(path.read_bytes())
        content[content.index(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(content)
        refused(path, "is encrypted")


class TestSizes:
    def test_a_bomb(self, make, refused):
        refused(make({"a": bytes(30_000_000), "b": bytes(30_000_000)}), "larger than 100 times its own")

    def test_small_files_may_shrink_as_they_like(self, make):
        assert check_archive(make({"a": bytes(5_000_000)})) == {"a": 5_000_000}

    def test_too_large_in_all(self, make, refused):
        refused(make({"a": os.urandom(4000), "b": os.urandom(4000)}), "larger than 5,000 bytes", max_bytes=5000)

    def test_too_many(self, make, refused, monkeypatch):
        monkeypatch.setattr(archives, "MAX_MEMBERS", 10)
        refused(make({f"{k}.txt": b"x" for k in range(11)}), "more than 10 members")

    def test_a_bomb_is_not_unpacked_to_be_found(self, tmp_path, refused):
        """A tar's header says 10 TB; not one byte of it is there."""
        info = tarfile.TarInfo("big")
        info.size = 10**13
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT)))
        refused(path, "larger than")

    def test_a_header_that_fills_the_memory(self, tmp_path, refused):
        header = tarfile.TarInfo("pax")
        header.type, header.size = tarfile.XHDTYPE, 200_000_000
        path = tmp_path / "a.tar.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(header.tobuf(tarfile.USTAR_FORMAT))
            file.write(bytes(1_000_000))
        refused(path, "a header of it claims")

    def test_says_less_than_it_holds(self, tmp_path):
        """The directory of the zip says 10 bytes; behind it are 1,000."""
        path = make_zip(tmp_path / "a.zip", {"a.png": b"x" * 1000})
        content = bytearray(path.read_bytes())
        at = content.index(b"PK\x01\x02")
        struct.pack_into("<I", content, at + 24, 10)
        path.write_bytes(content)
        with pytest.raises(UserError, match="no whole archive"):
            unpack(path, tmp_path / "out")
        assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


class TestBroken:
    @pytest.mark.parametrize("keep", [0, 3, 60, -10])
    def test_cut_short(self, make, tmp_path, keep):
        path = make({"a": os.urandom(200), "b": os.urandom(200)})
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(UserError, match="no whole archive|neither a zip nor"):
            unpack(path, tmp_path / "out")
        assert [p.name for p in tmp_path.iterdir()] == [path.name]

    def test_one_byte_other(self, make, tmp_path):
        path = make({"a": os.urandom(2000)})
        content = bytearray(path.read_bytes())
        content[1000] ^= 255
        path.write_bytes(content)
        with pytest.raises(UserError, match="no whole archive|goes on behind"):
            unpack(path, tmp_path / "out")
        assert [p.name for p in tmp_path.iterdir()] == [path.name]

    def test_a_damaged_stream(self, make, tmp_path):
        path = make({"a": b"0123456789" * 5000 + os.urandom(500)})
        content = bytearray(path.read_bytes())
        content[60:90] = bytes(30)
        path.write_bytes(content)
        with pytest.raises(UserError, match="no whole archive|goes on behind"):
            unpack(path, tmp_path / "out")

    def test_a_damaged_header_ends_a_tar_silently_but_not_here(self, tmp_path, refused):
        whole = io.BytesIO()
        with tarfile.open(fileobj=whole, mode="w") as archive:
            for name in "ab":
                info = tarfile.TarInfo(name)
                info.size = 3
                archive.addfile(info, io.BytesIO(b"abc"))
        content = bytearray(whole.getvalue())
        content[1024] ^= 1  # the name of the second member
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress(bytes(content)))
        refused(path, "behind its last readable member")

    def test_not_an_archive(self, refused, tmp_path):
        (tmp_path / "a.zip").write_bytes(b"<html>please sign in</html>")
        refused(tmp_path / "a.zip", "neither a zip nor a tar.gz")

    def test_nothing_in_it(self, make, refused):
        refused(make({}), "holds no file")
