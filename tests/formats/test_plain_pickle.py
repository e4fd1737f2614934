"""Pickled dictionaries of arrays: read as numpy reads them, and nothing that a file names is ever run."""

import os
import pickle
import pickletools
import random
import struct
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellkit.errors import UserError
from cellkit.formats.plain_pickle import ALLOWED, OPCODES, _Unpickler, read_plain_npy

HEADER = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"


def npy(pickled: bytes, header: bytes = HEADER) -> bytes:
    text = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + pickled


def saved(folder: Path, content) -> Path:
    """A file of these bytes, or of this dictionary as numpy writes it."""
    path = folder / "a_seg.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    return path


def refused(folder: Path, content) -> str:
    path = saved(folder, content)
    with pytest.raises(UserError) as error:
        read_plain_npy(path)
    assert str(path) in str(error.value)
    return str(error.value)


def wrapped(value) -> bytes:
    """Pickle of the 0-d object array that np.save makes of a value."""
    array = np.empty((), object)
    array[()] = value
    return pickle.dumps(array, 4)


# ---- what is read --------------------------------------------------------------------------------------------------
PLAIN = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text() | st.binary()
ARRAYS = hnp.arrays(
    hnp.integer_dtypes(endianness="?") | hnp.unsigned_integer_dtypes(endianness="?") | st.sampled_from(
        [np.dtype(x) for x in ("?", "f4", ">f8", "c8", "S3", "U2", ">U2")]
    ),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)  # fmt: skip
VALUES = st.recursive(
    PLAIN | ARRAYS | st.sets(st.integers() | st.text(max_size=3), max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


def assert_same(found, wanted):
    if isinstance(wanted, np.ndarray):
        np.testing.assert_array_equal(found, wanted)
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    elif isinstance(wanted, (list, tuple)):
        assert type(found) is type(wanted) and len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            assert_same(a, b)
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            assert_same(found[key], wanted[key])
    else:
        assert (type(found), found) == (type(wanted), wanted)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.integers(0, 4))
def test_what_numpy_saved_is_read(tmp_path_factory, fields, protocol):
    array = np.empty((), object)
    array[()] = fields
    path = tmp_path_factory.mktemp("npy") / "a_seg.npy"
    path.write_bytes(npy(pickle.dumps(array, protocol)))
    assert_same(read_plain_npy(path), fields)


def test_numpy_scalars_paths_orders_and_shared_parts(tmp_path):
    shared = [1, 2]
    fields = {
        "diameter": np.float64(30.5),
        "flag": np.bool_(True),
        "n": np.int32(7),
        "filename": Path("/data/a.png"),
        "other": PureWindowsPath("C:\\data\\a.png"),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "strided": np.arange(12).reshape(3, 4)[:, ::2],
        "twice": [shared, shared],
        "complex": 1 + 2j,
        "frozen": frozenset({1}),
    }
    found = read_plain_npy(saved(tmp_path, fields))
    assert (found["diameter"], found["flag"], found["n"]) == (30.5, True, 7)
    assert (found["filename"], found["other"]) == ("/data/a.png", "C:\\data\\a.png")
    np.testing.assert_array_equal(found["columns"], fields["columns"])
    np.testing.assert_array_equal(found["strided"], fields["strided"])
    assert found["twice"] == [[1, 2], [1, 2]]
    assert (found["complex"], found["frozen"]) == (1 + 2j, {1})


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_both_of_numpys_names_are_read(tmp_path, core):
    content = wrapped({"masks": np.eye(2, dtype=np.uint16), "x": np.float32(2)}).replace(
        b"\x8c\x16numpy._core.multiarray", b"\x8c" + bytes([len(core) + 11]) + core.encode() + b".multiarray"
    )
    start = content.index(b"\x95")  # drop the frame: its length has changed
    found = read_plain_npy(saved(tmp_path, npy(content[:start] + content[start + 9 :])))
    np.testing.assert_array_equal(found["masks"], np.eye(2))


# ---- attacks -------------------------------------------------------------------------------------------------------
class Runs:
    """What a pickle can do: call anything with anything."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("place", ["value", "inside", "instead"])
def test_a_command_is_not_run(tmp_path, protocol, place):
    ran = tmp_path / "ran"
    attack = Runs(os.system, f"touch {ran}")
    fields = {"value": {"masks": attack}, "inside": {"a": [{"b": (1, attack)}]}, "instead": attack}[place]
    array = np.empty((), object)
    array[()] = fields
    content = npy(pickle.dumps(array, protocol))
    assert "names posix.system" in refused(tmp_path, content) or os.name == "nt"
    assert not ran.exists()
    np.load(tmp_path / "a_seg.npy", allow_pickle=True)
    assert ran.exists(), "the very file runs the command when it is unpickled"


@pytest.mark.parametrize(
    ("call", "arguments", "name"),
    [
        (eval, ("1",), "builtins.eval"),
        (getattr, ("a", "upper"), "builtins.getattr"),
        (bytearray, (2**40,), "builtins.bytearray"),
        (np.load, ("a.npy",), "numpy.load"),
        (np.fromfile, ("a.npy",), "fromfile"),
        (np.zeros, (2,), "numpy"),
        (open, ("a", "w"), "open"),
    ],
)
def test_no_other_name_is_let_through(tmp_path, call, arguments, name):
    message = refused(tmp_path, npy(wrapped({"masks": Runs(call, *arguments)})))
    assert "names" in message and name in message
    assert "nothing of it was run" in message


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"(S'touch x'\nios\nsystem\n.", "opcode INST"),
        (b"Pid\n.", "opcode PERSID"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"cos\nsystem\n.", "names os.system"),
        (b"cnumpy\nndarray\n)R.", "calls a _Name"),
        (b"cnumpy\ndtype\n}b.", "sets the inside of a _Name"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "names os.system"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0dload.__call__\x93.", "names numpy.load"),
        (b"}((I1\nI2\ntI3\nu.", "tuple as the key"),
        (b"]q\x00h\x00a.", "nested more than"),
        (b"N.", "no dictionary but a NoneType"),
        (b"}", "cut short|damaged"),
        (b".", "damaged"),
        (b"", "cut short|damaged"),
        (b"h\x05.", "damaged"),
        (b"I1\n(I2\ne.", "fills a int"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.", "damaged"),
        (b"(" * 10_000 + b".", "no value|damaged|no dictionary"),
        (b"]" * 200 + b"a" * 199 + b".", "nested more than"),
    ],
)
def test_a_pickle_that_no_array_needs_is_refused(tmp_path, pickled, reason):
    import re

    assert re.search(reason, refused(tmp_path, npy(pickled)))


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"\x80\x02\x83\x01\x00.", "opcode EXT2"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "opcode EXT4"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "opcode BINPERSID"),
        (b"\x80\x02cbuiltins\nset\n)\x81.", "opcode NEWOBJ"),
        (b"\x80\x04cbuiltins\nset\n)}\x92.", "opcode NEWOBJ_EX"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "opcode BYTEARRAY8"),
        (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
        (b"(cbuiltins\nset\no.", "opcode OBJ"),
        (b"cnumpy\ndtype\n(S'u1'\ntRS'x'\nS'y'\ntR.", "damaged|calls"),
        (b"cbuiltins\nset\ncbuiltins\nset\nR.", "calls a _Name"),  # arguments that are no tuple
        (b"cnumpy\ndtype\n(S'u1'\ntR)R.", "calls a _Type"),
        (b"(I1\ntR.", "damaged"),
        (b"cbuiltins\nset\n(N}S'__defaults__'\n(I1\ntstb.", "sets the inside of a _Name"),  # by its slots
        (b"cbuiltins\nset\n)R}b.", "sets the inside of a set"),
        (b"cbuiltins\nset\nN(I1\nI2\nu.", "fills a NoneType"),
        (b"cbuiltins\nset\n]a.", "fills a _Name"),
        (b"]I0\nI1\ns.", "fills a list as if it were a dict"),
        (b"\x8b\xff\xff\xff\x7f\x01.", "damaged"),  # LONG4 of two GiB that are not there
        (b"\x8b\xff\xff\xff\xff.", "damaged"),
        (b"I" + b"9" * 100_000 + b"\n.", "damaged"),
        (b"L" + b"9" * 100_000 + b"L\n.", "damaged"),
        (b"\x80\xff}.", "damaged"),
        (b"I1\n\x85" + b"2\x86" * 60 + b"(\x90.", "fills a tuple as if it were a set"),
        (b"I1\n\x85" + b"2\x86" * 60 + b"q\x00\x8f(h\x00\x90.", "a set of other things"),  # hashed for 2**60 steps
        (b"}I1\n\x85" + b"2\x86" * 60 + b"Ns.", "tuple as the key"),
        (b"(I1\n\x85" + b"2\x86" * 60 + b"\x91.", "a set of other things"),
        (b"I1\n" + b"\x85" * 100_000 + b"q\x00}h\x00Ns.", "tuple as the key"),
        (b"\xff.", "damaged"),  # no opcode at all
    ],
)
def test_no_opcode_reaches_further(tmp_path, pickled, reason):
    import re

    assert re.search(reason, refused(tmp_path, npy(pickled)))


def test_what_is_made_of_the_parts_of_a_file_is_bounded(tmp_path):
    """A text of one MB, encoded again a thousand times, would be one GB."""
    text = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\x00"
    again = b"c_codecs\nencode\n(h\x00tR"
    assert "makes more of its parts" in refused(tmp_path, npy(b"(" + text + again * 1000 + b"l."))
    assert "no dictionary but a list" in refused(tmp_path, npy(b"(" + text + again + b"l."))


def test_nothing_is_imported(tmp_path, monkeypatch):
    import builtins

    def forbidden(name, *arguments, **named):
        raise AssertionError(f"{name} was imported")

    path = saved(tmp_path, {"masks": np.eye(3, dtype=np.uint16), "path": Path("a"), "x": np.float32(2), "s": {1}})
    hostile = saved(tmp_path.parent, npy(b"cantigravity\nfly\n)R."))
    monkeypatch.setattr(builtins, "__import__", forbidden)
    read_plain_npy(path)
    with pytest.raises(UserError, match="names antigravity.fly"):
        read_plain_npy(hostile)


def test_a_memo_far_away_takes_no_memory(tmp_path):
    assert read_plain_npy(saved(tmp_path, npy(b"}r\xff\xff\xff\x7f."))) == {}
    assert read_plain_npy(saved(tmp_path, npy(b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f}."))) == {}, "nor a frame of 8 EiB"


def test_doubled_parts_do_not_multiply(tmp_path):
    value = [0]
    for _ in range(45):
        value = [value, value]
    assert len(read_plain_npy(saved(tmp_path, {"a": value}))["a"]) == 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.array([None, {}], object), "array of Python objects"),
        (np.zeros(2, [("x", "f4")]), "of type 'V4'"),
        (np.zeros(2, "M8[s]"), "of type 'M8'"),
        (np.dtype("u2"), "no value"),
        ({(1, 2): 3}, "tuple as the key"),
        (np.ma.masked_array([1], [True]), "names numpy.ma"),
    ],
)
def test_what_is_not_plain_is_refused(tmp_path, value, reason):
    assert reason in refused(tmp_path, {"a": value})


def test_an_array_of_wrong_size_is_refused(tmp_path):
    content = wrapped({"a": np.arange(4, dtype=np.uint8)})
    for wrong in (b"K\x05\x85", b"K\x03\x85"):
        assert "it is damaged" in refused(tmp_path, npy(content.replace(b"K\x04\x85", wrong, 1)))


# ---- what is no such file ------------------------------------------------------------------------------------------
def test_no_file_no_magic_no_dictionary(tmp_path):
    with pytest.raises(UserError, match="no file at"):
        read_plain_npy(tmp_path / "none_seg.npy")
    assert "does not begin as one" in refused(tmp_path, b"")
    assert "does not begin as one" in refused(tmp_path, pickle.dumps({}))
    assert "holds no dictionary but an array" in refused(tmp_path, np.zeros((2, 3)))
    assert "holds no dictionary but a list" in refused(tmp_path, npy(wrapped([1])))
    assert "cut short" in refused(tmp_path, npy(wrapped({}))[:20])
    assert "holds no dictionary but an array" in refused(tmp_path, np.array([{}, {}], object))


def test_cut_anywhere_it_is_refused(tmp_path):
    content = npy(wrapped({"masks": np.eye(3, dtype=np.uint16), "n": [1, {"x": np.float32(2)}]}))
    for size in range(len(content)):
        refused(tmp_path, content[:size])


def test_mangled_files_are_read_or_refused(tmp_path):
    rng = random.Random(0)
    fields = {"masks": np.eye(3, dtype=np.uint16), "n": [1, {"x": np.float32(2)}], "filename": "a.png", "s": {1, 2}}
    good = npy(wrapped(fields))
    read = 0
    for _ in range(2000):
        content = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(10, len(content))] = rng.randrange(256)
        path = saved(tmp_path, bytes(content))
        try:
            read += isinstance(read_plain_npy(path), dict)
        except UserError as error:
            assert str(path) in str(error)
    assert 200 < read < 1800


# ---- tripwires -----------------------------------------------------------------------------------------------------
def test_the_names_and_opcodes_that_are_let_through():
    """A longer list is a decision, not an accident."""
    modules = {name.rpartition(".")[0] for name in ALLOWED}
    assert modules == {"numpy", "numpy.core.multiarray", "numpy._core.multiarray", "builtins", "__builtin__", "_codecs",
                       "pathlib", "pathlib._local"}  # fmt: skip
    assert set(_Unpickler.dispatch) >= {ord(code.code) for code in pickletools.opcodes}
    refused_codes = {code.name for code in pickletools.opcodes} - OPCODES
    for code in pickletools.opcodes:
        refuses = _Unpickler.dispatch[ord(code.code)].__name__ == "refuse"
        assert refuses == (code.name in refused_codes), code.name
    assert refused_codes == {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BYTEARRAY8",
                             "NEXT_BUFFER", "READONLY_BUFFER"}  # fmt: skip
