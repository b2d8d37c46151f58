"""Keep a decode state over a restart, in a file with its tokens, its KV cache and metadata.

    8 bytes   b"EDGEKV" and the format version, little-endian uint16
    4 bytes   length of the header, little-endian uint32
    header    JSON: engine, model, layout, adapter, tokens, metadata, payload_bytes
    4 bytes   CRC-32 of the header
    payload   the KV cache of those tokens, in the engine's own layout
    4 bytes   CRC-32 of the payload

The checksums are there for damage by accident: engines hand the payload to native code, which
trusts it.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from edgesdk.errors import RequestError
from edgesdk.system.atomic_files import atomic_file

FORMAT_VERSION = 1
_MAGIC = b"EDGEKV"
_PROLOGUE = struct.Struct("<6sHI")
_CRC = struct.Struct("<I")
_HINT = "Start a new chat, and save that."

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
# What the caller of `DecodeState.save` wants to find again, such as a chat's messages.
StateMetadata = Mapping[str, JsonValue]


@dataclass(frozen=True)
class KvIdentity:
    """What a KV cache belongs to. It can be used only where all four are equal.

    Attributes:
        engine: "onnx" or "gguf".
        model: identity of the model with its adapter, a hash in hex.
        layout: how the payload is to be read: number type, layers, heads, version.
        adapter: the name of the adapter; None for the model alone.
    """

    engine: str
    model: str
    layout: str
    adapter: str | None = None


class SavedState(NamedTuple):
    """What a file holds: the ids, the caller's metadata, the KV cache of those ids."""

    tokens: list[int]
    metadata: dict[str, JsonValue]
    payload: Bytes


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    engine: str
    model: str
    layout: str
    adapter: str | None = None
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]
    metadata: dict[str, JsonValue]
    payload_bytes: Annotated[int, Field(ge=0)]


def write_saved_state(
    path: Path,
    kv_identity: KvIdentity,
    tokens: Sequence[int],
    payload: Iterable[Array],
    metadata: StateMetadata | None = None,
) -> None:
    """Write `tokens` and the arrays of `payload`, one after the other; see `atomic_file`.

    Raises:
        OSError: the place cannot be written; what stood at `path` is untouched.
    """
    with atomic_file(path, private=True) as stream:
        _write(stream, kv_identity, tokens, list(payload), metadata or {})


def read_saved_state(path: Path, kv_identity: KvIdentity) -> SavedState:
    """What `write_saved_state` wrote to `path` with the same `kv_identity`.

    Raises:
        RequestError: there is no such file, it is damaged, or it is of another origin.
    """
    try:
        with path.open("rb") as stream:
            header = _read_header(stream, path)
            _check_identity(header, kv_identity, path)
            payload = _read_payload(stream, header.payload_bytes, path)
            return SavedState(header.tokens, header.metadata, payload)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.", hint=_HINT) from None


def _write(
    stream: BinaryIO,
    kv_identity: KvIdentity,
    tokens: Sequence[int],
    payload: list[Array],
    metadata: StateMetadata,
) -> None:
    fields = _Header(
        engine=kv_identity.engine,
        model=kv_identity.model,
        layout=kv_identity.layout,
        adapter=kv_identity.adapter,
        tokens=list(tokens),
        metadata=dict(metadata),
        payload_bytes=sum(part.nbytes for part in payload),
    )
    without = {"adapter"} if fields.adapter is None else None
    header = fields.model_dump_json(exclude=without).encode()
    stream.write(_PROLOGUE.pack(_MAGIC, FORMAT_VERSION, len(header)))
    stream.write(header)
    stream.write(_CRC.pack(zlib.crc32(header)))
    checksum = 0
    for part in payload:
        chunk = np.ascontiguousarray(part).data
        stream.write(chunk)
        checksum = zlib.crc32(chunk, checksum)
    stream.write(_CRC.pack(checksum))


def _read_header(stream: BinaryIO, path: Path) -> _Header:
    prologue = stream.read(_PROLOGUE.size)
    if len(prologue) < _PROLOGUE.size or prologue[: len(_MAGIC)] != _MAGIC:
        raise RequestError(f"{path} is not a saved sequence.", hint=_HINT)
    _, version, length = _PROLOGUE.unpack(prologue)
    if version != FORMAT_VERSION:
        raise RequestError(
            f"{path} is a saved sequence of format {version}; this edgesdk reads {FORMAT_VERSION}.",
            hint=_HINT,
        )
    left = os.fstat(stream.fileno()).st_size - stream.tell()
    if length + _CRC.size > left:
        raise _damaged(path, "it is cut off")
    text = stream.read(length)
    if _CRC.unpack(stream.read(_CRC.size))[0] != zlib.crc32(text):
        raise _damaged(path, "its header has another checksum")
    try:
        header = _Header.model_validate_json(text)
    except ValidationError as error:
        raise _damaged(path, f"its header has {error.error_count()} wrong fields") from None
    if header.payload_bytes != left - length - 2 * _CRC.size:
        raise _damaged(path, "its length is not what its header says")
    return header


def _check_identity(header: _Header, kv_identity: KvIdentity, path: Path) -> None:
    for what, found, wanted in (
        ("engine", header.engine, kv_identity.engine),
        ("adapter", header.adapter or "none", kv_identity.adapter or "none"),
        ("model", header.model, kv_identity.model),
        ("KV layout", header.layout, kv_identity.layout),
    ):
        if found != wanted:
            raise RequestError(
                f"{path} was saved with another {what}: {found}, not {wanted}.", hint=_HINT
            )


def _read_payload(stream: BinaryIO, size: int, path: Path) -> Bytes:
    try:
        payload: Bytes = np.empty(size, np.uint8)
    except MemoryError:
        raise RequestError(
            f"{path} has {size:,} bytes of KV cache, more than there is memory.", hint=_HINT
        ) from None
    if stream.readinto(payload.data) != size:  # type: ignore[attr-defined]
        raise _damaged(path, "it is cut off")
    if stream.read() != _CRC.pack(zlib.crc32(payload.data)):
        raise _damaged(path, "its KV cache has another checksum")
    return payload


def _damaged(path: Path, how: str) -> RequestError:
    return RequestError(f"{path} is damaged: {how}.", hint=_HINT)
