"""`edgesdk serve` as a process: how it starts, drains and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from support.served import wait_for

pytestmark = pytest.mark.e2e

# The real process around a model that is not real: it answers until its context is full.
_SLOW = """
import sys, time
from support.fake_engine import FakeEngine
from support.served import FakeModels
from edgesdk.server.serving import serve
from edgesdk.server.settings import ServerSettings

models = FakeModels(slow=lambda: FakeEngine(
    b"x" * int(sys.argv[2]), before_extend=lambda sequence: time.sleep(0.02)))
settings = ServerSettings(port=0, grace=float(sys.argv[1]), parallel=1)
serve(models, settings, on_start=lambda url: print(url, flush=True))
"""


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}


@contextmanager
def process(*command: str, **more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and its URL; it is ended where the block has not done so."""
    started = subprocess.Popen(
        [sys.executable, *command],
        env=_environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline().strip()
        assert line.startswith("http://127.0.0.1:"), started.communicate(timeout=20)
        yield started, line
    finally:
        started.kill()
        started.communicate()


def ask(url: str, stream: bool = False) -> httpx.Response:
    body = {"model": "slow", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    return httpx.post(f"{url}/v1/chat/completions", json=body | {"temperature": 0}, timeout=30)


class Asking(threading.Thread):
    """A request under way."""

    def __init__(self, url: str, *, stream: bool = False) -> None:
        super().__init__()
        self.response: httpx.Response | None = None
        self._url, self._stream = url, stream
        self.start()

    def run(self) -> None:
        self.response = ask(self._url, self._stream)

    def result(self) -> httpx.Response:
        self.join(30)
        assert self.response is not None
        return self.response


def until(url: str, **wanted: int) -> None:
    def reached() -> bool:
        return bool(httpx.get(f"{url}/health").json().items() >= wanted.items())

    wait_for(reached)


def test_sigterm_lets_answers_finish_and_sends_others_away() -> None:
    with process("-c", _SLOW, "20", "60") as (server, url):
        running = Asking(url)
        until(url, running=1)
        waiting = Asking(url)
        until(url, running=1, waiting=1)
        server.send_signal(signal.SIGTERM)
        away = waiting.result()
        assert away.status_code == 503
        assert away.json()["error"]["code"] == "shutting_down"
        assert int(away.headers["retry-after"]) >= 1
        done = running.result()
        assert done.status_code == 200
        assert done.json()["choices"][0]["message"]["content"] == "x" * 60
        with pytest.raises(httpx.ConnectError):
            ask(url)
        assert server.wait(20) == 0
        assert server.stderr is not None
        assert server.stderr.read() == ""


@pytest.mark.parametrize("stream", [False, True])
def test_after_the_grace_time_answers_are_ended(stream: bool) -> None:
    with process("-c", _SLOW, "0.1", "4000") as (server, url):
        running = Asking(url, stream=stream)
        until(url, running=1)
        server.send_signal(signal.SIGTERM)
        response = running.result()
        if stream:
            assert response.status_code == 200
            last = response.text.strip().split("\n\n")[-1]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        else:
            assert response.status_code == 503
        assert server.wait(20) == 0


def test_ctrl_c_ends_it_too() -> None:
    with process("-c", _SLOW, "1", "60") as (server, _):
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0


def test_the_command_prints_its_address_and_serves_the_store(tmp_path: Path) -> None:
    arguments = ("-m", "edgesdk", "serve", "--port", "0")
    with process(*arguments, EDGESDK_HOME=str(tmp_path / "store")) as (server, url):
        assert url.endswith("/v1")
        assert httpx.get(f"{url}/models").json() == {"object": "list", "data": []}
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0


def refused(*arguments: str, **more: str) -> tuple[int, str]:
    result = subprocess.run(
        [sys.executable, "-m", "edgesdk", "serve", *arguments],
        env=_environment(**more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return result.returncode, line


def test_an_open_address_needs_a_key(tmp_path: Path) -> None:
    status, line = refused("--host", "0.0.0.0", EDGESDK_HOME=str(tmp_path))
    assert status == 2
    assert "EDGESDK_API_KEY" in line


def test_what_cannot_be_served_is_said_at_the_start(tmp_path: Path) -> None:
    home = {"EDGESDK_HOME": str(tmp_path)}
    status, line = refused("./absent.gguf", "--port", "0", **home)
    assert status == 1
    assert "absent.gguf" in line
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, line = refused("--port", str(taken.getsockname()[1]), **home)
    assert status == 2
    assert "--port" in line


def test_without_the_extra_the_error_is_the_pip_line(tmp_path: Path) -> None:
    # Where a module is None, Python finds none of that name.
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['uvicorn'] = None")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    status, line = refused(PYTHONPATH=path, EDGESDK_HOME=str(tmp_path))
    assert status == 1
    assert "pip install 'edgesdk[server]'" in line
