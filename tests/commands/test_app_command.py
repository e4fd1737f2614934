"""`cellkit app`: what it refuses before it listens, and where it listens."""

import os
import signal

import pytest

from cellkit.commands.main import main
from cellkit.errors import UserError
from cellkit.pages.app import desk as desks
from cellkit.pages.app import server
from cellkit.pages.app.server import listen, serve


@pytest.mark.parametrize(
    "arguments, words",
    [(["no/run"], "no run folder"), (["--model", "thresholdd"], "no weights 'thresholdd'"), (["--port", "99999"], "--port 99999"),
     (["--most-mb", "0"], "--most-mb 0"), (["--host", "no.such.host.invalid"], "cannot listen")],
)  # fmt: skip
def test_what_the_command_refuses(capfd, arguments, words):
    assert main(["app", "--no-browser", *arguments]) == 2
    assert words in capfd.readouterr().err


def test_a_missing_package_is_named_with_the_line_that_installs_it(capfd, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["app"]) == 2
    assert 'pip install "starlette>=0.49,<2" "uvicorn>=0.35,<1"' in capfd.readouterr().err


def test_it_listens_on_this_machine_alone_unless_told_and_then_warns(capfd, monkeypatch):
    import uvicorn

    bound = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: bound.append(sockets[0].getsockname()[0]))
    monkeypatch.setattr(server, "open_browser", lambda address: pytest.fail("no browser was asked for"))
    assert main(["app", "--no-browser"]) == 0
    assert "warning" not in capfd.readouterr().err
    desk = desks.Desk()
    serve(desk, "0.0.0.0", browser=False)
    told = capfd.readouterr().err
    assert bound == ["127.0.0.1", "0.0.0.0"] and "is not encrypted" in told
    assert f"open http://127.0.0.1:{told.split('http://127.0.0.1:')[1].split('/')[0]}/#{desk.key}" in told
    assert not desk.folder.exists()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminal of this system is hung up")
def test_a_terminal_that_is_closed_ends_it_and_removes_the_files(monkeypatch):
    import uvicorn

    ended = []

    def closed(self, sockets):
        os.kill(os.getpid(), signal.SIGHUP)
        ended.append(self.should_exit)

    monkeypatch.setattr(uvicorn.Server, "run", closed)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for what in (signal.SIG_DFL, signal.SIG_IGN):  # by nohup it goes on
            signal.signal(signal.SIGHUP, what)
            desk = desks.Desk()
            serve(desk, browser=False)
            assert signal.getsignal(signal.SIGHUP) == what and not desk.folder.exists()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ended == [True, False]


def test_a_port_in_use_is_said():
    taken = listen("127.0.0.1", 0)
    with taken, pytest.raises(UserError, match="cannot listen on 127.0.0.1, port"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_a_browser_is_opened_only_where_there_is_a_screen(monkeypatch):
    import sys
    import webbrowser

    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    server.open_browser("http://a")
    monkeypatch.setitem(os.environ, "DISPLAY", ":0")
    server.open_browser("http://b")
    assert opened == ["http://b"]
