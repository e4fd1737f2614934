"""What all pages share: the models, each loaded once; who has a page; and the queues, in which things are computed."""

from __future__ import annotations

import hmac
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import Queue
from typing import Any

from cellkit.errors import UserError, counted
from cellkit.fetch.find import PACKAGED
from cellkit.log import LOG
from cellkit.models import MODEL_NAMES, backend_names, model_name, needs_checkpoint, title_of
from cellkit.models.shared.live import Live
from cellkit.pages.app.session import Session
from cellkit.pages.results import RunFiles, in_words
from cellkit.pages.stored import FAULTS, why_left_out
from cellkit.predict.joined import open_model
from cellkit.predict.model import Model

MOST_PAGES = 16
IDLE_S = 3600.0  # after which a page that nobody uses makes room
KEPT_MODELS = 2  # loaded ones
WORST = 8  # images of the gallery
THUMB_IN = 2.8


class NotAPage(Exception):
    """Somebody who does not know the key, or the name of a page that is no more."""


class OneAtATime:
    """One thread that computes, one thing after another, whoever asks."""

    def __init__(self) -> None:
        self._waiting: Queue[tuple[Future, Callable[[], Any]] | None] = Queue()
        self._open: OrderedDict[Future, str] = OrderedDict()  # in their order, with whose they are
        self._closed = False
        self._lock = threading.Lock()
        threading.Thread(target=self._work, name="cellkit app: queue", daemon=True).start()

    def submit(self, whose: str, do: Callable[[], Any]) -> Future:
        """Queue a call; the answer is the future's."""
        future: Future = Future()
        with self._lock:
            if self._closed:
                future.set_exception(_ended())
                return future
            self._open[future] = whose
        self._waiting.put((future, do))
        return future

    def before(self, whose: str) -> int:
        """Return how many calls of others come first; 0 where a page has none in the queue."""
        with self._lock:
            owners = list(self._open.values())
        return owners.index(whose) if whose in owners else 0

    def close(self) -> None:
        """End: whoever waits is told; what is computed just now has no reader any more."""
        with self._lock:
            self._closed = True
            for future in self._open:
                if not future.done():
                    future.set_exception(_ended())
        self._waiting.put(None)

    def _work(self) -> None:
        while (one := self._waiting.get()) is not None:
            future, do = one
            with self._lock:
                wanted = not self._closed and future.set_running_or_notify_cancel()  # a page may be gone by now
            done, error = None, None
            try:
                done = do() if wanted else None
            except BaseException as raised:  # the one who asked is told
                error = raised
            with self._lock:
                self._open.pop(future, None)
                if future.done():
                    continue
                future.set_result(done) if error is None else future.set_exception(error)


def _ended() -> UserError:
    return UserError("cellkit app has ended", "start it again, and open the address it prints")


@dataclass(frozen=True)
class Offered:
    """A model that pages offer: what `cellkit predict` calls it, and what the page calls it."""

    spec: str
    title: str


class Desk:
    """What all pages of one `cellkit app` share.

    Parameters
    ----------
    run : path, optional
        A run folder, whose models and worst images are offered.
    model : str, optional
        Another model to offer, first.

    Raises
    ------
    UserError
        No such run, or no such model.
    """

    def __init__(self, run: str | Path | None = None, model: str | None = None):
        self.run = None if run is None else RunFiles(run)
        self.offered = offered_models(self.run, model)
        self.key = secrets.token_urlsafe(24)
        self.queue, self.quick = (
            OneAtATime(),
            OneAtATime(),
        )  # quick looks at what was seen already wait for each other alone
        self.folder = Path(tempfile.mkdtemp(prefix="cellkit-app-"))
        self.pages: OrderedDict[str, tuple[Session, float]] = OrderedDict()
        self._models: OrderedDict[tuple, Live] = OrderedDict()
        self._opened: dict[tuple, Model] = {}
        self._lock = threading.Lock()

    # ---- pages -----------------------------------------------------------------------------------------------------
    def new_page(self, key: str) -> str:
        """Return the secret name of a new page, for who knows the key; a page that is long idle makes room for it.

        Raises
        ------
        NotAPage
            Another key.
        UserError
            As many pages as may be are in use.
        """
        if not hmac.compare_digest(key.encode(errors="replace"), self.key.encode()):
            raise NotAPage
        now = time.monotonic()
        with self._lock:
            idle = [token for token, (_, seen) in self.pages.items() if now - seen > IDLE_S]
        for token in idle:
            self.leave(token)
        with self._lock:
            if len(self.pages) >= MOST_PAGES:
                raise UserError(f"{MOST_PAGES} pages are open", "close one that is not used, and wait a little")
            token = secrets.token_urlsafe(24)
            self.pages[token] = Session(self.folder / secrets.token_hex(8), self.loaded), now
            return token

    def page(self, token: str) -> Session | None:
        """Return the session of a page, None where there is none."""
        with self._lock:
            session, _ = self.pages.get(token, (None, 0.0))
            if session is not None:
                self.pages[token] = session, time.monotonic()
            return session

    def leave(self, token: str) -> None:
        """End a page."""
        with self._lock:
            session, _ = self.pages.pop(token, (None, 0.0))
        if session is not None:
            session.close()

    def end(self) -> None:
        """Compute nothing more; who waits is told."""
        self.queue.close()
        self.quick.close()

    def close(self) -> None:
        """End all, and remove the files."""
        self.end()
        with self._lock:
            self.pages.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- models ----------------------------------------------------------------------------------------------------
    def model(self, number: Any, diameter_px: float | None = None) -> Model:
        """Return one of the models that are offered, by its number; with a diameter in px of the files.

        Raises
        ------
        UserError
            No such model, or a diameter that it does not take.
        """
        if not isinstance(number, int) or not 0 <= number < len(self.offered):
            raise UserError("no model is chosen", "choose one of the list")
        place = (number, diameter_px)
        if place not in self._opened:
            overrides = {} if diameter_px is None else {"diameter_px": diameter_px}
            if len(self._opened) > 50:
                self._opened.clear()
            self._opened[place] = open_model(self.offered[number].spec, overrides)
        return self._opened[place]

    def loaded(self, model: Model, scale: float) -> Live:
        """Return a model, loaded; called by the queue alone, so that each is loaded once."""
        place = repr(model), scale
        if place not in self._models:
            while len(self._models) >= KEPT_MODELS:
                self._models.popitem(last=False)
            self._models[place] = model.live(scale)
        self._models.move_to_end(place)
        return self._models[place]

    # ---- the gallery -----------------------------------------------------------------------------------------------
    @cached_property
    def worst(self) -> tuple[list[dict[str, Any]], str]:
        """The run's images of lowest score, worst first, and why there are none."""
        if self.run is None:
            return [], ""
        try:
            if self.run.no_accuracy:
                return [], self.run.no_accuracy
            data, found, places = self._worst_data
            scores = dict(self.run.attribution[["image_id", "score"]].itertuples(index=False))
        except FAULTS as error:
            return [], str(error) if isinstance(error, UserError) else f"they cannot be shown: {why_left_out(error)}"
        shown = []
        for k in places:
            record, truth = data.records[k], data.instances[k]
            score = in_words(float(scores[record.image_id]))
            words = f"MAP IoU {score}; {counted(len(truth), 'true cell')}, {len(found[k])} found"
            shown.append({"image": record.image_id, "words": words, "place": k})
        return shown, ""

    def worst_picture(self, number: int) -> bytes:
        """Return one of the worst images with its errors, as PNG; see `show_errors`."""
        from cellkit.show.overlays import show_errors
        from cellkit.show.style import aspect_of, bare_axes, to_png

        k = self.worst_place(number)
        data, found, _ = self._worst_data
        image = data.image(k)
        ax = bare_axes(THUMB_IN, THUMB_IN * aspect_of(image.shape[:2]))
        return to_png(show_errors(image, data.instances[k], found[k], ax, legend=False), dpi=110)

    def worst_file(self, number: int) -> tuple[Path, str]:
        """Return the run's picture of one of the worst images, and its id.

        Raises
        ------
        UserError
            No such image, or one whose picture lies elsewhere.
        """
        place = self.worst_place(number)
        data, _, _ = self._worst_data
        record = data.records[place]
        path = data.root / record.path
        if not path.resolve().is_relative_to(self.run.folder.resolve()):
            raise UserError(f"the picture of {record.image_id} lies outside the run folder", "open the file itself")
        return path, record.image_id

    def worst_place(self, number: Any) -> int:
        """Return where one of the worst images stands in its data.

        Raises
        ------
        UserError
            No such image.
        """
        shown, _ = self.worst
        if not isinstance(number, int) or not 0 <= number < len(shown):
            raise UserError("no such image in the gallery", "reload the page")
        return shown[number]["place"]

    @cached_property
    def _worst_data(self) -> tuple:
        return self.run.worst(WORST)


def _best_of(run: RunFiles) -> str:
    """Return the model that the run's notebook 06 found best; "", and a warning, where its summary is damaged."""
    try:
        return str(run.summary.get("best") or "")
    except (UserError, OSError) as error:
        LOG.warning(f"{why_left_out(error)}: which model of the run is best is not known")
        return ""


def offered_models(run: RunFiles | None, model: str | None) -> list[Offered]:
    """Return the models to choose from: the one that is named, those of the run, those that come with cellkit.

    Raises
    ------
    UserError
        There is none of that name.
    """
    found = []
    if model is not None:
        open_model(model)
        found.append(Offered(model, model))
    if run is not None:
        outputs = [entry["outputs"] for entry in run.stages.values()]
        listed = {key.removesuffix("_checkpoint") for one in outputs for key in one if key.endswith("_checkpoint")}
        best = _best_of(run)
        names = [name for name in MODEL_NAMES if name in listed] + sorted(
            listed - set(MODEL_NAMES) - {"encoder", "cellpose"}
        )
        names.sort(key=lambda name: name != best)
        if not names:
            LOG.warning(f"{run.folder} has no finished model yet: only those that come with cellkit are offered")
        found += [
            Offered(f"{run.folder}:{name}", f"{model_name(name)}{' (best of the run)' * (name == best)}")
            for name in names
        ]
    shipped = [
        (path.stem, path.stem.replace("_", ", ").capitalize()) for path in sorted(PACKAGED.glob("*.safetensors"))
    ]
    shipped += [(name, title_of(name)) for name in backend_names() if not needs_checkpoint(name)]
    found += [Offered(name, f"{title} (comes with cellkit)") for name, title in shipped]
    specs = [one.spec for one in found]
    return [one for k, one in enumerate(found) if one.spec not in specs[:k]]
