"""One loop on a cluster: items go out in parts, results come back in order, what a dying worker held is done again.

The scheduler never knows more than a few parts a worker, however many items there are, and a part takes about half a second:
a million items of a millisecond are some thousand parts. A part that a worker died over is done again, item by item; an item
that three workers died over is left out and named. It counts only when the item was done alone and had begun: a worker that
was ended by somebody else held others too, and those that waited or were about to begin are no suspects.
"""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from cellkit.cluster.leftovers import owned, sweep_marks
from cellkit.cluster.opened import Cluster
from cellkit.cluster.remote import MARK, Answer, Expected, files_in, not_shared, own_code, run_part
from cellkit.errors import UserError

PART_S = 0.5  # a part of small items takes about as long
PARTS_A_S = 50  # no more than this: one costs the command some 7 ms of processor
MOST_ITEMS = 500  # of a part
PARTS_A_WORKER = 3  # under way or waiting at a worker
KILLS = 3  # workers that may die over an item
LOST = 20  # times that a part may be lost before it had begun
LOOK_EVERY_S = 2.0


@dataclass
class Part:
    """Items that go out together: the place of the first, how many workers died over them, and how often they were lost."""

    first: int
    items: Sequence[Any]
    kills: int = 0
    lost: int = 0
    sent: int = 0


def pairs_on(cluster: Cluster, fn: Callable, items: Sequence[Any]) -> Iterator[tuple[Any, str | None]]:
    """Yield (result, None) or (None, reason) of every item, in order, as `cellkit.cluster.remote.Guarded` returns them.

    Raises
    ------
    StopAll
        `fn` raised it.
    UserError
        No worker is left and none comes; a worker has other code, or does not see a folder or file.
    """
    if not items:
        return
    cluster.open()
    with ExitStack() as stack:
        loop = _Loop(cluster, fn, items, stack)
        stack.callback(loop.give_up)
        pressed = stack.enter_context(_interrupts())
        ready: dict[int, tuple[Any, str | None]] = {}
        for place in range(len(items)):
            while place not in ready:
                if pressed:
                    raise KeyboardInterrupt
                ready.update(loop.step())
            yield ready.pop(place)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Yield a list that Ctrl-C adds to, beside what it does anyway: raised in the middle of a ``__del__`` it would be lost."""
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield pressed
        return

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class _Loop:
    """The parts of one loop that are under way."""

    def __init__(self, cluster: Cluster, fn: Callable, items: Sequence[Any], stack: ExitStack):
        import cloudpickle

        self.cluster, self.fn, self.items = cluster, fn, items
        self.dumps = cloudpickle.dumps  # functions and classes of a notebook too
        self.work = self.dumps(fn)
        self.expected = pickle.dumps(_expected(cluster, fn, stack))
        self.id, self.sent, self.next = uuid.uuid4().hex[:8], 0, 0
        self.topic = f"cellkit-{self.id}"
        self.again: deque[Part] = deque()
        self.flying: dict[Any, Part] = {}
        self.landed: SimpleQueue = SimpleQueue()
        self.item_s: float | None = None
        self.looked, self.workers = 0.0, 1
        self.begun: set[int] = set()  # suspected parts, by the number under which they were sent
        cluster.client.subscribe_topic(self.topic, lambda event: self.begun.add(event[1]))

    def step(self) -> dict[int, tuple[Any, str | None]]:
        """Send what there is room for, wait a moment, return what came back by place."""
        self._look()
        self._send()
        try:
            future = self.landed.get(timeout=LOOK_EVERY_S)
        except Empty:
            return {}
        part = self.flying.get(future)
        return {} if part is None else self._taken(future, part)

    def give_up(self) -> None:
        """Take back what is under way."""
        with suppress(Exception):
            self.cluster.client.unsubscribe_topic(self.topic)
        with suppress(Exception):
            if self.flying:
                self.cluster.client.cancel(list(self.flying), force=True)
        self.flying.clear()

    def _look(self) -> None:
        """Count the workers, every few seconds."""
        now = time.monotonic()
        if now - self.looked >= LOOK_EVERY_S:
            try:
                self.workers = len(self.cluster.wait())
            except OSError as error:
                raise self._not_done(error) from error
            self.looked = now

    def _send(self) -> None:
        """Send parts: while some are suspected of killing workers one a worker, so that only the guilty is counted."""
        most = self.workers if self.again else PARTS_A_WORKER * self.workers
        while len(self.flying) < most and (self.again or self.next < len(self.items)):
            if self.again:
                part = self.again.popleft()
            else:
                part = Part(self.next, self.items[self.next : self.next + self._size()])
                self.next += len(part.items)
            self.sent += 1
            part.sent = self.sent
            future = self.cluster.client.submit(
                run_part,
                self.work,
                self.dumps(list(part.items)),
                self.expected,
                self.topic if part.lost else "",
                self.sent,
                key=f"cellkit-{self.id}-{self.sent}",
                pure=False,
                priority=1 if part.lost else 0,
            )
            self.flying[future] = part
            future.add_done_callback(self.landed.put)

    def _size(self) -> int:
        """Return how many items the next part gets: as many as take `PART_S`, longer on many workers; at the end some each."""
        if self.item_s is None:
            return 1
        left = len(self.items) - self.next
        seconds = max(PART_S, self.workers / PARTS_A_S)
        most = min(MOST_ITEMS, -(-left // (2 * self.workers)))
        return max(1, min(most, int(seconds / max(self.item_s, 1e-6))))

    def _taken(self, future: Any, part: Part) -> dict[int, tuple[Any, str | None]]:
        """Return the results of a part, or let it be done again."""
        from distributed.scheduler import KilledWorker

        try:
            answer: Answer = pickle.loads(future.result(timeout=30))
        except KilledWorker as error:
            del self.flying[future]
            return self._killed(part, error)
        except TimeoutError:  # its worker died with the result: the scheduler has it done again
            future.add_done_callback(self.landed.put)
            return {}
        except Exception as error:
            raise self._not_done(error) from error
        del self.flying[future]
        if answer.refused is not None:
            raise answer.refused
        if answer.raised is not None:
            raise self._not_done(answer.raised)
        for path in answer.unseen:
            if os.path.exists(path):
                raise not_shared(path, answer.host)
        seconds = answer.seconds / max(1, len(part.items))
        self.item_s = seconds if self.item_s is None else (self.item_s + seconds) / 2
        return {part.first + k: pair for k, pair in enumerate(answer.pairs)}

    def _killed(self, part: Part, error: Any) -> dict[int, tuple[Any, str | None]]:
        """Let a part whose worker died be done again, each item alone; leave out an item that did it three times."""
        died = error.allowed_failures + 1
        alone = len(part.items) == 1 and part.lost > 0
        kills = part.kills + (died if alone and part.sent in self.begun else 0)
        self.looked = 0.0
        if alone and (kills >= KILLS or part.lost >= LOST):
            deaths = (
                f"{kills} workers died over it" if kills >= KILLS else f"{part.lost + 1} workers died before it began"
            )
            remedy = "raise cluster.memory, or do it without --cluster"
            return {part.first: (None, f"{deaths}, perhaps for want of memory: {remedy}")}
        self.again += [Part(part.first + k, [item], kills, part.lost + 1) for k, item in enumerate(part.items)]
        return {}

    def _not_done(self, error: BaseException) -> BaseException:
        """Return what is to be said of a part that did not run to its end."""
        from concurrent.futures import CancelledError

        if isinstance(error, CancelledError) or self.cluster.client.status != "running":
            return UserError(
                f"cluster {self.cluster.setting.kind}: its scheduler ended, or gave the work up",
                "see that it runs, then repeat the command: what is done is kept",
            )
        if isinstance(error, ModuleNotFoundError):
            return UserError(
                f"a worker has no package {error.name}",
                "let workers use this environment: the same path on all machines, or the same packages on each",
            )
        return error


def _expected(cluster: Cluster, fn: Callable, stack: ExitStack) -> Expected:
    """Return what workers have to be like for this loop; marks lie in the folders it writes to until it ends."""
    from cellkit import __version__
    from cellkit.cluster.setting import CLUSTER_VARIABLE
    from cellkit.manifest import RUNNER_VARIABLE

    marks = []
    if cluster.is_elsewhere:
        for folder in dict.fromkeys([os.getcwd(), *filter(os.path.isdir, files_in(fn))]):
            with suppress(OSError):  # read-only: nothing is written there
                sweep_marks(folder, MARK)
                file = tempfile.NamedTemporaryFile(prefix=owned(MARK), dir=os.path.abspath(folder))  # noqa: SIM115 - until the end
                marks.append(file.name)
                stack.enter_context(file)
    private = (CLUSTER_VARIABLE, RUNNER_VARIABLE, "CELLKIT_HEADLESS")
    environ = {name: value for name, value in os.environ.items() if name.startswith("CELLKIT_") and name not in private}
    return Expected(
        __version__,
        own_code(),
        str(Path.cwd()),
        tuple(marks),
        tuple(sorted(environ.items())),
        cluster.setting.cores,
    )
