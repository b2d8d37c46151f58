"""The one seam between models and everything above: engines know tokens, nothing else.

Text, templates, sampling, stopping and scheduling live above `Sequence` and are written once;
kernels, buffers and devices live below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from edgesdk.engines.caller import Caller
from edgesdk.engines.saved import KvOrigin, Note

Logits = npt.NDArray[np.float32]
HiddenStates = npt.NDArray[np.float32]
Rows = Literal["last", "all", "each"]


@dataclass(frozen=True)
class EngineInfo:
    """What runs, and where.

    Attributes:
        name: the engine and its version, e.g. "onnxruntime 1.31.1".
        device_asked: the device the caller asked for ("auto" where it did not).
        device: the device that really runs the model, e.g. "cpu".
        vocab_size: columns of the logits.
        context_length: most tokens that one sequence may hold.
        load_seconds: time that loading took.
        concurrency: how many calls of `extend` are best under way at once, on as many sequences.
        threads: CPU threads that one call uses; None where that is not known.
    """

    name: str
    device_asked: str
    device: str
    vocab_size: int
    context_length: int
    load_seconds: float
    concurrency: int = 1
    threads: int | None = None


class Sequence(Protocol):
    """One token sequence and its KV cache. Not for two threads at once."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids that the KV cache holds, in order."""

    @property
    def hidden_states(self) -> HiddenStates | None:
        """What the head made the latest logits of, float32 [rows, hidden], row for row; None where
        the engine does not give them. Valid as long as those logits."""

    def extend(
        self,
        tokens: npt.ArrayLike,
        *,
        logits: Rows = "last",
        caller: Caller | None = None,
    ) -> Logits:
        """Append `tokens` (int, [n], n >= 1) and return next-token logits.

        Args:
            caller: who waits for them. When it stops, the call ends without waiting for the
                engine to finish it; what the call waited for others is added to its `waited`.

        Returns:
            float32 [1, vocab] for "last", [n, vocab] for "all" and "each"; row i follows token i.
            "each" asks for the very numbers that one call for each token would give: the engine
            takes the kernels of one token where it can, and is then slower than for "all". The
            array is valid until the next call on this sequence; copy it to keep it.

        Raises:
            ContextOverflow: the sequence would exceed `context_length`; nothing was appended.
            RequestError: no tokens, or an id outside the vocabulary; nothing was appended.
            EngineError: the engine failed; the sequence is as it was before the call.
            Interrupted: `caller` stopped; the sequence is as it was before the call.
        """

    def rewind(self, length: int) -> None:
        """Forget all tokens from position `length` on (0 <= length <= len(tokens))."""

    def fork(self) -> Sequence:
        """An independent sequence with the same tokens, made without prefill."""

    def save(self, path: Path, note: Note | None = None) -> None:
        """Write tokens, KV cache and the caller's `note` to `path` (beside, then renamed)."""

    def restore(self, path: Path) -> dict[str, JsonValue]:
        """Replace this sequence's content with what `save` wrote; the note comes back.

        Raises:
            RequestError: the file is damaged, or is of another model or engine; the sequence is
                as it was before the call.
        """

    def close(self) -> None:
        """Free the KV cache; further calls raise EngineError. Closing twice is fine.

        Waits for nothing and takes no lock, because a garbage collector may be who closes.
        """


class Engine(Protocol):
    """A loaded model. Sequences are cheap; the engine is heavy."""

    @property
    def info(self) -> EngineInfo:
        """What runs, and where."""

    @property
    def origin(self) -> KvOrigin:
        """What the KV caches of its sequences are bound to."""

    def sequence(self) -> Sequence:
        """A new, empty sequence."""

    def close(self) -> None:
        """Free the model. Its sequences must not be used afterwards."""
