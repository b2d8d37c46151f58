"""Whatever an endpoint or the network does, it ends in a reply or in an error of the SDK."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.dialects import DIALECTS, PLAIN, TEXT, TRUNCATED, part

from edgesdk.errors import CloudError, EdgeError
from edgesdk.hybrid.cloud import failover
from edgesdk.hybrid.cloud.cloud_reply import CloudReply, Restart, TextDelta
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.failover import Failover
from edgesdk.system.cancellation import CancellationToken

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

CLOUD = Cloud("https://cloud.example/v1", "m", "sk-key")
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
Handler = Callable[[httpx.Request], httpx.Response]


class Pieces(httpx.AsyncByteStream):
    """Sends bytes in pieces, and then ends or raises."""

    def __init__(self, *pieces: bytes, error: BaseException | None = None) -> None:
        self._pieces = pieces
        self._error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        if self._error is not None:
            raise self._error


def ask(handler: Handler, *, hedge_after: float | None = None) -> tuple[str, CloudReply]:
    """Return what an app has on its screen at the end, and the reply; raises what an app sees."""

    async def read() -> tuple[str, CloudReply]:
        transport = httpx.MockTransport(handler)
        async with httpx.AsyncClient(transport=transport, trust_env=False) as http:
            clouds = (CLOUD,) if hedge_after is None else (CLOUD, Cloud(CLOUD.base_url, "n"))
            found = Failover(clouds, (http,) * len(clouds), "restart", hedge_after)
            shown, last = "", None
            async for event in found.reply(BODY, CancellationToken(30)):
                if isinstance(event, Restart):
                    shown = ""
                elif isinstance(event, TextDelta):
                    shown += event.text
                last = event
            assert isinstance(last, CloudReply)
            return shown, last

    return anyio.run(read)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "_FIRST_PAUSE", 0.0)


def replies_or_refuses(handler: Handler) -> None:
    refused: list[CloudError] = []
    reply: CloudReply | None = None
    try:
        shown, reply = ask(handler)
    except CloudError as error:
        refused.append(error)
    for each in refused:
        assert each.attempts
        str(each).encode()
    if reply is not None:
        assert shown == reply.text
        # It can be kept, and sent again.
        reply.text.encode()
        reply.reasoning.encode()
        for call in reply.calls:
            json.dumps(call.arguments, allow_nan=False, ensure_ascii=False).encode()
        if reply.usage is not None:
            assert 0 <= reply.usage.prompt_tokens <= 10**9
            assert 0 <= reply.usage.completion_tokens <= 10**9


WHOLE = [dialect.body for dialect in DIALECTS.values() if not dialect.encoding]


@settings(max_examples=150)
@given(
    st.binary(max_size=200) | st.sampled_from([*WHOLE, *TRUNCATED.values()]),
    st.sampled_from([200, 200, 200, 201, 204, 304, 400, 404, 422, 429, 500, 599]),
    st.sampled_from(["text/event-stream", "application/json", "text/html", "", "\xff"]),
)
@example(b"data: " + b"[" * 200_000 + b"\n\n", 200, "text/event-stream")
@example(b"[" * 60_000, 500, "application/json")
@example(b"\xff\xfe", 400, "application/json")
@example(b'{"error": {"message": "max_tokens is unsupported"}}', 400, "application/json")
@example(b'{"choices": [{"message": {"content": "\\ud83d"}}]}', 200, "application/json")
@example(
    b'data: {"choices": [{"index": {}, "delta": {"tool_calls": [{"index": []}]}}]}\n\n', 200, ""
)
def test_any_reply_is_read_or_refused(body: bytes, status: int, kind: str) -> None:
    headers = {"content-type": kind.encode("latin-1"), "retry-after": "0"}
    replies_or_refuses(lambda request: httpx.Response(status, headers=headers, content=body))


@settings(max_examples=150)
@given(st.sampled_from(WHOLE), st.data())
def test_a_reply_that_is_damaged_anywhere_is_read_or_refused(
    body: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(body) - 1))
    cut = data.draw(st.integers(0, 3))
    damaged = body[:at] + data.draw(st.binary(max_size=3)) + body[at + cut :]
    replies_or_refuses(lambda request: httpx.Response(200, content=damaged))


@given(st.integers(0, len(PLAIN)))
def test_a_reply_that_is_cut_anywhere_is_never_half_an_answer(at: int) -> None:
    answers = [PLAIN[:at]]
    shown, reply = ask(
        lambda request: httpx.Response(200, content=answers.pop() if answers else PLAIN)
    )
    assert (shown, reply.text, reply.complete) == (TEXT, TEXT, True)


@given(st.lists(st.integers(0, len(PLAIN)), max_size=8))
def test_a_reply_may_come_in_any_pieces(places: list[int]) -> None:
    ends = [0, *sorted(places), len(PLAIN)]
    pieces = [PLAIN[a:b] for a, b in pairwise(ends)]
    shown, reply = ask(lambda request: httpx.Response(200, stream=Pieces(*pieces)))
    assert (shown, reply.attempts) == (TEXT, 1)


ERRORS = [
    ValueError("Out of range float values are not JSON compliant"),
    RecursionError("maximum recursion depth exceeded"),
    UnicodeEncodeError("ascii", "ä", 0, 1, "ordinal not in range"),
    httpx.InvalidURL("no"),
    httpx.RemoteProtocolError("no"),
    httpx.ReadError("no"),
    httpx.DecodingError("no"),
    httpx.StreamClosed(),
    OSError(5, "no"),
    RuntimeError("no"),
    KeyError("no"),
    anyio.ClosedResourceError(),
    ExceptionGroup("several", [ValueError("a"), OSError("b")]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("hedge_after", [None, 0.0])
def test_no_error_of_another_package_comes_out(error: Exception, hedge_after: float | None) -> None:
    def before(request: httpx.Request) -> httpx.Response:
        raise error

    def under_way(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Pieces(part({"content": "He"}), error=error))

    with pytest.raises(EdgeError):
        ask(before, hedge_after=hedge_after)
    _, reply = ask(under_way, hedge_after=hedge_after)
    assert (reply.text, reply.complete) == ("He", False)
    assert {failure.kind for failure in reply.failures} <= {"broken", "unreachable"}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_nor_is_a_whole_answer_lost_to_one(error: Exception) -> None:
    whole = part({"content": TEXT}), part(finish="stop")
    shown, reply = ask(lambda request: httpx.Response(200, stream=Pieces(*whole, error=error)))
    assert (shown, reply.complete, reply.attempts) == (TEXT, True, 1)


@given(st.dictionaries(st.text(max_size=5), st.floats() | st.text(max_size=5), max_size=3))
def test_any_request_is_sent_or_refused(extra: dict[str, Any]) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        json.loads(request.content)
        return httpx.Response(200, content=PLAIN)

    async def read() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            found = Failover((CLOUD,), (http,), "restart")
            try:
                async for _ in found.reply({**BODY, "metadata": extra}, CancellationToken(30)):
                    pass
            except EdgeError as error:
                str(error).encode()

    anyio.run(read)
