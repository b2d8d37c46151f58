"""Request bodies with something odd in one place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

# JSON that stands where something else should; some of it no JSON at all.
ODD = [
    *(b"null", b"true", b"0", b"-1", b"1.5", b'""', b'"x"', b"[]", b"{}", b"[null]", b'{"a":1}'),
    *(b"NaN", b"-Infinity", b"1e999", b"-1e-999", b"1" * 500, b"9223372036854775808", b"01"),
    *(b'"\\ud800"', b'"\\udfff\\ud800"', b'"\\u0000"', b'"\xff"', b'"\xed\xa0\x80"', b"'x'"),
    *(b"[" * 5000, b"[" * 150 + b"]" * 150, b'{"a":' * 150 + b"1" + b"}" * 150),
    *(b'{"a":' * 5000, b'"' + b"x" * 3000 + b'"', b'{"a":1,"a":2}', b'{"$ref":"#"}', b"[[],{}]"),
]
_MARK = "\ue000"


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value in a body, the body's own included."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def _replaced(value: Any, path: tuple[Any, ...]) -> Any:
    """`value` with a mark at `path`."""
    if not path:
        return _MARK
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(copy[path[0]], path[1:])
    return copy


def with_odd(body: Any, path: tuple[Any, ...], odd: bytes) -> bytes:
    """A body with `odd`, which may be no JSON, in one place."""
    written = json.dumps(_replaced(body, path), ensure_ascii=False).encode()
    return written.replace(json.dumps(_MARK, ensure_ascii=False).encode(), odd)
