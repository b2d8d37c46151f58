"""What a Core ML bundle takes in memory.

Counted, not measured: Core ML maps the weight file, and may unpack some of it into float16.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgesdk.bundle import coreml_io
from edgesdk.bundle.opening import Bundle
from edgesdk.errors import EngineError
from edgesdk.system.plan import MIB, PROCESS_BYTES, MemoryNeed

_RUNTIME_BYTES = 100 * MIB
_HALF = 2


@dataclass(frozen=True)
class CoreMlFootprint:
    """Implements `edgesdk.system.plan.Footprint`.

    Attributes:
        weights_bytes: size of the package.
        cache_bytes: of both states, which are as large for a short text as for a long one.
        scratch_bytes: of the scores and logits of one call of `prefill`.
    """

    context_length: int
    kv_bytes_per_token: int
    weights_bytes: int
    cache_bytes: int
    scratch_bytes: int

    @property
    def read_bytes_per_token(self) -> int:
        return self.weights_bytes

    def need(self, context: int) -> MemoryNeed:
        return MemoryNeed(
            process=PROCESS_BYTES,
            runtime=_RUNTIME_BYTES,
            weights=self.weights_bytes,
            kv_cache=self.cache_bytes,
            scratch=self.scratch_bytes,
        )


def footprint(source: Bundle | Path) -> CoreMlFootprint:
    """The footprint of a Core ML bundle.

    Raises:
        EngineError: `source` is no bundle.
    """
    if not isinstance(source, Bundle):
        raise EngineError(f"{source} is not a bundle.", hint="Export the model to a bundle first.")
    manifest = source.manifest
    shape, static = manifest.shape, manifest.static
    package = f"{manifest.roles['decoder']}/"
    tokens, room = 1, shape.context_length
    if static is not None:
        tokens, room = static.prefill_tokens, coreml_io.cache_room(static)
    per_token = shape.kv_bytes_per_token(_HALF)
    return CoreMlFootprint(
        context_length=shape.context_length,
        kv_bytes_per_token=per_token,
        weights_bytes=sum(file.size for file in manifest.files if file.name.startswith(package)),
        cache_bytes=room * per_token,
        scratch_bytes=_HALF * tokens * (2 * shape.heads * room + 2 * shape.vocab_size),
    )
