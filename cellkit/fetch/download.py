"""One file from the network: resumed where it broke off, whole or not there, over verified TLS.

The next bytes go to ``FILE.part``; beside it ``FILE.part.json`` keeps what names the version they belong to (ETag or
Last-Modified), so that a later attempt asks for the rest of the same version only (RFC 9110, sections 13.1.5 and 14).
Standard library alone.
"""

from __future__ import annotations

import base64
import errno
import http.client
import json
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cellkit.errors import UserError
from cellkit.fetch.registry import Entry
from cellkit.files import read_json, write_json
from cellkit.log import LOG
from cellkit.machine import check_space
from cellkit.parallel import progress

MIRROR_VARIABLE = "CELLKIT_MIRROR"
LOOPBACK = "127.0.0.1"
CHUNK_BYTES = 65_536
MEGABYTE = 1_000_000
SPACE_EVERY = 64  # megabytes between looks at the free space, where the length is not announced
RETRIED = (408, 425, 429, 500, 502, 503, 504)
MAX_WAIT_S = 60.0


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for.

    Parameters
    ----------
    timeout_s : float
        Of one connection or one read: silence, not the whole download.
    tries : int
        Attempts in a row that bring no byte, and attempts that begin with the first byte; one that brings more of what
        is here already starts the count again.
    backoff_s : float
        Before the second attempt, doubled before each further one.
    """

    timeout_s: float = 30.0
    tries: int = 5
    backoff_s: float = 1.0

    def wait_s(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        return min(self.backoff_s * 2 ** (failures - 1), MAX_WAIT_S)


class Unreachable(Exception):
    """No way to the server: for the caller to say how the file can be carried by hand."""


class Refused(Exception):
    """The server answered, and not with the file: its status code."""

    def __init__(self, status: int, reason: str):
        super().__init__(f"HTTP {status} {reason}".strip())
        self.status = status


class _Again(Exception):
    """This attempt failed; another may do better."""

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass
class _Part:
    """The part that is here already, and the version it belongs to."""

    path: Path
    url: str
    etag: str = ""
    last_modified: str = ""
    total_bytes: int | None = None

    @property
    def side(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def validator(self) -> str:
        """Return what If-Range may carry: a strong ETag, else the date."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified

    def load(self) -> None:
        """Read the side file; a part of another address, or of no known version, is thrown away."""
        try:
            saved = read_json(self.side)
            known = saved["url"] == self.url
            self.etag, self.last_modified = str(saved["etag"]), str(saved["last_modified"])
            self.total_bytes = saved["total_bytes"] if isinstance(saved["total_bytes"], int) else None
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if not known or (self.size_bytes and not self.validator):
            self.forget()

    def begin(self, headers: Mapping[str, str], total: int | None) -> None:
        """Note the version whose bytes are about to come."""
        self.etag, self.last_modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
        self.total_bytes = total
        saved = {"url": self.url, "etag": self.etag, "last_modified": self.last_modified, "total_bytes": total}
        write_json(self.side, saved)

    def forget(self) -> None:
        """Throw away the part and what is known of it."""
        self.path.unlink(missing_ok=True)
        self.side.unlink(missing_ok=True)
        self.etag = self.last_modified = ""
        self.total_bytes = None


# ---- the address ---------------------------------------------------------------------------------------------------
def real_address(url: str) -> str:
    """Return the address to read: `url`, or its place on the mirror named by CELLKIT_MIRROR.

    Raises
    ------
    UserError
        Neither https nor this very machine (127.0.0.1).

    Examples
    --------
    >>> real_address("https://example.org/a.zip")
    'https://example.org/a.zip'
    """
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    address = f"{mirror.rstrip('/')}/{url.partition('://')[2]}" if mirror else url
    if urlsplit(address).scheme != "https" and not _is_loopback(address):
        raise UserError(
            f"{address} is not https", f"set {MIRROR_VARIABLE} to an https address" if mirror else "use https"
        )
    return address


def _is_loopback(url: str) -> bool:
    address = urlsplit(url)
    return address.scheme == "http" and address.hostname == LOOPBACK


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only; what the user signs in with goes to no other host."""

    def redirect_request(self, request, fp, code, msg, headers, newurl):
        target = urlsplit(newurl)
        same = _origin(newurl) == _origin(request.full_url)
        if not (target.scheme == "https" or (same and _is_loopback(newurl))):
            fp.close()
            raise Refused(code, f"redirects to {target.scheme}://{target.hostname}, which is not https")
        new = super().redirect_request(request, fp, code, msg, headers, newurl)
        if new is not None and not same:
            new.remove_header("Authorization")
        return new


def _origin(url: str) -> tuple[str, str | None, int | None]:
    address = urlsplit(url)
    return address.scheme, address.hostname, address.port


def opener_for(url: str) -> urllib.request.OpenerDirector:
    """Return what opens `url`: certificates verified whatever other packages did to Python's default, proxies as set."""
    context = ssl.create_default_context()
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context), _Redirects()]
    if _is_loopback(url):
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)


# ---- the download --------------------------------------------------------------------------------------------------
def download(
    url: str,
    part: Path,
    size_bytes: int | None = None,
    authorization: str = "",
    patience: Patience | None = None,
    desc: str = "",
) -> Path:
    """Bring all bytes of `url` into `part`, from where an earlier attempt left off; the caller verifies and renames.

    Parameters
    ----------
    part : Path
        Its name ends in ``.part``; an interruption leaves it there.
    size_bytes : int, optional
        How many bytes the file is known to have; a server that announces others is refused at once.
    authorization : str
        Value of the header; goes to the host of `url` alone.

    Returns
    -------
    Path
        `part`, as long as the server announced.

    Raises
    ------
    Unreachable
        No connection, or it broke again and again: with the last reason.
    Refused
        The server does not give the file: with its status.
    UserError
        The disk is too small, or the server offers a file of another length.
    """
    patience = patience or Patience()
    partial = _Part(part, url)
    part.parent.mkdir(parents=True, exist_ok=True)
    partial.load()
    failures = begun = 0
    while True:
        before = partial.size_bytes
        begun += before == 0
        try:
            _attempt(partial, size_bytes, authorization, patience, desc or part.name.removesuffix(".part"))
            return part
        except _Again as error:
            failures = 1 if partial.size_bytes > before else failures + 1
            hopeless = isinstance(error, _NoWay) and failures >= 2
            if failures >= patience.tries or begun >= patience.tries or hopeless:
                raise Unreachable(str(error)) from error
            wait_s = patience.wait_s(failures) if error.wait_s is None else min(error.wait_s, MAX_WAIT_S)
            LOG.info(f"{desc or url}: {error}; again in {wait_s:.0f} s")
            time.sleep(wait_s)


class _NoWay(_Again):
    """There is no network, or nobody listens: waiting long is of no use."""


def _attempt(partial: _Part, size_bytes: int | None, authorization: str, patience: Patience, desc: str) -> None:
    """Ask once for what is missing and write it."""
    have = partial.size_bytes
    if have and have == partial.total_bytes:
        return
    try:
        with _ask(partial, have, authorization, patience) as response:
            start, total = _placed(partial, response, have)
            _check_announced(response, total, size_bytes)
            if start == 0:
                partial.path.unlink(missing_ok=True)
            partial.begin(response.headers, total)
            if total is not None:
                check_space(partial.path.parent, total - start, desc)
            _receive(partial, response, start, total, desc)
    except (TimeoutError, http.client.HTTPException, ConnectionError, ssl.SSLError) as error:
        raise _Again(f"the connection broke: {error or type(error).__name__}") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"the disk of {partial.path.parent} is full", "free some space and repeat: what is here is kept"
            ) from error
        raise


def _ask(partial: _Part, have: int, authorization: str, patience: Patience) -> http.client.HTTPResponse:
    """Send the request; say what kind of failure a failure is."""
    headers = {"User-Agent": "cellkit", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": partial.validator}
    if authorization:
        headers["Authorization"] = authorization
    request = urllib.request.Request(partial.url, headers=headers)
    try:
        return opener_for(partial.url).open(request, timeout=patience.timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                partial.forget()
                raise _Again("the part that is here fits no more, so it is begun anew") from None
            if error.code in RETRIED:
                wait = error.headers.get("Retry-After", "")
                raise _Again(f"HTTP {error.code} {error.reason}", float(wait) if wait.isdigit() else None) from None
            raise Refused(error.code, str(error.reason)) from None
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise Unreachable(f"its certificate cannot be verified: {reason.verify_message}") from None
        nobody = isinstance(reason, (socket.gaierror, ConnectionRefusedError))
        unreached = getattr(reason, "errno", None) in (errno.ENETUNREACH, errno.EHOSTUNREACH)
        raise (_NoWay if nobody or unreached else _Again)(f"no connection: {reason}") from None


def _placed(partial: _Part, response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Return where the answer's bytes begin, and how many the whole file has; a range that does not fit is refused."""
    length = response.headers.get("Content-Length", "")
    if response.status == 200:  # the whole file: no part was requested, another version, or a server without ranges
        return 0, int(length) if length.isdigit() else None
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    begin = span.partition("-")[0]
    fits = response.status == 206 and unit == "bytes" and begin == str(have)
    known = int(total) if total.isdigit() else None
    if not fits or (known is not None and partial.total_bytes not in (None, known)):
        partial.forget()
        raise _Again("the server sent another part than was asked for, so it is begun anew")
    return have, known if known is not None else partial.total_bytes


def _check_announced(response: http.client.HTTPResponse, total: int | None, size_bytes: int | None) -> None:
    if response.headers.get_content_type() == "text/html":
        raise Refused(response.status, "answers with a web page (a sign-in or an error page), not with the file")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Refused(response.status, "sends the file in another encoding than was asked for")
    if None not in (total, size_bytes) and total != size_bytes:
        raise UserError(
            f"{urlsplit(response.url).hostname} offers {total:,} bytes, the file is known to have {size_bytes:,}",
            "it is another file than the registry knows: look at the publisher's page",
        )


def _receive(partial: _Part, response: http.client.HTTPResponse, start: int, total: int | None, desc: str) -> None:
    """Write the body behind what is here, unbuffered: what is written survives a kill."""
    rest = None if total is None else (total - start) // MEGABYTE + 1
    with open(partial.path, "ab", buffering=0) as file:
        for megabyte in progress(_megabytes(response, file), f"{desc} (MB)", total=rest, unit="MB"):
            if total is None and megabyte % SPACE_EVERY == 0:
                check_space(partial.path.parent, SPACE_EVERY * MEGABYTE, desc)
        os.fsync(file.fileno())
    have = partial.size_bytes
    if total is not None and have < total:
        raise _Again(f"the connection broke after {have:,} of {total:,} bytes")
    if total is not None and have > total:
        partial.forget()
        raise _Again(f"the server sent more than the {total:,} bytes it announced")


def _megabytes(response: http.client.HTTPResponse, file) -> Iterator[int]:
    """Copy the body; yield the count of whole megabytes each time there is another one."""
    written = 0
    while chunk := response.read(CHUNK_BYTES):
        file.write(chunk)
        before, written = written, written + len(chunk)
        if before // MEGABYTE != written // MEGABYTE:
            yield written // MEGABYTE


KAGGLE_HOSTS = ("www.kaggle.com", "127.0.0.1")  # the second is a test's server


def authorization_for(entry: Entry, address: str) -> str:
    """Return the header that signs the user in to Kaggle, and to nobody else; "" for everything else.

    Raises
    ------
    UserError
        The address is not Kaggle's, or there is no token.
    """
    if not entry.kaggle:
        return ""
    if urlsplit(address).hostname not in KAGGLE_HOSTS:
        raise UserError(
            f"{entry.name} comes from Kaggle, not from a mirror", "unset CELLKIT_MIRROR, or use --from FILE"
        )
    user, key = kaggle_user()
    if not user:
        return f"Bearer {key}"
    return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode("ascii")


def kaggle_user() -> tuple[str, str]:
    """Return the user's Kaggle name and key, the name "" for a token of the new kind, which stands alone.

    Looked for are KAGGLE_API_TOKEN, KAGGLE_USERNAME and KAGGLE_KEY, ``~/.kaggle/access_token`` and
    ``~/.kaggle/kaggle.json``, in this order. They are sent to Kaggle alone, and neither printed nor written anywhere.

    Raises
    ------
    UserError
        There is no token, with how to get one; or the file is not one.
    """
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle")
    user, key = os.environ.get("KAGGLE_USERNAME", ""), os.environ.get("KAGGLE_KEY", "")
    if os.environ.get("KAGGLE_API_TOKEN", "").strip():
        return "", _token(os.environ["KAGGLE_API_TOKEN"], "KAGGLE_API_TOKEN")
    if user and key:
        return user, key
    if (folder / "access_token").is_file():
        path = folder / "access_token"
        return "", _token(path.read_text(encoding="utf-8", errors="replace"), str(path))
    path = folder / "kaggle.json"
    get = "make one at kaggle.com (Settings, API, Create New Token)"
    if not path.is_file():
        raise UserError(
            f"no Kaggle token: KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, are not set and {path} is not there",
            f"{get} and set KAGGLE_API_TOKEN to it, or download by hand and use --from FILE",
        )
    try:
        token = json.loads(path.read_text(encoding="utf-8"))
        user, key = token["username"], token["key"]
        good = isinstance(user, str) and isinstance(key, str) and user and key
    except (ValueError, KeyError, TypeError):  # the message must not hold what the file holds
        good = False
    if not good:
        raise UserError(f"{path} is no Kaggle token", get) from None
    return user, key


def _token(text: str, where: str) -> str:
    """Return a token: one word of plain letters, or the header it stands in would end early."""
    token = text.strip()
    if not (token.isascii() and token.isprintable() and token and " " not in token):
        raise UserError(f"{where} is no Kaggle token", "make one at kaggle.com (Settings, API, Create New Token)")
    return token
