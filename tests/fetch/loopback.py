"""A web server on 127.0.0.1 that keeps to the standard, or breaks off, lies about lengths, and worse, as it is told."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATE = "Mon, 02 Feb 2026 10:00:00 GMT"


@dataclass
class Page:
    """What lies at one address.

    ``faults`` are used up one per request, the last one stays: "ok", "break N" (end after N bytes of the answer), "more N"
    and "less N" (announce N bytes more or fewer), "status N", "redirect URL", "silent S", "slow S" (seconds per 64 kB),
    "other range" (a range nobody asked for), "html", "gzip", "unannounced".
    """

    body: bytes = b""
    etag: str = '"1"'
    date: str = DATE
    ranges: bool = True
    faults: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    user: str = ""

    def fault(self) -> tuple[str, str]:
        told = (self.faults.pop(0) if len(self.faults) > 1 else self.faults[0]) if self.faults else "ok"
        name, _, value = told.partition(" ")
        return name, value


class Server:
    """Pages by path, and what was asked for."""

    def __init__(self):
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        handler = type("Handler", (_Handler,), {"site": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.http.block_on_close = False
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def put(self, path: str, body: bytes = b"", *faults: str, **how) -> Page:
        """Put a page there; return it."""
        self.pages[path] = Page(body, faults=list(faults), **how)
        return self.pages[path]

    def ranges(self) -> list[str]:
        """Return the ranges asked for, "" where none was."""
        return [headers.get("range", "") for _, headers in self.asked]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        with contextlib.suppress(ConnectionError, TimeoutError):  # the client went away
            self._answer()
        self.close_connection = True

    def _answer(self):
        asked = {key.lower(): value for key, value in self.headers.items()}
        self.site.asked.append((self.path, asked))
        page = self.site.pages.get(self.path)
        if page is None:
            return self.send_error(404)
        if page.user and asked.get("authorization", "") != page.user:
            return self.send_error(401)
        name, value = page.fault()
        if name == "status":
            self.send_response(int(value))
            for key, text in page.headers.items():
                self.send_header(key, text)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if name == "redirect":
            self.send_response(302)
            self.send_header("Location", value)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if name == "silent":
            return time.sleep(float(value))
        return self._send(page, asked, name, value)

    def _send(self, page, asked, name, value):
        start, body = 0, page.body
        ranged = page.ranges and asked.get("range", "").startswith("bytes=")
        if ranged and asked.get("if-range") in (page.etag, page.date):
            start = int(asked["range"][6:].rstrip("-"))
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if name == "other":
            start = max(start - 7, 0)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        length = len(body) - start + (int(value) if name == "more" else -int(value) if name == "less" else 0)
        if name != "unannounced":
            self.send_header("Content-Length", str(length))
        for key, text in {"ETag": page.etag, "Last-Modified": page.date, **page.headers}.items():
            if text:
                self.send_header(key, text)
        self.send_header("Content-Type", "text/html" if name == "html" else "application/octet-stream")
        if name == "gzip":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Connection", "close")
        self.end_headers()
        rest = body[start : start + int(value)] if name == "break" else body[start:]
        for at in range(0, len(rest), 65_536):
            self.wfile.write(rest[at : at + 65_536])
            if name == "slow":
                time.sleep(float(value))
        return self.wfile.flush()
