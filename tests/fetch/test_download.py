"""A file comes whole and from where it was asked, or not at all: against a server on 127.0.0.1 that misbehaves."""

import errno
import json
import os
import shutil
import ssl
import subprocess
import threading
import urllib.request
from http.server import HTTPServer
from pathlib import Path

import numpy as np
import pytest
from loopback import DATE, Server, _Handler

from cellkit.errors import UserError
from cellkit.fetch import archives
from cellkit.fetch import download as module
from cellkit.fetch.download import Patience, Refused, Unreachable, download, opener_for, real_address
from cellkit.machine import NoRoom

QUICK = Patience(timeout_s=5.0, tries=3, backoff_s=0.01)
BODY = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()


@pytest.fixture
def server():
    with Server() as running:
        yield running


@pytest.fixture
def part(tmp_path) -> Path:
    return tmp_path / "there/a.bin.part"


@pytest.fixture
def get(server, part):
    """Download /a; return the bytes that are there then."""

    def call(**how) -> bytes:
        return download(f"{server.url}/a", part, **{"patience": QUICK, **how}).read_bytes()

    return call


class TestWhole:
    def test_one_request_and_all_bytes(self, server, get, part):
        server.put("/a", BODY)
        assert get(size_bytes=len(BODY)) == BODY
        assert server.ranges() == [""]
        assert json.loads(Path(f"{part}.json").read_text())["total_bytes"] == len(BODY)

    def test_an_empty_file(self, server, get):
        server.put("/a", b"")
        assert get() == b""

    def test_a_length_that_is_not_announced(self, server, get):
        server.put("/a", BODY, "unannounced")
        assert get() == BODY

    def test_said_how_far_it_is(self, server, get, monkeypatch, capsys):
        monkeypatch.setattr("cellkit.parallel.LOG_EVERY_S", 0.0)
        server.put("/a", bytes(3_500_000))
        get(desc="a.bin")
        assert "a.bin (MB): 1 of 4" in capsys.readouterr().err


class TestBrokenOff:
    def test_goes_on_where_it_was(self, server, get):  # fault 43
        server.put("/a", BODY, "break 100000", "break 50000", "ok")
        assert get() == BODY
        assert server.ranges() == ["", "bytes=100000-", "bytes=150000-"]
        assert {headers.get("if-range") for _, headers in server.asked[1:]} == {'"1"'}

    def test_goes_on_in_a_later_call(self, server, get, part):
        server.put("/a", BODY, "break 1000", "break 2000", "status 503")
        with pytest.raises(Unreachable, match="503"):
            get()
        assert part.read_bytes() == BODY[:3000]
        server.put("/a", BODY)
        assert get() == BODY
        assert server.ranges()[-1] == "bytes=3000-"

    def test_a_server_without_ranges_begins_again(self, server, get):
        server.put("/a", BODY, "break 100000", "ok", ranges=False)
        assert get() == BODY

    def test_a_server_without_ranges_that_always_breaks_off(self, server, get):
        server.put("/a", BODY, "break 100000", ranges=False)
        with pytest.raises(Unreachable, match="100,000 of 300,000"):
            get()
        assert len(server.asked) <= 4

    def test_another_version_begins_again(self, server, get):
        server.put("/a", BODY[::-1], "break 1000", "status 503")
        with pytest.raises(Unreachable):
            get()
        server.put("/a", BODY, etag='"2"', date="")
        assert get() == BODY

    def test_a_weak_etag_is_no_version(self, server, get):
        server.put("/a", BODY, "break 1000", "ok", etag='W/"1"')
        assert get() == BODY
        assert server.asked[1][1]["if-range"] == DATE

    def test_bytes_of_no_known_version_are_not_built_on(self, server, get, part):
        server.put("/a", BODY, "break 1000", "status 503", etag="", date="")
        with pytest.raises(Unreachable):
            get()
        assert part.stat().st_size
        server.put("/a", BODY)
        assert get() == BODY
        assert server.ranges()[-1] == ""

    def test_a_part_of_another_address_or_without_side_file(self, server, get, part):
        server.put("/a", BODY)
        part.parent.mkdir()
        part.write_bytes(b"x" * 500)
        assert get() == BODY
        part.write_bytes(b"x" * 500)
        told = {"url": "https://example.org/b", "etag": '"1"', "last_modified": "", "total_bytes": None}
        Path(f"{part}.json").write_text(json.dumps(told))
        assert get() == BODY
        Path(f"{part}.json").write_text("{")
        assert get() == BODY

    def test_a_range_nobody_asked_for(self, server, get):
        server.put("/a", BODY, "break 1000", "other range", "ok")
        assert get() == BODY

    def test_a_part_longer_than_the_file(self, server, get, part):
        server.put("/a", BODY, "break 1000", "status 503")
        with pytest.raises(Unreachable):
            get()
        server.put("/a", BODY[:500])
        assert get() == BODY[:500]  # 416, then anew

    def test_a_part_that_is_all_of_it_asks_for_nothing(self, server, get):
        server.put("/a", BODY)
        get()
        get()
        assert len(server.asked) == 1

    def test_interrupted_leaves_the_part(self, server, get, part, monkeypatch):
        def interrupt(_):
            raise KeyboardInterrupt

        server.put("/a", BODY, "break 1000")
        monkeypatch.setattr(module.time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            get()
        assert part.read_bytes() == BODY[:1000]


class TestLies:
    def test_announces_more_than_it_sends(self, server, get):  # fault 43
        server.put("/a", BODY, "more 50")
        with pytest.raises(Unreachable):
            get()
        assert len(server.asked) < 20, "does not go on for ever"

    def test_announces_less_than_it_sends(self, server, get):
        server.put("/a", BODY, "less 50")
        assert get() == BODY[:-50]  # nothing in HTTP tells; the caller's sha256 does

    def test_announces_less_than_is_known(self, server, get):
        server.put("/a", BODY, "less 50")
        with pytest.raises(UserError, match=r"offers 299,950 bytes, the file is known to have 300,000"):
            get(size_bytes=len(BODY))

    def test_another_length_than_known_is_not_downloaded(self, server, get, part):
        server.put("/a", BODY)
        with pytest.raises(UserError, match="it is another file than the registry knows"):
            get(size_bytes=10)
        assert not part.exists()

    @pytest.mark.parametrize(("fault", "said"), [("html", "web page"), ("gzip", "another encoding")])
    def test_something_else_than_the_file(self, server, get, fault, said):
        server.put("/a", BODY, fault)
        with pytest.raises(Refused, match=said):
            get()


class TestRefusals:
    @pytest.mark.parametrize("status", [401, 403, 404, 410])
    def test_final(self, server, get, status):
        server.put("/a", BODY, f"status {status}")
        with pytest.raises(Refused, match=str(status)) as caught:
            get()
        assert caught.value.status == status
        assert len(server.asked) == 1

    def test_passing(self, server, get):
        server.put("/a", BODY, "status 500", "status 503", "ok")
        assert get() == BODY

    def test_passing_for_ever(self, server, get):
        server.put("/a", BODY, "status 502")
        with pytest.raises(Unreachable, match="HTTP 502"):
            get()
        assert len(server.asked) == QUICK.tries

    def test_waits_as_long_as_asked(self, server, get, monkeypatch):
        waits = []
        monkeypatch.setattr(module.time, "sleep", waits.append)
        server.put("/a", BODY, "status 429", "status 503", "ok", headers={"Retry-After": "7"})
        assert get() == BODY
        assert waits == [7.0, 7.0]

    def test_waits_longer_each_time(self):
        assert [Patience().wait_s(k) for k in (1, 2, 3, 20)] == [1.0, 2.0, 4.0, 60.0]

    def test_silence(self, server, get):
        server.put("/a", BODY, "silent 1")
        with pytest.raises(Unreachable, match="timed out"):
            get(patience=Patience(timeout_s=0.1, tries=2, backoff_s=0.01))

    def test_slow_is_not_silent(self, server, get):
        server.put("/a", BODY, "slow 0.05")
        assert get(patience=Patience(timeout_s=2.0, tries=1)) == BODY

    def test_nobody_there(self, part):
        with Server() as gone:
            pass
        with pytest.raises(Unreachable, match="no connection"):
            download(f"{gone.url}/a", part, patience=QUICK)

    def test_no_room(self, server, get, part, monkeypatch):  # fault 38
        usage = shutil.disk_usage(".")
        monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage._replace(free=50_000_010))
        server.put("/a", BODY)
        with pytest.raises(NoRoom, match="has 50 MB free") as caught:
            get()
        assert "--to" in str(caught.value)

    def test_disk_full_half_way(self, server, get, part, monkeypatch):
        def full(response, file):
            file.write(response.read(1000))
            raise OSError(errno.ENOSPC, "No space left on device")
            yield

        server.put("/a", BODY)
        monkeypatch.setattr(module, "_megabytes", full)
        with pytest.raises(UserError, match="is full\nfree some space and repeat: what is here is kept"):
            get()
        assert part.read_bytes() == BODY[:1000]


class TestWhereTo:
    def test_https_or_this_machine(self, monkeypatch):
        monkeypatch.delenv("CELLKIT_MIRROR", raising=False)
        assert real_address("https://example.org/a?b=c") == "https://example.org/a?b=c"
        assert real_address("http://127.0.0.1:8000/a") == "http://127.0.0.1:8000/a"
        for url in (
            "http://example.org/a",
            "ftp://example.org/a",
            "file:///etc/passwd",
            "http://127.0.0.1.example.org/a",
        ):
            with pytest.raises(UserError, match="is not https"):
                real_address(url)

    def test_mirror(self, monkeypatch):
        monkeypatch.setenv("CELLKIT_MIRROR", "https://elsewhere.example/pub/")
        assert real_address("https://example.org/a") == "https://elsewhere.example/pub/example.org/a"
        monkeypatch.setenv("CELLKIT_MIRROR", "http://elsewhere.example")
        with pytest.raises(UserError, match="set CELLKIT_MIRROR to an https address"):
            real_address("https://example.org/a")

    def test_a_redirect_to_http_is_not_followed(self, server, get):
        for target in ("http://example.org/a", "file:///etc/passwd", "ftp://example.org/a"):
            server.put("/a", BODY, f"redirect {target}")
            with pytest.raises((Refused, Unreachable)):
                get()
        with Server() as other:
            other.put("/a", BODY)
            server.put("/a", BODY, f"redirect {other.url}/a")
            with pytest.raises(Refused, match="not https"):
                get()
            assert other.asked == []

    def test_a_redirect_within_the_server(self, server, get):
        server.put("/a", b"", "redirect /b")
        server.put("/b", BODY)
        assert get() == BODY

    def test_what_the_user_signs_in_with_stays_with_the_host(self):
        request = urllib.request.Request(
            "https://a.example/x", headers={"Authorization": "Basic abc", "User-Agent": "u"}
        )
        follow = module._Redirects().redirect_request
        there = follow(request, None, 302, "Found", {}, "https://b.example/y")
        assert not there.has_header("Authorization")
        same = follow(request, None, 302, "Found", {}, "https://a.example/y")
        assert same.get_header("Authorization") == "Basic abc"


class TestCertificates:
    """Fault 56: cellpose turns the verification of certificates off for the whole process; nothing here may."""

    def test_the_default_is_as_python_ships_it(self):
        assert ssl._create_default_https_context is ssl.create_default_context

    def test_verified_even_when_another_package_turned_it_off(self, monkeypatch):
        monkeypatch.setattr(ssl, "_create_default_https_context", ssl._create_unverified_context)
        (handler,) = [h for h in opener_for("https://a.example").handlers if isinstance(h, urllib.request.HTTPSHandler)]
        assert handler._context.verify_mode == ssl.CERT_REQUIRED
        assert handler._context.check_hostname

    @pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
    def test_a_certificate_nobody_vouches_for(self, tmp_path, part):
        key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
        made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
        subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server = HTTPServer(("127.0.0.1", 0), _Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            with pytest.raises(Unreachable, match="certificate cannot be verified"):
                download(f"https://127.0.0.1:{server.server_port}/a", part, patience=QUICK)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
        assert not os.path.exists(part)
