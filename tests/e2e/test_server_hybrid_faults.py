"""A hybrid server whose cloud fails, hangs or is too dear; and its command line."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.command_line import environment
from support.hybrid_served import LOCAL, PATIENCE, ask, hybrid_server, report, stream, text_of
from support.scripted_server import HEAD, Reset, Script, ScriptedServer, Wait, chunk, event, status
from support.served import (
    Served,
    user,
)
from support.talking_cloud import TalkingCloud, said
from support.waiting import until

from edgesdk.hybrid.cloud.endpoint import Cloud, Timeouts
from edgesdk.hybrid.cloud.spending import Budget, SpendingLimits
from edgesdk.hybrid.storage.journal import Journal

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("short_pauses")]


def failing(*steps: Any) -> Callable[[dict[str, Any]], Script]:
    return lambda body: list(steps)


FAULTS: dict[str, Any] = {
    "refused": failing(*status("401 No", {"error": {"message": "bad key sk-secret-key"}})),
    "busy": failing(*status("503 Busy")),
    "reset": failing(Reset()),
    "html": failing(HEAD.replace(b"text/event-stream", b"text/html"), b"<html>"),
    "in band": failing(HEAD, event({"error": {"message": "sk-secret-key"}})),
}


KINDS = {
    "refused": "refused", "busy": "busy", "reset": "unreachable", "html": "broken",
    "in band": "broken",
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("streams", [False, True])
def test_without_the_cloud_the_devices_answer_comes_marked(
    name: str, streams: bool, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with TalkingCloud(FAULTS[name]) as cloud, hybrid_server(cloud) as (server, client):
        if streams:
            headers, chunks = stream(client)
            text, told = text_of(chunks), report(chunks[-1])
        else:
            raw = ask(client)
            headers, answer = raw.headers, raw.parse()
            text, told = answer.choices[0].message.content, report(answer)
        metrics = server.get("/metrics").text
    assert (text, told["route"], told["low_confidence"]) == (LOCAL.decode(), "local", True)
    assert headers["x-edgesdk-route"] == "local"
    assert "the cloud" in told["reason"]
    # Why each request failed, as the receipt has it.
    assert told["failures"]
    for failure in told["failures"]:
        assert set(failure) == {"endpoint", "kind", "status", "code", "message"}
        assert failure["kind"] == KINDS[name]
        assert "big at 127.0.0.1" in failure["endpoint"]
    assert 'edgesdk_hybrid_answers_total{model="unsure",route="local"} 1.0' in metrics
    # The key is in the requests to the cloud, and nowhere else.
    assert b"Bearer sk-secret-key" in cloud.sent()
    everything = [caplog.text, *capfd.readouterr(), metrics, str(headers), json.dumps(told)]
    assert not [text for text in everything if "sk-secret-key" in text]


def test_what_is_shown_at_its_end_may_begin_again() -> None:
    tried: list[int] = []

    def answers(body: dict[str, Any]) -> Script:
        tried.append(1)
        return said("The answer.") if len(tried) % 2 == 0 else [HEAD, chunk("The an")]

    with (
        TalkingCloud(answers) as cloud,
        hybrid_server(cloud, hold="answer") as (_, client),
    ):
        assert ask(client).parse().choices[0].message.content == "The answer."
        _, chunks = stream(client)
        assert (text_of(chunks), report(chunks[-1])["whole"]) == ("The answer.", True)


def test_budget_and_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    budget = Budget(SpendingLimits(money_per_day=0.01))
    with TalkingCloud(lambda body: said("ok")) as cloud:
        there = Cloud(cloud.url, "big", "sk-key", input_price=10.0, output_price=1000.0)
        with hybrid_server(there, budget=budget, journal=journal) as (_, client):
            first = ask(client, "the tea price", max_tokens=9).parse()
            second = ask(client, "the tea price", max_tokens=9).parse()
    assert report(first)["cost"]["money"] == pytest.approx(0.00103)
    assert (report(second)["route"], report(second)["low_confidence"]) == ("local", True)
    assert "budget: money_per_day" in report(second)["reason"]
    assert [entry.decision.route for entry in journal.entries()] == ["cloud", "local"]
    raw = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"tea" not in raw
    assert b"sk-key" not in raw


class Hanging(ScriptedServer):
    """Begins an answer, and says nothing more; `left` is set when the other side has gone."""

    def __init__(self) -> None:
        super().__init__([[]])
        self.asked, self.left = threading.Event(), threading.Event()

    def patient(self) -> Cloud:
        """The endpoint, whose limits are no help."""
        timeouts = Timeouts(first_token=10 * PATIENCE, between_tokens=10 * PATIENCE)
        return Cloud(self.url, "big", "sk-key", timeouts=timeouts)

    def _serve(self, plain: socket.socket, script: Script) -> None:
        with plain:
            plain.settimeout(PATIENCE)
            plain.recv(65_536)
            self.asked.set()
            plain.sendall(HEAD + chunk("The "))
            while plain.recv(65_536):
                pass
        self.left.set()


def test_a_client_that_leaves_ends_the_answer_of_the_cloud_too() -> None:
    with Hanging() as cloud, hybrid_server(cloud.patient()) as (server, client):
        answer = ask(client, stream=True).parse()
        assert next(iter(answer)).choices[0].delta.role == "assistant"
        answer.close()
        assert cloud.left.wait(PATIENCE)
        server.until(running=0, waiting=0)


def test_the_queue_s_deadline_holds_for_the_cloud_too() -> None:
    def answers(body: dict[str, Any]) -> Script:
        return [HEAD, Wait(PATIENCE)]

    with (
        TalkingCloud(answers) as cloud,
        hybrid_server(cloud, settings={"deadline": 4.0}) as (_, client),
    ):
        answer = ask(client).parse()
    assert (answer.choices[0].message.content, report(answer)["route"]) == (
        LOCAL.decode(), "local",
    )  # fmt: skip
    assert "too slow" in report(answer)["reason"]


@pytest.mark.parametrize("streams", [False, True])
def test_stopping_ends_what_waits_for_the_cloud(streams: bool) -> None:
    ended: list[int] = []

    def run(server: Served) -> None:
        body = {"model": "unsure", "messages": user("Hi"), "temperature": 0, "stream": streams}
        ended.append(server.post("/v1/chat/completions", json=body).status_code)

    with Hanging() as cloud:
        with hybrid_server(cloud.patient(), hold="answer") as (server, _):
            thread = threading.Thread(target=run, args=[server])
            thread.start()
            assert cloud.asked.wait(PATIENCE)
        thread.join(PATIENCE)
        assert cloud.left.wait(PATIENCE)
    assert ended == [503]


# The real command line around a model that is not real.
_SERVE = """
import sys
from edgesdk.server import model_pool
from support.command_line import environment
from support.fake_engine import FakeEngine
from support.served import EchoEngine, FakeModels
from edgesdk.cli import main

models = FakeModels(unsure=lambda: FakeEngine(b"I am not sure.", probability=0.39), sure=EchoEngine)
model_pool.StoreModels = lambda *given, **named: models
main(["serve", "--port", "0", "--grace", "0", *sys.argv[1:]])
"""


@contextmanager
def command_line(*options: str, **variables: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """A function that asks a server of these options; the process ends well."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, *options],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None

    def asked(content: Any, **more: Any) -> dict[str, Any]:
        body = {"model": "unsure", "messages": user(content), **more}
        answer = httpx.post(f"{url}/chat/completions", json=body, timeout=PATIENCE)
        found: dict[str, Any] = answer.json()
        return found

    try:
        url = process.stdout.readline().strip()
        yield asked
    finally:
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "sk-secret-key" not in out + err


def test_the_command_line(tmp_path: Path) -> None:
    with TalkingCloud(lambda body: said("The answer.")) as cloud:
        config = tmp_path / "hybrid.toml"
        config.write_text(
            f"""
            upload = "allow"
            journal = "journal.sqlite"
            hold = "answer"
            [[cloud]]
            url = "{cloud.url}"
            model = "big"
            api_key_env = "MY_KEY"
            input_price = 10
            output_price = 1000
            [budget]
            money_per_day = 0.002
            file = "budget.sqlite"
            [confidence]
            threshold = 0.5
            """
        )
        options = ["--config", str(config)]
        home = str(tmp_path / "home")
        with command_line(*options, MY_KEY="sk-secret-key", EDGESDK_HOME=home) as asked:
            answers = [asked("To ann@x.io", max_tokens=1) for _ in range(3)]
    assert [answer["edgesdk"]["route"] for answer in answers] == ["cloud", "local", "local"]
    assert "money_per_day" in answers[1]["edgesdk"]["reason"]
    assert b"ann@x.io" in cloud.sent()
    assert b"Bearer sk-secret-key" in cloud.sent()
    journal = Journal(tmp_path / "journal.sqlite")
    assert [entry.decision.route for entry in journal.entries()] == ["cloud", "local", "local"]
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*.sqlite"))
    assert b"sk-secret-key" not in written


def test_the_command_line_of_tries_audits_hedging_and_media(tmp_path: Path) -> None:
    came, journal = threading.Semaphore(0), tmp_path / "journal.sqlite"
    first = iter([True])

    def answers(body: dict[str, Any]) -> Script:
        came.release()
        if body["messages"][-1]["content"] == "Slow?" and next(first, False):
            # The second request for the same answer is what ends the wait.
            came.acquire(timeout=PATIENCE)
            came.acquire(timeout=PATIENCE)
        return said("The answer.")

    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with TalkingCloud(answers) as cloud:
        config = tmp_path / "hybrid.toml"
        config.write_text(
            f"""
            media = "redact"
            journal = "journal.sqlite"
            audits = 1
            hedge_after = 0.2
            profile = "my-app"
            [[cloud]]
            url = "{cloud.url}"
            model = "big"
            [[cloud]]
            url = "{cloud.url}"
            model = "other"
            [confidence]
            threshold = 0.95
            tries = 2
            """
        )
        options = ["--config", str(config)]
        with command_line(*options, EDGESDK_HOME=str(tmp_path / "home")) as asked:
            tried = asked("Hi", temperature=0)
            assert came.acquire(timeout=PATIENCE)
            kept = asked("Hi", model="sure")
            assert came.acquire(timeout=PATIENCE)  # the audit
            seen = asked([{"type": "text", "text": "What is it?"}, picture])
            assert came.acquire(timeout=PATIENCE)
            hedged = asked("Slow?", edgesdk={"prefer": "cloud"})
            until(lambda: len(list(Journal(journal).entries())) == 5)
    assert kept["edgesdk"]["route"] == "local"
    # However many agreed, it would not be sure enough.
    assert re.search(r"unsure \(0\.\d\d after [23] answers\)", tried["edgesdk"]["reason"])
    assert (seen["edgesdk"]["route"], hedged["edgesdk"]["route"]) == ("cloud", "cloud")
    assert cloud.sent().count(b"Slow?") == 2
    routes = [entry.decision.route for entry in Journal(journal).entries()]
    assert sorted(routes) == ["audit", "cloud", "cloud", "cloud", "local"]
