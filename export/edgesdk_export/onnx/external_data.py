"""Write a model's external data file front to back, without ever holding a tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgesdk.errors import ExportError
from edgesdk_export.resume import SectionJournal

# Tensors of a page or more start on a page, so that onnxruntime can map them.
_PAGE = 4096
_WORD = 64


class ExternalDataWriter:
    """Appends tensors to one file and returns headers that point into it.

    Use it as a context manager: leaving the block closes the file.

    Args:
        journal: of sections that an earlier process finished, which are kept; None = begin anew.
    """

    def __init__(self, path: Path, journal: SectionJournal | None = None) -> None:
        self._path = path
        self._journal = journal
        self._stream = path.open("wb") if journal is None else journal.open(path)
        self._section: list[ir.ExternalTensor] = []

    def __enter__(self) -> ExternalDataWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def add(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        chunks: Iterable[npt.NDArray[Any]],
    ) -> ir.ExternalTensor:
        """Append one tensor, given as consecutive pieces of its row-major values; of types under a
        byte, as the bytes uint8 that several share.

        Raises:
            ExportError: the pieces do not add up to `shape`.
        """
        size = -(-math.prod(shape) * dtype.bitwidth // 8)
        stored = np.dtype(np.uint8) if dtype.bitwidth < 8 else dtype.numpy()
        alignment = _PAGE if size >= _PAGE else _WORD
        self._stream.write(bytes(-self._stream.tell() % alignment))
        offset = self._stream.tell()
        for chunk in chunks:
            self._stream.write(chunk.astype(stored, order="C", copy=False).data)
        written = self._stream.tell() - offset
        if written != size:
            raise ExportError(f"{name} has {written:,} bytes; its shape {shape} needs {size:,}.")
        header = self._header(name, dtype, shape, offset, size)
        self._section.append(header)
        return header

    def finished(self, section: str) -> tuple[dict[str, ir.ExternalTensor], Any] | None:
        """The tensors of a section that an earlier process finished, by name, and its note."""
        if self._journal is None or section not in self._journal.sections:
            return None
        tensors, note = self._journal.sections[section]
        headers = {
            name: self._header(name, ir.DataType(dtype), tuple(shape), offset, size)
            for name, dtype, shape, offset, size in tensors
        }
        return headers, note

    def finish(self, section: str, note: object) -> None:
        """All tensors added since the last call are a section; `note` is JSON values."""
        tensors = [
            (header.name, int(header.dtype), list(header.shape), header.offset, header.length)
            for header in self._section
        ]
        self._section.clear()
        if self._journal is not None:
            self._journal.finish(section, self._stream, (tensors, note))

    def view(
        self, name: str, of: ir.ExternalTensor, dtype: ir.DataType, shape: tuple[int, ...]
    ) -> ir.ExternalTensor:
        """The bytes of a tensor written before, under another name and shape."""
        assert of.offset is not None
        assert of.length is not None
        return self._header(name, dtype, shape, of.offset, of.length)

    def _header(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], offset: int, size: int
    ) -> ir.ExternalTensor:
        return ir.ExternalTensor(
            self._path.name,
            offset,
            size,
            dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=str(self._path.parent),
        )
