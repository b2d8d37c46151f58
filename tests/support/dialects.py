"""Replies as endpoints really send them, beside what they should come to.

Each is written after public complaints or a provider's documentation. `DIALECTS` has those that are
whole answers: each is to be read in one request.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import Any

SSE = "text/event-stream"
TEXT = "The capital is Paris."
PIECES = ("The", " capital", " is Paris.")
COUNT = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
OSLO, LIMA = {"city": "Oslo"}, {"city": "Lima"}


@dataclass(frozen=True)
class Dialect:
    """A response, and the reply that it is.

    Attributes:
        calls: arguments of the calls of "weather", in order.
        usage: tokens of prompt and reply; None where none may be believed.
    """

    body: bytes
    text: str = TEXT
    reasoning: str = ""
    calls: tuple[dict[str, Any], ...] = ()
    finish_reason: str = "stop"
    usage: tuple[int, int] | None = (9, 3)
    content_type: str = SSE
    encoding: str = ""


def line(data: Any) -> bytes:
    """One event; bytes are its data as they are."""
    written = data if isinstance(data, bytes) else json.dumps(data).encode()
    return b"data: " + written + b"\n\n"


def part(delta: Any = None, finish: Any = None, **fields: Any) -> bytes:
    """A chunk; `fields` are at its top."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return line({"id": "c1", "object": "chat.completion.chunk", "choices": [choice], **fields})


def words(*texts: str, **delta: Any) -> bytes:
    """Chunks of text."""
    return b"".join(part({**delta, "content": text}) for text in texts)


def count(usage: Any = COUNT) -> bytes:
    """The chunk with the usage."""
    return line({"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": usage})


def stream(*parts: bytes, finish: Any = "stop", usage: Any = COUNT, done: bool = True) -> bytes:
    """A whole stream around these parts."""
    ends = [part(finish=finish), count(usage) if usage else b"", line(b"[DONE]") if done else b""]
    return b"".join((part({"role": "assistant", "content": ""}), *parts, *ends))


def call(
    arguments: Any, *, index: Any = 0, id: Any = "call_1", name: Any = "weather"
) -> dict[str, Any]:
    """A part of a call; None leaves a field out."""
    function = {"name": name, "arguments": arguments}
    found = {"index": index, "id": id, "type": "function", "function": function}
    found["function"] = {key: item for key, item in function.items() if item is not None}
    return {key: item for key, item in found.items() if item is not None}


def calls(*parts: dict[str, Any], finish: str = "tool_calls") -> bytes:
    """A stream of calls, a chunk each."""
    return stream(*(part({"tool_calls": [each]}) for each in parts), finish=finish)


def written(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments)


def whole(message: dict[str, Any], finish: Any = "stop") -> bytes:
    """A whole reply, which is no stream."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": COUNT}).encode()


def _called(body: bytes, *arguments: dict[str, Any], **fields: Any) -> Dialect:
    return Dialect(body, "", calls=arguments, finish_reason="tool_calls", **fields)


PLAIN = stream(words(*PIECES))
_SPELLED = "Paris, that is all he will need; book a room"
_HALVES = (b'{"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}',
           b'{"choices":[{"index":0,"delta":{"content":"\\ude00"}}]}')  # fmt: skip

DIALECTS: dict[str, Dialect] = {
    "as OpenAI": Dialect(PLAIN),
    # The end.
    "empty finish reasons": Dialect(
        b"".join(part({"content": piece}, "") for piece in PIECES) + part(finish="stop") + count()
        + line(b"[DONE]")
    ),
    "finish in the last text": Dialect(
        words(*PIECES[:2]) + part({"content": PIECES[2]}, "stop") + count() + line(b"[DONE]")
    ),
    "finish in every chunk": Dialect(
        b"".join(part({"content": piece}, "stop") for piece in PIECES) + count() + line(b"[DONE]")
    ),
    "finish twice": Dialect(stream(words(*PIECES), part(finish="stop"))),
    "no finish": Dialect(words(*PIECES) + count() + line(b"[DONE]")),
    "finish null": Dialect(stream(words(*PIECES), finish=None)),
    "finish eos": Dialect(stream(words(*PIECES), finish="eos_token")),
    "finish in capitals": Dialect(stream(words(*PIECES), finish="STOP")),
    "finish end_turn": Dialect(stream(words(*PIECES), finish="end_turn")),
    "finish a number": Dialect(stream(words(*PIECES), finish=1)),
    "length": Dialect(stream(words(*PIECES), finish="length"), finish_reason="length"),
    "max_tokens": Dialect(stream(words(*PIECES), finish="MAX_TOKENS"), finish_reason="length"),
    "filtered": Dialect(
        stream(words("The"), finish="content_filter"), "The", finish_reason="content_filter"
    ),
    "filtered for safety": Dialect(
        stream(words("The"), finish="SAFETY"), "The", finish_reason="content_filter"
    ),
    "no done": Dialect(stream(words(*PIECES), done=False)),
    "no done, no usage": Dialect(stream(words(*PIECES), usage=None, done=False), usage=None),
    "done with spaces": Dialect(stream(words(*PIECES), done=False) + b"data:  [DONE] \n\n"),
    "no space after data": Dialect(PLAIN.replace(b"data: ", b"data:")),
    # The lines.
    "byte order mark": Dialect(b"\xef\xbb\xbf" + PLAIN),
    "blank lines first": Dialect(b"\r\n\n \n" + PLAIN),
    "carriage returns": Dialect(PLAIN.replace(b"\n", b"\r\n")),
    "only carriage returns": Dialect(PLAIN.replace(b"\n", b"\r")),
    "comments": Dialect(b": OPENROUTER PROCESSING\n\n" * 3 + b"event: message\nid: 1\n" + PLAIN),
    "events with names": Dialect(PLAIN.replace(b"data: ", b"event: chunk\nretry: 10\ndata: ")),
    "data over several lines": Dialect(PLAIN.replace(b', "object"', b',\ndata: "object"')),
    "gzip": Dialect(gzip.compress(PLAIN), encoding="gzip"),
    "as text/plain": Dialect(PLAIN, content_type="text/plain; charset=utf-8"),
    "as JSON": Dialect(PLAIN, content_type="application/json"),
    "no content type": Dialect(PLAIN, content_type=""),
    # The chunks.
    "a ping": Dialect(line({"id": "x", "object": "ping"}) + PLAIN),
    "choices null": Dialect(line({"choices": None, "usage": None}) + PLAIN),
    "choices empty": Dialect(line({"choices": [], "prompt_filter_results": [{}]}) + PLAIN),
    "choices of nothing": Dialect(line({"choices": [None, 3]}) + PLAIN),
    "error null": Dialect(stream(part({"content": TEXT}, error=None))),
    "index missing": Dialect(
        b"".join(line({"choices": [{"delta": {"content": piece}}]}) for piece in PIECES)
        + line({"choices": [{"delta": {}, "finish_reason": "stop"}]}) + count() + line(b"[DONE]")
    ),
    "delta null": Dialect(stream(words(*PIECES), line({"choices": [{"index": 0, "delta": None}]}))),
    "role null": Dialect(
        stream(words(*PIECES, role=None, tool_calls=None, function_call=None, refusal=None))
    ),
    "another choice": Dialect(
        stream(words(*PIECES), line({"choices": [{"index": 1, "delta": {"content": "No."}}]}))
    ),
    "one letter each": Dialect(
        stream(words(*_SPELLED), usage={"prompt_tokens": 9, "completion_tokens": 11}),
        _SPELLED, usage=(9, 11),
    ),
    "the same word twice": Dialect(stream(words("no", " no", " no")), "no no no"),
    "surrogates apart": Dialect(stream(words("Hi "), *map(line, _HALVES)), "Hi 😀"),
    "surrogate alone": Dialect(stream(words("Hi "), line(_HALVES[0])), "Hi \ufffd"),
    "refusal": Dialect(stream(part({"refusal": "No."})), "No."),
    # Content and reasoning.
    "text parts": Dialect(
        stream(*(part({"content": [{"type": "text", "text": piece}]}) for piece in PIECES))
    ),
    "thinking parts": Dialect(
        stream(
            part({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]}),
            part({"content": [{"type": "text", "text": TEXT}]}),
        ),
        reasoning="Hm",
    ),
    "thinking as text": Dialect(
        stream(part({"content": [{"type": "thinking", "thinking": "Hm"}]}), words(*PIECES)),
        reasoning="Hm",
    ),
    "reasoning_content": Dialect(
        stream(part({"reasoning_content": "Hm", "content": None}), words(*PIECES)), reasoning="Hm"
    ),
    "reasoning": Dialect(stream(part({"reasoning": "Hm"}), words(*PIECES)), reasoning="Hm"),
    "reasoning under both names": Dialect(
        stream(part({"reasoning": "Hm", "reasoning_content": "Hm"}), words(*PIECES)),
        reasoning="Hm",
    ),
    "reasoning in the text": Dialect(
        stream(words("<think>", "Hm", "</think>", TEXT)), f"<think>Hm</think>{TEXT}"
    ),
    # Usage.
    "no usage": Dialect(stream(words(*PIECES), usage=None), usage=None),
    "usage in every chunk": Dialect(
        b"".join(part({"content": piece}, usage={**COUNT, "completion_tokens": at + 1})
                 for at, piece in enumerate(PIECES)) + part(finish="stop", usage=COUNT)
        + line(b"[DONE]")
    ),
    "usage null": Dialect(stream(words(*PIECES), part(usage=None))),
    "usage as floats": Dialect(
        stream(words(*PIECES), usage={"prompt_tokens": 9.0, "completion_tokens": 3.0})
    ),
    "usage negative": Dialect(
        stream(words(*PIECES), usage={"prompt_tokens": -10**6, "completion_tokens": -10**6}),
        usage=None,
    ),
    "usage not a number": Dialect(
        stream(words(*PIECES), line(b'{"choices":[],"usage":{"prompt_tokens":NaN,'
                                    b'"completion_tokens":1e999}}'), usage=None),
        usage=None,
    ),
    "usage as texts": Dialect(
        stream(words(*PIECES), usage={"prompt_tokens": "9", "completion_tokens": "3"}), usage=None
    ),
    "usage without a reply": Dialect(
        stream(words(*PIECES), usage={"prompt_tokens": 9, "total_tokens": 12})
    ),
    "usage in the choice": Dialect(
        words(*PIECES) + line({"choices": [{"delta": {}, "finish_reason": "stop", "usage": COUNT}]})
        + line(b"[DONE]")
    ),
    "usage as Groq": Dialect(
        stream(words(*PIECES), part(x_groq={"id": "r", "usage": COUNT}), usage=None)
    ),
    # Whole replies.
    "whole": Dialect(whole({"content": TEXT}), content_type="application/json"),
    "whole as a stream": Dialect(whole({"content": TEXT})),
    "whole in an event": Dialect(line(whole({"content": TEXT})) + line(b"[DONE]")),
    "whole without a finish": Dialect(
        whole({"content": TEXT}, finish=None), content_type="application/json"
    ),
    "whole again at the end": Dialect(
        words(*PIECES)
        + line({"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": TEXT}}]})
        + count() + line(b"[DONE]")
    ),
    "whole with reasoning": Dialect(
        whole({"content": TEXT, "reasoning_content": "Hm"}), reasoning="Hm",
        content_type="application/json",
    ),
    "whole with calls": _called(
        whole({"content": None, "tool_calls": [call(written(OSLO))]}, "tool_calls"), OSLO,
        content_type="application/json",
    ),
    # Calls.
    "call": _called(
        calls(
            call(""), call('{"city', id=None, name=None), call('": "Oslo"}', id=None, name=None)
        ),
        OSLO,
    ),
    "call that stops": _called(calls(call(written(OSLO)), finish="stop"), OSLO),
    "function_call": _called(
        stream(
            part({"function_call": {"name": "weather", "arguments": ""}}),
            part({"function_call": {"arguments": written(OSLO)}}), finish="function_call",
        ),
        OSLO,
    ),
    "two calls": _called(
        calls(
            call('{"city"', id="a"), call('{"city"', index=1, id="b"),
            call(': "Oslo"}', id=None, name=None), call(': "Lima"}', index=1, id=None, name=None),
        ),
        OSLO, LIMA,
    ),
    "two calls in a chunk": _called(
        stream(
            part({"tool_calls": [call(written(OSLO)), call(written(LIMA), index=1, id="b")]}),
            finish="tool_calls",
        ),
        OSLO, LIMA,
    ),
    "all of index 0": _called(calls(call(written(OSLO), id="a"), call(written(LIMA), id="b")),
                              OSLO, LIMA),
    "all of index 0 in a chunk": _called(
        stream(part({"tool_calls": [call(written(OSLO), id="a"), call(written(LIMA), id="b")]})),
        OSLO, LIMA,
    ),
    "all of index 0, no ids": _called(
        calls(call(written(OSLO), id=None), call(written(LIMA), id="")), OSLO, LIMA
    ),
    "all of index 0, the same id": _called(calls(call(written(OSLO)), call(written(LIMA))),
                                           OSLO, LIMA),
    "no index": _called(
        calls(call(written(OSLO), index=None, id="a"), call(written(LIMA), index=None, id="b")),
        OSLO, LIMA,
    ),
    "no index, parts by id": _called(
        calls(
            call('{"city"', index=None, id="a"), call('{"city"', index=None, id="b"),
            call(': "Oslo"}', index=None, id="a", name=None),
            call(': "Lima"}', index=None, id="b", name=None),
        ),
        OSLO, LIMA,
    ),
    "no index, no id": _called(
        calls(call(written(OSLO), index=None, id=None), call(written(LIMA), index=None, id=None)),
        OSLO, LIMA,
    ),
    "no index, no id, twice the same": _called(
        calls(call(written(OSLO), index=None, id=None), call(written(OSLO), index=None, id=None)),
        OSLO, OSLO,
    ),
    "no index, no id, in parts": _called(
        calls(
            call('{"city"', index=None, id=None), call(': "Oslo"}', index=None, id=None, name=None)
        ),
        OSLO,
    ),
    "name in every part": _called(
        calls(call(""), call('{"city"'), call(': "Oslo"}'), call("")), OSLO
    ),
    "name in every part, no index, no id": _called(
        calls(
            call('{"city"', index=None, id=None), call(': "Oslo"}', index=None, id=None)
        ),
        OSLO,
    ),
    "another id in every part": _called(
        calls(call("", id="a"), call('{"city"', id="b", name=None),
              call(': "Oslo"}', id="c", name="")),
        OSLO,
    ),
    "id later than the name": _called(calls(call("", id=None), call(written(OSLO), name=None)),
                                      OSLO),
    "call again at the end": _called(calls(call(written(OSLO)), call(written(OSLO))), OSLO),
    "arguments as an object": _called(calls(call(OSLO)), OSLO),
    "an empty object first": _called(calls(call({}), call(written(OSLO), id=None, name=None)),
                                     OSLO),
    "arguments null": _called(calls(call(None)), {}),
    "arguments as JSON in JSON": _called(calls(call(json.dumps(written(OSLO)))), OSLO),
    "indices from 1": _called(calls(call(written(OSLO), index=1)), OSLO),
}  # fmt: skip

# Streams that end too soon: none of them may be taken for an answer.
TRUNCATED: dict[str, bytes] = {
    "no end": words(*PIECES[:2]),
    "in an event": words(*PIECES[:2]) + part({"content": PIECES[2]})[:-9],
    "only a finish that the text went on after": part({"content": "The"}, "stop") + words(" cap"),
    "an error": words(*PIECES[:2]) + line({"error": {"message": "overloaded", "code": 503}}),
    "an error with choices": words(*PIECES[:2])
    + part({"content": ""}, "error", error={"code": 502, "message": "bad gateway"}),
    "an event of an error": words(*PIECES[:2])
    + b"event: error\n" + line({"type": "error", "error": {"type": "overloaded_error"}}),
    "finish error": stream(words(*PIECES[:2]), finish="error"),
    "finish abort": stream(words(*PIECES[:2]), finish="abort"),
    "finish for want of resources": stream(
        words(*PIECES[:2]), finish="insufficient_system_resource"
    ),
    "half a call": stream(part({"tool_calls": [call('{"city')]}), finish="tool_calls"),
    "half a whole reply": whole({"content": TEXT})[:-9],
    "nothing but its end": line(b"[DONE]"),
}  # fmt: skip
