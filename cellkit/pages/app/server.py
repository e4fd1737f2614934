"""The page over HTTP: who may ask, what is answered, how large an upload may be.

It listens on this machine alone unless told otherwise. A page has to know the key that the address carries after its ``#``, which
no server sees; each page gets a secret name of its own, which it sends with every call in a header. What comes from another
site's page is refused by its headers, and so is a name of this machine that another site made up (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from cellkit.errors import UserError, counted, of_place, place_fault, readable
from cellkit.files import PACKAGE
from cellkit.log import LOG
from cellkit.microscope.frames import reason_of
from cellkit.pages.app.desk import Desk, NotAPage
from cellkit.pages.app.guard import LOOPBACK, Guard
from cellkit.pages.app.session import Asked, Session
from cellkit.room import free_on

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

INSTALL = 'pip install "starlette>=0.49,<2" "uvicorn>=0.35,<1"'
MOST_TEXT = 100_000  # bytes of a call that is no upload
FILES = {
    "/": ("app.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/app.viewer.js": ("app.viewer.js", "text/javascript; charset=utf-8"),
    "/app.css": ("app.css", "text/css; charset=utf-8"),
}


def check_installed() -> None:
    """Refuse to begin where the packages of the page are missing.

    Raises
    ------
    UserError
        With the line that installs them.
    """
    from importlib.util import find_spec

    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"cellkit app needs {counted(len(missing), 'package')}: {', '.join(missing)}", INSTALL)


# ---- what is answered ------------------------------------------------------------------------------------------------
def application(desk: Desk, most_mb: float = 2000, bound_to: str = "127.0.0.1") -> Starlette:
    """Return the page as an ASGI application.

    Parameters
    ----------
    most_mb : float
        Most megabytes of an upload.
    bound_to : str
        The host that is listened on.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Route

    answers = Answers(desk, most_mb)

    @asynccontextmanager
    async def life(_: Starlette):  # noqa: ANN202
        yield
        desk.close()

    static = [Route(path, partial(_file, *about), methods=["GET"]) for path, about in FILES.items()]
    calls = [Route(f"/api/{name}", getattr(answers, name), methods=["POST"]) for name in CALLS]
    return Starlette(routes=[*static, *calls], middleware=[Middleware(Guard, bound_to=bound_to)], lifespan=life)


CALLS = ("begin", "upload", "gallery", "worst", "thumb", "look", "cells", "picture", "download", "place", "leave")


async def _file(name: str, kind: str, request: Request) -> Response:
    from starlette.responses import Response

    return Response((PACKAGE / "pages" / "templates" / name).read_bytes(), media_type=kind)


def told(call: Callable[..., Awaitable]) -> Callable[..., Awaitable]:
    """Let a call answer what is wrong as JSON: what came, what to do."""

    async def answer(self: Answers, request: Request) -> Response:
        from starlette.requests import ClientDisconnect
        from starlette.responses import JSONResponse, Response

        try:
            return await call(self, request)
        except ClientDisconnect:
            return Response(status_code=499)
        except NotAPage:
            text = "this page does not know the key of this cellkit app, or was not used for long"
            return JSONResponse({"problem": text, "remedy": "open the address that the command printed"}, 401)
        except UserError as error:
            return JSONResponse({"problem": readable(error.problem), "remedy": readable(error.remedy)}, 422)
        except Exception as error:
            if isinstance(error, OSError) and of_place(error):
                fault = place_fault(error)
                return JSONResponse({"problem": fault.problem, "remedy": fault.remedy}, 507)
            LOG.error(f"cellkit app: {request.url.path} failed\n{traceback.format_exc()}")
            remedy = "drop another file or choose another model; the terminal shows where it failed"
            return JSONResponse({"problem": f"failed: {reason_of(error)[:300]}", "remedy": remedy}, 500)

    return answer


class Answers:
    """What is answered to each call of a page; `desk` computes."""

    def __init__(self, desk: Desk, most_mb: float):
        self.desk, self.most_bytes = desk, int(most_mb * 1e6)

    def _page(self, request: Request) -> tuple[str, Session]:
        token = request.headers.get("x-cellkit-page", "")
        session = self.desk.page(token)
        if session is None:
            raise NotAPage
        return token, session

    async def _said(self, request: Request) -> dict[str, Any]:
        """Return the JSON object of a call."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_TEXT:
                raise UserError(f"a call of more than {MOST_TEXT} bytes", "reload the page")
        try:
            said = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise UserError("a call that is no JSON object", "reload the page")
        return said

    async def _queued(self, token: str, do: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self.desk.queue.submit(token, do))

    @told
    async def begin(self, request: Request) -> Response:
        """Open a page: its secret name, and what there is to choose from."""
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse

        from cellkit.show.style import CLASS_COLOURS, class_colour

        said = await self._said(request)
        desk = self.desk
        token = await run_in_threadpool(desk.new_page, str(said.get("key", "")))
        return JSONResponse(
            {
                "page": token,
                "run": readable(str(desk.run.folder)) if desk.run else "",
                "models": [{"title": one.title, "name": readable(one.spec)} for one in desk.offered],
                "colours": [class_colour(k) for k in range(len(CLASS_COLOURS) + 1)],
                "most_mb": self.most_bytes / 1e6,
            }
        )

    @told
    async def upload(self, request: Request) -> Response:
        """Take a file, piece by piece, never more than may be; then read its header."""
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse

        _, session = self._page(request)
        shown = request.query_params.get("name", "")
        declared = request.headers.get("content-length", "0")
        self._check_size(int(declared) if declared.isdecimal() else 0)
        path = session.place_for(shown)
        try:
            with open(path, "xb") as file:
                async for chunk in request.stream():
                    self._check_size(file.tell() + len(chunk), file.tell())
                    await run_in_threadpool(file.write, chunk)
            facts = await run_in_threadpool(session.open, path, readable(shown)[-120:])
        except BaseException:
            session.drop(path)
            raise
        return JSONResponse(facts)

    def _check_size(self, count: int, written: int = 0) -> None:
        if count > self.most_bytes:
            problem = f"the file is larger than {self.most_bytes / 1e6:.0f} MB, the most that this page takes"
            raise UserError(problem, "cellkit predict takes it where it lies, or start cellkit app with --most-mb")
        free = free_on(self.desk.folder)
        if count - written > free:
            problem = (
                f"the file is larger than the {free / 1e6:.0f} MB that are free for it in {self.desk.folder.parent}"
            )
            raise UserError(problem, "free space there, or set TMPDIR to another folder")

    @told
    async def gallery(self, request: Request) -> Response:
        """Name the run's worst images, or say why there are none."""
        from starlette.responses import JSONResponse

        token, _ = self._page(request)
        worst, why = await self._queued(token, lambda: self.desk.worst)
        return JSONResponse({"worst": [{"image": one["image"], "words": one["words"]} for one in worst], "why": why})

    @told
    async def worst(self, request: Request) -> Response:
        """Open one of the run's worst images."""
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse

        _, session = self._page(request)
        said = await self._said(request)
        path, name = await run_in_threadpool(self.desk.worst_file, said.get("number"))
        return JSONResponse(await run_in_threadpool(session.open, path, name))

    @told
    async def thumb(self, request: Request) -> Response:
        """Draw one of the run's worst images with its errors."""
        from starlette.responses import Response

        token, _ = self._page(request)
        said = await self._said(request)
        return Response(
            await self._queued(token, lambda: self.desk.worst_picture(said.get("number"))), media_type="image/png"
        )

    @told
    async def look(self, request: Request) -> Response:
        """Let a model see the image."""
        from starlette.responses import JSONResponse

        token, session = self._page(request)
        said = await self._said(request)
        asked = Asked.of(said)
        return JSONResponse(
            await self._queued(
                token, lambda: session.look(self.desk.model(said.get("model"), asked.diameter_px), asked)
            )
        )

    @told
    async def cells(self, request: Request) -> Response:
        """Read the cells with some settings moved."""
        from starlette.responses import Response

        token, session = self._page(request)
        said = await self._said(request)
        changed, view = (said.get(name) if isinstance(said.get(name), dict) else {} for name in ("changed", "view"))
        quick = said.get("quick") is True
        queue = self.desk.quick if quick else self.desk.queue
        found = await asyncio.wrap_future(queue.submit(token, lambda: session.cells_of(changed, quick, view)))
        return Response(found, media_type="application/octet-stream")

    @told
    async def picture(self, request: Request) -> Response:
        """Return a part of the picture; which one, a header says."""
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import Response

        _, session = self._page(request)
        said = await self._said(request)
        png, view = await run_in_threadpool(
            session.picture_of, said.get("view") if isinstance(said.get("view"), dict) else {}
        )
        return Response(png, media_type="image/png", headers={"x-cellkit-view": json.dumps(view._asdict())})

    @told
    async def download(self, request: Request) -> Response:
        """Return the cells as a file."""
        from starlette.responses import Response

        token, session = self._page(request)
        said = await self._said(request)

        def made() -> tuple[str, bytes]:
            changed = said.get("changed")
            path = session.download(str(said.get("what", "")), changed if isinstance(changed, dict) else None)
            return path.name, path.read_bytes()

        name, content = await self._queued(token, made)
        return Response(content, media_type="application/octet-stream", headers={"x-cellkit-name": json.dumps(name)})

    @told
    async def place(self, request: Request) -> Response:
        """Say how many calls of others come before the one of this page."""
        from starlette.responses import JSONResponse

        token, _ = self._page(request)
        return JSONResponse({"before": self.desk.queue.before(token)})

    @told
    async def leave(self, request: Request) -> Response:
        """End a page; as it is sent while the page is closed, the name comes in the text, and no header."""
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse

        said = await self._said(request)
        await run_in_threadpool(self.desk.leave, str(said.get("page", "")))  # waits for what takes long there
        return JSONResponse({})


# ---- the process -----------------------------------------------------------------------------------------------------
def serve(desk: Desk, host: str = "127.0.0.1", port: int = 0, browser: bool = True, most_mb: float = 2000) -> None:
    """Answer until somebody presses Ctrl-C or closes the terminal; then remove the files and return.

    Parameters
    ----------
    host : str
        What to listen on; any but this machine itself is warned of.
    port : int
        0 = one that is free.
    browser : bool
        Open the page in the browser of this machine, where there is a screen.

    Raises
    ------
    UserError
        A host or a port that cannot be listened on.
    """
    import uvicorn

    class Server(uvicorn.Server):
        """Ends with its last answer, also where a page waits for a long one."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            desk.end()
            await super().shutdown(sockets)

    listening = None
    try:
        listening = listen(host, port)
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        address = f"http://{f'[{shown}]' if ':' in shown else shown}:{listening.getsockname()[1]}/#{desk.key}"
        if host not in LOOPBACK:
            LOG.warning(
                f"warning: listening on {host}: who can reach this machine and has the address can use the page, and what is "
                "sent is not encrypted; safer: leave out --host and use ssh -L"
            )
        LOG.info(f"cellkit app: open {address}\nCtrl-C ends it")
        if browser:
            open_browser(address)
        app = application(desk, most_mb, host)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=3, lifespan="on"
        )
        server = Server(config)
        with ended_by_hangup(server):
            server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        if listening is not None:
            listening.close()
        desk.close()
    LOG.info("cellkit app: ended, the uploaded files are removed")


@contextmanager
def ended_by_hangup(server: Any) -> Iterator[None]:
    """Let a server (of uvicorn) end when its terminal is closed, as by Ctrl-C; where `nohup` says to go on, go on."""
    hangup = getattr(signal, "SIGHUP", None)
    if (
        hangup is None
        or signal.getsignal(hangup) != signal.SIG_DFL
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    signal.signal(hangup, lambda *_: setattr(server, "should_exit", True))
    try:
        yield
    finally:
        signal.signal(hangup, signal.SIG_DFL)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises
    ------
    UserError
        The port is in use or not allowed, or this machine has no such host.
    """
    found = None
    try:
        kind, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(kind, socket.SOCK_STREAM)
        if os.name == "posix":  # a port that was left just now is free; elsewhere it would be shared
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
        found.listen(128)
    except (OSError, OverflowError) as error:
        if found is not None:
            found.close()
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot listen on {host}, port {port}: {why}", "name another: --port N, or leave it out"
        ) from None
    return found


def open_browser(address: str) -> None:
    """Open an address in the browser, where there is a screen to show it."""
    import sys
    import webbrowser

    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        LOG.info("no screen here: open the address on this machine, or through ssh -L")
        return
    try:
        webbrowser.open(address)
    except webbrowser.Error as error:
        LOG.info(f"no browser could be opened ({error}): open the address yourself")
