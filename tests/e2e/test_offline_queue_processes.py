"""Prompts that could not go to the cloud go there later, once; over real sockets and processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.command_line import environment
from support.fake_engine import FakeEngine, fake_model
from support.other_process import run_python
from support.scripted_server import (
    HEAD,
    Script,
    ScriptedServer,
    Wait,
    answer,
    chunk,
    event,
    status,
    usage,
)
from support.waiting import until

from edgesdk.errors import ContextOverflow
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.spending import Budget, SpendingLimits
from edgesdk.hybrid.offline.queue import DeferredReply, OfflineQueue
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.hybrid.storage.journal import Journal, training_set

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("short_pauses")]

KEY = bytes(range(32))
LOCAL = b"I am not sure."


class Echo(ScriptedServer):
    """Answers with the last message."""

    def __init__(self) -> None:
        super().__init__([[]])

    def answer_to(self, request: bytes) -> Script:
        text = json.loads(request.partition(b"\r\n\r\n")[2])["messages"][-1]["content"]
        return [HEAD, chunk(text), chunk(finish="stop"), usage(3, 1), event("[DONE]")]

    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.bodies()]


def nowhere() -> str:
    """A base URL where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as there:
        return f"http://127.0.0.1:{there.getsockname()[1]}/v1"


def client_of(folder: Path, url: str, **changes: Any) -> HybridClient:
    """A client as an app makes one when it starts: with a queue that may be there already."""
    model = fake_model(changes.pop("engine", None) or FakeEngine(LOCAL))
    queue = OfflineQueue(folder / "queue", key=KEY)
    return HybridClient(model, cloud=Cloud(url, "big", "key"), queue=queue, **changes)


def flushed(folder: Path, url: str, **changes: Any) -> list[DeferredReply]:
    with client_of(folder, url, **changes) as client:
        return list(client.flush_queue())


def left(folder: Path) -> list[int]:
    return [one.id for one in OfflineQueue(folder / "queue", key=KEY).entries()]


def put(folder: Path, *prompts: str, policy: Policy | None = None, **options: Any) -> None:
    """Ask while there is no network."""
    with client_of(folder, nowhere(), policy=policy) as client:
        for prompt in prompts:
            assert client.respond(prompt, prefer="cloud", **options).queued is not None


def test_what_was_asked_offline_is_answered_later(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", keep_texts=True)
    with client_of(tmp_path, nowhere(), journal=journal) as client:
        reply = client.respond("Mail ann@x.io", prefer="cloud", max_tokens=33)
        assert (reply.text, reply.low_confidence, reply.queued) == (LOCAL.decode(), True, 1)
        # Still offline: it waits on.
        assert list(client.flush_queue()) == []
    raw = (tmp_path / "queue").read_bytes()
    assert b"ann@" not in raw
    assert b"Mail ann" not in raw
    with Echo() as server:
        (late,) = flushed(tmp_path, server.url, journal=journal)
        assert flushed(tmp_path, server.url) == []
        (body,) = server.bodies()
    assert (late.id, late.reply.text, late.reply.route) == (1, "Mail ann@x.io", "cloud")
    assert late.messages == [{"role": "user", "content": "Mail ann@x.io"}]
    assert "ann@" not in body["messages"][0]["content"]
    assert body["max_tokens"] == 33
    assert left(tmp_path) == []
    *_, written = journal.entries()
    assert (written.decision.route, written.decision.reason) == (
        "cloud", "asked again from the queue",
    )  # fmt: skip
    assert written.prompt == next(iter(journal.entries())).prompt
    # From here it is one of the examples that the device may learn from.
    (example,) = training_set(journal.entries()).examples
    assert [message["content"] for message in example["messages"]] == 2 * ["Mail ann@x.io"]


@pytest.mark.parametrize("line", ["503 Busy", "429 Later", "500 Oops"])
def test_a_busy_cloud_is_asked_later(tmp_path: Path, line: str) -> None:
    with (
        ScriptedServer([status(line)]) as server,
        client_of(tmp_path, server.url) as client,
    ):
        assert client.respond("Hi", prefer="cloud").queued == 1


def test_a_prompt_that_fits_the_device_not_waits_too(tmp_path: Path) -> None:
    engine = FakeEngine(context_length=64)
    with client_of(tmp_path, nowhere(), engine=engine) as client, pytest.raises(ContextOverflow):
        client.respond("x" * 200)
    with Echo() as server:
        (late,) = flushed(tmp_path, server.url)
    assert late.reply.text == "x" * 200


def never(question: object) -> bool:
    return False


def always(question: object) -> bool:
    return True


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"policy": Policy("local_only")}, {}),
        ({"policy": Policy("allow", kinds={"EMAIL": "local_only"})}, {}),
        ({"policy": Policy("ask", ask=never)}, {}),
        ({"policy": Policy("ask")}, {}),
        ({}, {"upload": "local_only"}),
        ({}, {"tags": ["unknown"]}),
        ({"budget": Budget(SpendingLimits(tokens_per_day=1))}, {}),
    ],
)
def test_what_policy_or_budget_keep_here_does_not_wait(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any]
) -> None:
    with client_of(tmp_path, nowhere(), **changes) as client:
        reply = client.respond("Mail ann@x.io", prefer="cloud", **options)
        assert client.respond("Mail ann@x.io", prefer="local").queued is None
    assert (reply.low_confidence, reply.queued) == (True, None)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "script", [status("400 No"), status("401 No"), [HEAD, chunk(finish="stop"), event("{")]]
)
def test_what_the_cloud_refused_or_broke_does_not_wait(tmp_path: Path, script: Script) -> None:
    with (
        ScriptedServer([script]) as server,
        client_of(tmp_path, server.url) as client,
    ):
        assert client.respond("Hi", prefer="cloud").queued is None


@pytest.mark.parametrize(
    ("then", "options", "now", "sent"),
    [
        ("allow", {}, Policy("allow"), "Mail ann@x.io"),
        ("allow", {}, Policy("local_only"), None),
        ("allow", {}, Policy("redact"), "Mail <EMAIL_"),
        # What was to be hidden when it was asked stays hidden.
        ("redact", {}, Policy("allow"), "Mail <EMAIL_"),
        ("allow", {}, Policy("allow", kinds={"EMAIL": "local_only"}), None),
        ("allow", {}, Policy("ask", ask=always), "Mail ann@x.io"),
        ("allow", {}, Policy("ask", ask=never), None),
        # The call's own rule and its tags hold as they would now.
        ("redact", {"upload": "allow"}, Policy("local_only"), "Mail ann@x.io"),
        ("redact", {"tags": ["work"]}, Policy("allow", tags={"work": "local_only"}), None),
        ("redact", {"tags": ["work"]}, Policy("allow"), None),
    ],
)
def test_the_policy_of_later_holds(
    tmp_path: Path, then: Any, options: dict[str, Any], now: Policy, sent: str | None
) -> None:
    put(tmp_path, "Mail ann@x.io", policy=Policy(then, tags={"work": "allow"}), **options)
    with Echo() as server:
        found = flushed(tmp_path, server.url, policy=now)
        prompts = server.prompts()
    # What may not leave any more is not kept for leaving either.
    assert left(tmp_path) == []
    if sent is None:
        assert (found, prompts) == ([], [])
    else:
        assert [late.reply.text for late in found] == ["Mail ann@x.io"]
        assert prompts[0].startswith(sent)


def test_the_budget_of_later_holds(tmp_path: Path) -> None:
    put(tmp_path, "one", "two", max_tokens=10)
    with Echo() as server:
        poor = Budget(SpendingLimits(tokens_per_day=5))
        assert flushed(tmp_path, server.url, budget=poor) == []
        assert server.requests == []
        assert left(tmp_path) == [1, 2]
        # Enough for the worst case of one, 26, and not for that of another after its 4.
        enough = Budget(SpendingLimits(tokens_per_day=28))
        assert [late.id for late in flushed(tmp_path, server.url, budget=enough)] == [1]
        assert enough.spent().tokens == 4
    assert left(tmp_path) == [2]


def test_a_cloud_that_is_away_is_not_tried_for_each(tmp_path: Path) -> None:
    put(tmp_path, "one", "two", "three")
    with ScriptedServer([status("503 Busy")]) as server:
        assert flushed(tmp_path, server.url) == []
        assert set(server.requests[0].split()) >= {b'one"}],'} or len(server.requests) <= 3
        assert all(b"one" in request for request in server.requests)
    assert left(tmp_path) == [1, 2, 3]


def test_one_that_no_endpoint_takes_keeps_no_other(tmp_path: Path) -> None:
    put(tmp_path, "one", "two")
    with ScriptedServer([status("413 Too Large"), answer("ok")]) as server:
        assert [late.id for late in flushed(tmp_path, server.url)] == [2]
    assert left(tmp_path) == []


def test_an_empty_answer_is_not_paid_for_at_each_flush(tmp_path: Path) -> None:
    put(tmp_path, "one", "two")
    empty = [HEAD, chunk(finish="stop"), usage(3, 0), event("[DONE]")]
    with ScriptedServer([empty]) as server:
        for _ in range(5):
            assert flushed(tmp_path, server.url) == []
        assert len(server.requests) == 2 * 3
    entries = OfflineQueue(tmp_path / "queue", key=KEY).entries()
    assert [entry.failed for entry in entries] == ["the cloud said nothing"] * 2


def test_an_answer_cut_short_is_asked_for_again(tmp_path: Path) -> None:
    put(tmp_path, "one")
    with ScriptedServer([[HEAD, chunk("o")]]) as server:
        assert flushed(tmp_path, server.url) == []
    assert left(tmp_path) == [1]


_FLUSH = """
import json, sys
from pathlib import Path
from support.fake_engine import fake_model
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.offline.queue import OfflineQueue
queue = OfflineQueue(Path(sys.argv[1]), key=bytes(range(32)), lease=float(sys.argv[3]))
with HybridClient(fake_model(), cloud=Cloud(sys.argv[2], "big"), queue=queue) as client:
    print(json.dumps([[late.id, late.reply.text] for late in client.flush_queue()]))
"""
_PUT = """
import sys
from pathlib import Path
from edgesdk.options import Options
from edgesdk.hybrid.offline.queue import OfflineQueue, QueuedRequest
queue = OfflineQueue(Path(sys.argv[1]), key=bytes(range(32)))
for number in range(100_000):
    messages = [{"role": "user", "content": f"prompt {number} " + number % 50 * "long "}]
    print(queue.put(QueuedRequest(messages, Options(), "allow")), flush=True)
"""


def started(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(OMP_NUM_THREADS="1"),
    )


def kill(process: subprocess.Popen[str]) -> str:
    """What it had said by then."""
    os.kill(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    return process.communicate(timeout=60)[0]


def test_two_processes_send_each_once(tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(24)]
    put(tmp_path, *prompts)
    path = str(tmp_path / "queue")
    with Echo() as server, ThreadPoolExecutor(2) as both:
        found = list(both.map(lambda _: run_python(_FLUSH, path, server.url, "300"), range(2)))
        assert sorted(server.prompts()) == sorted(prompts)
    got = [(number, text) for part in found for number, text in part]
    assert sorted(got) == [(number + 1, prompt) for number, prompt in enumerate(prompts)]
    assert left(tmp_path) == []


def idempotency_key(request: bytes) -> bytes:
    (line,) = re.findall(rb"(?i)\r\nidempotency-key: (\S+)", request)
    return bytes(line)


def test_a_request_outlives_the_process_that_was_sending_it(tmp_path: Path) -> None:
    put(tmp_path, "first to ann@x.io", "second")
    with ScriptedServer([[HEAD, Wait(60)]]) as stalled, Echo() as server:
        process = started(_FLUSH, str(tmp_path / "queue"), stalled.url, "600")
        until(lambda: bool(stalled.requests) or process.poll() is not None)
        # While it lives, its request is its own.
        assert [late.id for late in flushed(tmp_path, server.url)] == [2]
        assert kill(process) == ""
        assert flushed(tmp_path, server.url) == []
        later = OfflineQueue(tmp_path / "queue", key=KEY, clock=lambda: time.time() + 601)
        with HybridClient(fake_model(), cloud=Cloud(server.url, "big"), queue=later) as client:
            assert [late.reply.text for late in client.flush_queue()] == ["first to ann@x.io"]
        # An endpoint that heeds the key answers it once: it is the same request, word for word.
        (before,), (_, after) = stalled.requests, server.requests
        assert idempotency_key(before) == idempotency_key(after)
        assert stalled.bodies() == server.bodies()[1:]
    assert left(tmp_path) == []


def test_what_was_put_outlives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "queue"
    said: list[int] = []
    for count in (1, 7, 20):
        process = started(_PUT, str(path))
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(count)]
        lines += kill(process).splitlines()
        said += [int(line) for line in lines]
    queue = OfflineQueue(path, key=KEY, max_count=1_000_000)
    kept = [one.id for one in queue.entries()]
    # The one at whose end it was killed may be there without having been said.
    assert set(said) <= set(kept)
    assert len(kept) - len(said) <= 3
    claim = queue.claim(after=said[-2])
    assert claim is not None
    assert claim.request.messages[0]["content"].startswith("prompt ")
