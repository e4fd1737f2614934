"""Killed with kill -9 at random points, a labelling and a training that go on end with the same files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

KILLS = int(os.environ.get("CELLKIT_KILLS", "4"))  # CELLKIT_KILLS=20 tries longer


def test_killed_at_random_points_the_files_are_those_of_undisturbed_work(tmp_path):  # fault 39
    command = [sys.executable, str(Path(__file__).with_name("killing.py")), str(tmp_path), "--kills", str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert {name: one["kills"] for name, one in told.items()} == {"label": KILLS, "train": KILLS}
    assert told["label"]["events"] > 20 and told["train"]["events"] > 20, "there are points to be killed at"
    assert told["label"]["files"] == 1 + 5 and told["train"]["files"] > 4
