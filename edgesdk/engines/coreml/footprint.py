"""What a Core ML bundle takes in memory.

Counted, not measured: Core ML maps the weight file, and may unpack some of it into float16.
"""

from __future__ import annotations

from pathlib import Path

from edgesdk.bundle import coreml_io
from edgesdk.bundle.opening import Bundle
from edgesdk.errors import EngineError
from edgesdk.system.plan import MIB, PROCESS_BYTES, FixedFootprint, MemoryNeed

_RUNTIME_BYTES = 100 * MIB
_HALF = 2


def footprint(source: Bundle | Path) -> FixedFootprint:
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
    weights = sum(file.size for file in manifest.files if file.name.startswith(package))
    return FixedFootprint(
        context_length=shape.context_length,
        kv_bytes_per_token=per_token,
        read_bytes_per_token=weights,
        memory=MemoryNeed(
            process=PROCESS_BYTES,
            runtime=_RUNTIME_BYTES,
            weights=weights,
            # Both states, which are as large for a short text as for a long one.
            kv_cache=room * per_token,
            # The scores and logits of one call of `prefill`.
            scratch=_HALF * tokens * (2 * shape.heads * room + 2 * shape.vocab_size),
        ),
    )
