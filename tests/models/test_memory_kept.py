"""Memory that networks free is kept for their next arrays: fewer page faults, and no more memory than before."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cellkit.machine import keep_freed_memory

CODE = """
import resource, sys
import numpy as np
from cellkit.models import get_backend
if sys.argv[1] == "kept":
    get_backend("threshold")
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(40 * 2**20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_an_array_that_is_freed_is_not_faulted_in_again():
    if not keep_freed_memory():
        pytest.skip("the allocator is not glibc's, or a person has set it")
    faults = {}
    for way in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", CODE, way], capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    assert faults["kept"] < faults["given back"] / 4, faults
