"""Reads of a compiled ONNX file which operators it has, and what its provider says of it.

A whole graph is compiled into one node, so the file is small: what was compiled lies beside it. The
few fields that are read are those of onnx.proto; the package onnx is no part of the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Field numbers in onnx.proto.
_MODEL_GRAPH, _MODEL_METADATA = 7, 14
_GRAPH_NODE, _NODE_NAME, _NODE_OPERATOR = 1, 3, 4
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


@dataclass(frozen=True)
class ContextModel:
    """What a compiled ONNX file says.

    Attributes:
        nodes: the operator and the name of each node, in order.
        metadata: what its provider wrote into it, by name.
    """

    nodes: tuple[tuple[str, str], ...]
    metadata: dict[str, str]


def read_context_model(data: bytes) -> ContextModel:
    """Read a serialized `ModelProto`.

    Raises:
        ValueError: it is none.
    """
    found: list[tuple[str, str]] = []
    metadata: dict[str, str] = {}
    for field, value in _fields(data):
        if field == _MODEL_GRAPH:
            for node in (
                dict(_fields(part)) for kind, part in _fields(value) if kind == _GRAPH_NODE
            ):
                operator, name = node.get(_NODE_OPERATOR, b""), node.get(_NODE_NAME, b"")
                found.append((operator.decode(), name.decode()))
        elif field == _MODEL_METADATA:
            entry = dict(_fields(value))
            metadata[entry.get(_ENTRY_KEY, b"").decode()] = entry.get(_ENTRY_VALUE, b"").decode()
    return ContextModel(tuple(found), metadata)


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The number and the bytes of each field that has a length, in order."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _LENGTH:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("a field ends behind the file")
            yield tag >> 3, data[at : at + size]
            at += size
        elif kind == _VARINT:
            _, at = _varint(data, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of the unknown kind {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a number ends behind the file")
