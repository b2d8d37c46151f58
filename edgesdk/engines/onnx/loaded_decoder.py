"""What the decode states of an ONNX decoder share: session, device, what it was loaded from."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import onnxruntime as ort

from edgesdk.engines.onnx.device_access import HOST, DeviceAccess
from edgesdk.engines.onnx.device_kv_cache import DeviceKvCache
from edgesdk.engines.onnx.kv_cache import CacheShape, KvCache, StateCache
from edgesdk.engines.onnx.low_rank import LowRankInputs
from edgesdk.engines.onnx.rope_tables import RopeTables
from edgesdk.engines.onnx.verification_batch import VerificationVerdict
from edgesdk.engines.saved_state import KvIdentity
from edgesdk.errors import EngineError
from edgesdk.system.forks import ForkGuard


@dataclass(frozen=True)
class DecoderDevice:
    """The device of a decoder that does not run on the CPU.

    Attributes:
        access: to the device.
        memory: of the device, for KV caches; None where they have to lie in the host's.
        long_calls: whether calls for many tokens give the logits that calls for few of them do.
    """

    access: DeviceAccess
    memory: ort.OrtMemoryInfo | None
    long_calls: VerificationVerdict


@dataclass(frozen=True)
class LoadedDecoder:
    """What sequences share: the session, and what it was loaded from.

    Attributes:
        hidden_size: None where the graph gives no hidden states.
        verdict: whether several tokens can be computed by the kernels of one; None where they
            cannot, which is so wherever the cache is not in the host's memory.
        device: the device that computes; None for the CPU.
        rope_tables: those that the graph takes as inputs.
        low_rank: an adapter's weights, by graph input; none for the model alone.
    """

    session: ort.InferenceSession
    cache_shape: CacheShape
    vocab_size: int
    hidden_size: int | None
    context_length: int
    kv_identity: KvIdentity
    verdict: VerificationVerdict | None
    device: DecoderDevice | None = None
    rope_tables: RopeTables = field(default_factory=RopeTables)
    low_rank: LowRankInputs = field(default_factory=dict)
    fork_guard: ForkGuard = field(default_factory=lambda: ForkGuard("The model", EngineError))

    def empty_cache(self) -> StateCache:
        """A KV cache without room for a token."""
        memory = None if self.device is None else self.device.memory
        if memory is None:
            return KvCache(self.cache_shape)
        return DeviceKvCache(self.cache_shape, memory)

    @property
    def attention_rows(self) -> int:
        """How many tokens onnxruntime's attention takes at a time on the CPU: one for each number
        of a key and a value (MlasFlashAttention's `q_block_size`, confirmed by measurement)."""
        return 2 * self.cache_shape.head_size

    @property
    def access(self) -> contextlib.AbstractContextManager[Any]:
        """What a thread holds while it uses the device."""
        return HOST if self.device is None else self.device.access
