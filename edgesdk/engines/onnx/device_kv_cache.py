"""The KV cache of one decode state in the memory of a device: it never leaves while tokens come."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime as ort

from edgesdk.engines.onnx.kv_cache import Buffer, CacheShape, grown_capacity

_Pairs = tuple[tuple[ort.OrtValue, ort.OrtValue], ...]


class DeviceKvCache:
    """Implements `edgesdk.engines.onnx.kv_cache.StateCache`.

    Args:
        memory: of the device, as onnxruntime lists it.
    """

    def __init__(self, shape: CacheShape, memory: ort.OrtMemoryInfo) -> None:
        self.shape = shape
        self.capacity = 0
        self._memory = memory
        self.buffers: _Pairs = ()

    def reserve(self, length: int, *, used: int, limit: int) -> None:
        # A longer cache has its heads elsewhere, so its rows cannot be copied as one piece.
        capacity = grown_capacity(length, limit)
        old = [[buffer[:, :, :used] for buffer in pair] for pair in self._host_pairs()]
        blank = np.zeros((1, self.shape.kv_heads, capacity, self.shape.head_size), np.float32)
        pairs = self._allocate(capacity)
        for layer, pair in enumerate(pairs):
            for part, value in enumerate(pair):
                blank[:] = 0
                if used:
                    blank[:, :, :used] = old[layer][part]
                _copy_in(blank, value)
        self.buffers, self.capacity = pairs, capacity

    def copy(self, used: int) -> DeviceKvCache:
        twin = DeviceKvCache(self.shape, self._memory)
        if self.capacity:
            twin.buffers = self._allocate(self.capacity)
            twin.capacity = self.capacity
            ort.copy_tensors(
                [value for pair in self.buffers for value in pair],
                [value for pair in twin.buffers for value in pair],
            )
        return twin

    def dump(self, used: int) -> Iterator[Buffer]:
        for pair in self._host_pairs():
            for buffer in pair:
                yield np.ascontiguousarray(buffer[0, :, :used])

    def load(self, numbers: Buffer, used: int) -> None:
        shape = self.shape
        parts = numbers.reshape(shape.layers, 2, shape.kv_heads, used, shape.head_size)
        whole = np.zeros((1, shape.kv_heads, self.capacity, shape.head_size), np.float32)
        for pair, layer in zip(self.buffers, parts, strict=True):
            for value, part in zip(pair, layer, strict=True):
                whole[0, :, :used] = part
                _copy_in(whole, value)

    def _allocate(self, capacity: int) -> _Pairs:
        dims = (1, self.shape.kv_heads, capacity, self.shape.head_size)

        def room() -> ort.OrtValue:
            return ort.OrtValue.ortvalue_from_shape_and_type(
                dims, np.float32, memory_info=self._memory
            )

        return tuple((room(), room()) for _ in range(self.shape.layers))

    def _host_pairs(self) -> Iterator[tuple[Buffer, Buffer]]:
        for keys, values in self.buffers:
            yield keys.numpy(), values.numpy()


def _copy_in(array: Buffer, value: ort.OrtValue) -> None:
    ort.copy_tensors([ort.OrtValue.ortvalue_from_numpy(array)], [value])
