"""Papermill, wrapped: run one notebook in its own kernel and report how it really ended.

Papermill alone marks every cell of a notebook completed after its kernel died, counts ``sys.exit(0)`` as success,
formats ``{}`` in paths and writes its output in place (papermill 2.7). Importing this module imports papermill.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nbformat
import papermill
from fastcore.basics import store_attr
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from papermill.engines import Engine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from cellkit.files import write_text

ENGINE = "cellkit"
GRACE_S = 8.0  # from the interrupt to the kill of a kernel that does not listen
ABANDONED_S = 24 * 3600.0
LOG_TAIL_BYTES = 20_000
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
_LOG = logging.getLogger("cellkit.engine")
_LOG.addHandler(logging.NullHandler())
_LOG.propagate = False


@dataclass
class Outcome:
    """How a notebook ended.

    Attributes
    ----------
    ending : str
        finished = every cell ran; exit = a cell ended the interpreter by exit(), quit() or SystemExit; error = a cell
        raised; died = the kernel process ended; timeout = a cell took too long; interrupted = Ctrl-C or SIGTERM.
    cell, cells : int
        Number of the last cell begun, and of all code cells, counted from 1; 0 = the kernel never started.
    error_name, error_text : str
        The exception's class name and message.
    traceback : list of str
        Its lines, without colours.
    kernel_exit : int or None
        Exit status of a kernel that died; negative = killed by that signal.
    stderr_tail : str
        The last lines that the kernel process itself wrote to stdout and stderr.
    """

    ending: Literal["finished", "exit", "error", "died", "timeout", "interrupted"] = "finished"
    cell: int = 0
    cells: int = 0
    error_name: str = ""
    error_text: str = ""
    traceback: list[str] = field(default_factory=list)
    kernel_exit: int | None = None
    stderr_tail: str = ""


def execute(
    notebook: nbformat.NotebookNode,
    copy: Path,
    parameters: dict[str, Any],
    environment: dict[str, str],
    on_cell: Callable[[int, int], None],
    on_text: Callable[[str], None],
    timeout_s: float | None = None,
) -> Outcome:
    """Run a notebook through papermill in a kernel of this very interpreter, started in the current folder.

    Parameters
    ----------
    notebook : NotebookNode
        With one cell tagged ``parameters``. Whatever kernel it names, or none, the copy names the one that ran it.
    copy : Path
        Where the executed notebook is kept: rewritten, whole, after every cell.
    parameters : dict
        Literals for the parameters cell.
    environment : dict
        Variables added to those of this process.
    on_cell : callable
        Called with (number, of how many) before each code cell.
    on_text : callable
        Called with what the notebook prints, as it comes.
    timeout_s : float, optional
        Most seconds one cell may take.
    """
    session = _Session(copy, environment, on_cell, on_text, timeout_s)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    papermill_engines.register(ENGINE, _CellkitEngine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the Jupyter libraries in this process; the kernel's own are shown
        with contextlib.suppress(PapermillExecutionError):  # the session knows more than papermill does
            papermill.execute_notebook(
                notebook,
                None,
                parameters=parameters,
                engine_name=ENGINE,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                session=session,
            )
    session.save()
    return session.outcome


# A crash in compiled code prints its Python lines to the kernel's own stderr, which ipykernel takes over later on.
_START = """\
import faulthandler, os, runpy
faulthandler.enable(os.dup(2))
runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
"""


class _CellkitEngine(Engine):
    """Papermill's hook: hands the prepared notebook to the session."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, session=None, **ignored):
        session.run(nb_man)


class _Manager(AsyncKernelManager):
    """Starts this interpreter's ipykernel, whatever kernels are installed for Jupyter on this machine."""

    @property
    def kernel_spec(self):
        command = [sys.executable, "-Xfrozen_modules=off", "-c", _START, "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3 (ipykernel)", language="python")


class _Client(NotebookClient):
    """nbclient, passing on what is printed and noting a cell that asks the kernel to exit."""

    def __init__(self, nb, on_text, **options):
        super().__init__(nb, on_cell_executed=self._note_exit, **options)
        self.on_text = on_text
        self.exit_asked = False

    def process_message(self, msg, cell, cell_index):
        output = super().process_message(msg, cell, cell_index)
        if output is not None and output.output_type == "stream":
            self.on_text(output.text)
        return output

    def _note_exit(self, cell, cell_index, execute_reply):
        payload = execute_reply["content"].get("payload") or []
        self.exit_asked |= any(item.get("source") == "ask_exit" for item in payload)


class _Session:
    """One execution: the kernel, its folder of temporary files, the reasons to stop, the outcome."""

    def __init__(self, copy, environment, on_cell, on_text, timeout_s):
        store_attr()
        self.outcome = Outcome()
        self.stopped: Literal["", "timeout", "interrupted"] = ""
        self.notebook: nbformat.NotebookNode | None = None
        self.manager: _Manager | None = None
        self.begun: list[nbformat.NotebookNode] = []
        self.killer: threading.Timer | None = None
        self.ready = False

    def run(self, nb_man) -> None:
        """Start a kernel, run the cells, end the kernel; never raises for what the notebook did."""
        self.notebook = nb_man.nb
        self.notebook.metadata.papermill["input_path"] = self.notebook.metadata.papermill["output_path"] = (
            self.copy.name
        )
        _sweep()
        temporary = Path(tempfile.mkdtemp(prefix=f"cellkit-{os.getpid()}-"))
        try:
            with open(temporary / "kernel.log", "w+b") as log, self._signals():
                client = self._client(temporary)
                try:
                    with client.setup_kernel(env=self._variables(temporary), cwd=os.getcwd(), stdout=log, stderr=log):
                        self.ready = True
                        self._cells(nb_man, client)
                        self._note_death()
                except RuntimeError as error:  # the kernel ended before it answered
                    self._note_death()
                    self.outcome.ending, self.outcome.error_text = self.stopped or "died", str(error)
                finally:
                    self._calm()
                self.outcome.stderr_tail = _tail(log)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def save(self) -> None:
        """Write the executed copy, whole; cells that never began stay pending."""
        if self.notebook is None:
            return
        begun = {cell.get("id") for cell in self.begun}
        for cell in self.notebook.cells:
            if cell.get("id") not in begun and "papermill" in cell.metadata:
                cell.metadata.papermill["status"] = "pending"
        write_text(self.copy, nbformat.writes(self.notebook) + "\n")

    def _client(self, temporary: Path) -> _Client:
        socket = temporary / "kernel.json"
        transport = (
            "ipc" if os.name == "posix" and len(str(socket)) < 80 else "tcp"
        )  # no port is opened where it can be
        self.manager = _Manager(connection_file=str(socket), transport=transport, log=_LOG)
        client = _Client(
            self.notebook, self.on_text, km=self.manager, log=_LOG, coalesce_streams=True, iopub_timeout=30
        )
        client.owns_km = True  # so that the kernel ends with the notebook
        return client

    def _variables(self, temporary: Path) -> dict[str, str]:
        fixed = {
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "IPYTHONDIR": str(temporary / "ipython"),  # no start-up files of the user
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        return {**os.environ, **fixed, **self.environment}

    def _cells(self, nb_man, client: _Client) -> None:
        code = [c for c in self.notebook.cells if c.cell_type == "code" and c.source.strip() and not _injected(c)]
        self.outcome.cells = len(code)
        for index, cell in enumerate(self.notebook.cells):
            if self.stopped:
                self.outcome.ending = self.stopped
                return
            self.begun.append(cell)
            nb_man.cell_start(cell, index)
            if any(cell is counted for counted in code):
                self.outcome.cell += 1
                self.on_cell(self.outcome.cell, self.outcome.cells)
            self._cell(client, cell, index)
            if self.outcome.ending not in ("finished", "exit"):
                nb_man.cell_exception(cell, cell_index=index)
            nb_man.cell_complete(cell, cell_index=index)
            if cell.cell_type == "code":
                self.save()
            if self.outcome.ending != "finished":
                return
        client.set_widgets_metadata()

    def _cell(self, client: _Client, cell, index: int) -> None:
        """Run one cell and set the outcome unless it ended well."""
        outcome = self.outcome
        limited = self.timeout_s and self.timeout_s <= threading.TIMEOUT_MAX  # about 292 years; inf is no limit
        alarm = threading.Timer(self.timeout_s, self.stop, ["timeout"]) if limited else None
        if alarm:
            alarm.daemon = True
            alarm.start()
        try:
            client.execute_cell(cell, index)
        except CellExecutionError as error:
            outcome.ending = "exit" if error.ename == "SystemExit" else "error"
            outcome.error_name, outcome.error_text = error.ename, error.evalue
            outcome.traceback = _plain_traceback(cell)
        except DeadKernelError:
            outcome.ending = "died"
        finally:
            if alarm:
                alarm.cancel()
        if client.exit_asked and outcome.ending == "finished":
            outcome.ending, outcome.error_name = "exit", "SystemExit"
        if self.stopped:
            outcome.ending = self.stopped
        if outcome.ending in ("died", "timeout", "interrupted"):
            self._note_death()
            name = {"died": "DeadKernel", "timeout": "Timeout", "interrupted": "Interrupted"}[outcome.ending]
            text = f"the cell took longer than {self.timeout_s:g} s" if outcome.ending == "timeout" else outcome.ending
            lines = [f"{name}: {text}, kernel exit status {outcome.kernel_exit}"]
            cell.outputs.append(nbformat.v4.new_output("error", ename=name, evalue=text, traceback=lines))

    # ---- stopping

    def stop(self, reason: Literal["timeout", "interrupted"]) -> None:
        """Interrupt the kernel; kill it when it does not listen, is only starting, or when asked a second time."""
        again, self.stopped = bool(self.stopped), self.stopped or reason
        if again or not self.ready:
            self._send(KILL)
            return
        self._send(signal.SIGINT)
        self.killer = threading.Timer(GRACE_S, self._send, [KILL])
        self.killer.daemon = True
        self.killer.start()

    def _calm(self) -> None:
        if self.killer:
            self.killer.cancel()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn Ctrl-C and SIGTERM into a stop of the kernel while this session runs."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, lambda *_: self.stop("interrupted")) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    @property
    def _process(self):
        return getattr(getattr(self.manager, "provisioner", None), "process", None)

    def _send(self, number: int) -> None:
        """Send a signal to the kernel and the processes it started."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, number)
            elif number == signal.SIGINT:
                from jupyter_client.win_interrupt import send_interrupt

                send_interrupt(process.win32_interrupt_event)
            else:
                process.kill()

    def _note_death(self) -> None:
        """Keep the exit status of a kernel that is gone, and take along what it had started."""
        process = self._process
        if process is None or process.poll() is None:
            return
        self.outcome.kernel_exit = process.returncode
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def _injected(cell) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])


def _plain_traceback(cell) -> list[str]:
    """Return the lines of the cell's last traceback, without terminal colours."""
    errors = [output for output in cell.outputs if output.output_type == "error"]
    text = "\n".join(errors[-1].traceback) if errors else ""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()


def _sweep() -> None:
    """Remove the temporary folders of runners that were killed."""
    import psutil

    for folder in Path(tempfile.gettempdir()).glob("cellkit-*-*"):
        pid = folder.name.split("-")[1]
        with contextlib.suppress(OSError):
            old = time.time() - folder.stat().st_mtime > ABANDONED_S
            if old and pid.isdecimal() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


def _tail(log) -> str:
    """Return the end of the kernel's own output; of a crash, the reason and where it was, most recent call first."""
    log.flush()
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - LOG_TAIL_BYTES))
    text = log.read().decode("utf-8", "replace").strip()
    crash, current = text.rfind("Fatal Python error"), text.rfind("Current thread")
    if -1 < crash < current:
        return "\n".join([text[crash:].splitlines()[0], *text[current:].splitlines()[:6]])
    return "\n".join(text.splitlines()[-10:])
