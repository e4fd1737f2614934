"""Memory that networks free is kept for their next arrays, not asked of the system for each anew."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from cellkit.machine import keep_freed_memory

CODE = """
import ctypes, sys
import numpy as np
from cellkit.models import get_backend
if sys.argv[1] == "kept":
    get_backend("threshold")
mallinfo2 = ctypes.CDLL(None).mallinfo2
class Info(ctypes.Structure):
    _fields_ = [("values", ctypes.c_size_t * 10)]  # the fifth: bytes asked of the system array by array
mallinfo2.restype = Info
before = mallinfo2().values[4]
array = np.ones(40 * 2**20, np.uint8)
print(mallinfo2().values[4] - before)
"""


def test_an_array_comes_from_memory_that_the_process_keeps():
    if not keep_freed_memory() or not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("the allocator is not glibc's of 2.33 or later, or a person has set it")
    asked = {}
    for way in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", CODE, way], capture_output=True, text=True, check=True)
        asked[way] = int(done.stdout)
    assert asked["kept"] == 0 and asked["given back"] >= 40 * 2**20, asked
