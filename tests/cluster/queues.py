"""Stand-ins for the commands of SLURM, LSF, PBS and SGE: they run the job script that they are given, here, in the background."""

from __future__ import annotations

import sys
from pathlib import Path

SAYS = {
    "sbatch": "Submitted batch job {0}",
    "bsub": "Job <{0}> is submitted to default queue <normal>.",
    "qsub": "{0}.queue.example",
}
STAND_IN = r"""#!{python}
import os, re, signal, subprocess, sys
from pathlib import Path

home, name = Path({home!r}), Path(sys.argv[0]).name
if name in ("scancel", "bkill", "qdel"):
    (home / (sys.argv[1] + ".cancelled")).touch()
    try:
        os.killpg(int((home / (sys.argv[1] + ".pid")).read_text()), signal.SIGTERM)
    except (OSError, ValueError):
        pass
    sys.exit(0)
if (home / "refuse").exists():
    sys.exit("error: Batch job submission failed: Invalid account")
text = Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else sys.stdin.read()
job = str(101 + len(list(home.glob("*.sh"))))
script = home / (job + ".sh")
script.write_text(text)
log = re.search(r"^#(?:SBATCH|BSUB|PBS|\$) -o (.*)$", text, re.M)[1].replace("%J", job)
log = open(log + "cellkit.o" + job if log.endswith("/") else log, "ab")
where = os.path.expanduser("~") if "#PBS" in text else os.getcwd()  # where PBS starts its jobs
how = dict(stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=where)
running = subprocess.Popen(["bash", str(script)], **how)
(home / (job + ".pid")).write_text(str(running.pid))
print({says!r}.format(job))
"""


def stand_in(folder: Path, *names: str) -> Path:
    """Write commands of a queue into `folder`; return it. The scripts of its jobs are kept there by number."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        text = STAND_IN.format(python=sys.executable, home=str(folder), says=SAYS.get(name, ""))
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder
