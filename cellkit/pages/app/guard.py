"""Who may ask for the page: what comes from our own page, by a name of this machine that nobody else made up."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Mapping

from cellkit.errors import readable

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def is_known_host(header: str, bound_to: str) -> bool:
    """Tell whether a Host header names this machine: bound to it alone, by its own names; else by an address too.

    A name that somebody else's name server made up for this machine is none of them.

    Examples
    --------
    >>> is_known_host("127.0.0.1:8000", "127.0.0.1"), is_known_host("localhost", "127.0.0.1"), is_known_host("[::1]:80", "::1")
    (True, True, True)
    >>> is_known_host("evil.example:8000", "127.0.0.1"), is_known_host("192.168.1.5", "127.0.0.1"), is_known_host("", "::1")
    (False, False, False)
    >>> is_known_host("192.168.1.5:8000", "0.0.0.0"), is_known_host("evil.example", "0.0.0.0")
    (True, False)
    """
    name, _, port = header.rpartition(":") if header.count(":") == 1 or "]:" in header else (header, "", "")
    name = name.strip("[]").lower()
    if port and not port.isdecimal():
        return False
    if name in LOOPBACK or (name and name == bound_to.lower()):
        return True
    if bound_to in LOOPBACK:
        return False
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return bool(name) and name in (socket.gethostname().lower(), socket.getfqdn().lower())


def why_refused(method: str, headers: Mapping[str, str], bound_to: str) -> str:
    """Return why a request is refused, "" for one of our own page."""
    host = headers.get("host", "")
    if not is_known_host(host, bound_to):
        return (
            f"this is cellkit app on {bound_to}, not '{readable(host)[:80]}'; open the address that the command printed"
        )
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return "a page of another site asks; open the address that the command printed"
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return "a page of another site asks; open the address that the command printed"
    if method not in ("GET", "POST"):
        return f"{method} is not answered here; open the address that the command printed"
    return ""


class Guard:
    """Refuses what does not come from our own page, and says to browsers what this page may do."""

    def __init__(self, app: Callable, bound_to: str):
        self.app, self.bound_to = app, bound_to

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        from starlette.responses import JSONResponse

        async def guarded(message: dict) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if why := why_refused(scope["method"], headers, self.bound_to):
            problem, _, remedy = why.partition("; ")
            await JSONResponse({"problem": problem, "remedy": remedy}, 403)(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)
