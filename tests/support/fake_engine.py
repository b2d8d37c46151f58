"""An engine without a model: tokens are bytes, and the answer is written beforehand.

Byte 2 opens an answer and byte 3 ends it; both are control tokens, so no text shows for them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from edgesdk.engines.base import EngineInfo, HiddenStates, Logits, Placement, Rows
from edgesdk.engines.saved_state import (
    KvIdentity,
    StateMetadata,
    read_saved_state,
    write_saved_state,
)
from edgesdk.errors import ContextOverflow, EngineError, RequestError
from edgesdk.generation.prefix_cache import PrefixCache
from edgesdk.model import Model
from edgesdk.runtime import Runtime
from edgesdk.system.cancellation import CancellationToken, Cancelled
from edgesdk.text.prompts import PromptEncoder
from edgesdk.text.template import ChatTemplate

OPEN, END, VOCAB = 2, 3, 256
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}\x02{{ m.content }}\x03{% else %}{{ m.role }}: {{ m.content }}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}\x02{% endif %}"
)


class ByteTokenizer:
    """Implements `Tokenizer`: UTF-8 bytes are the ids."""

    vocab_size = VOCAB
    eos_token_ids = frozenset({END})
    added_tokens: Mapping[str, int] = MappingProxyType({})
    special_token_ids: frozenset[int] = frozenset()

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_pieces(
        self, pieces: Sequence[tuple[str, bool]], control: Mapping[int, str]
    ) -> list[int]:
        raise AssertionError("this vocabulary has no control tokens that a text could name")

    def token_bytes(self, token: int) -> bytes:
        return b"" if token in (OPEN, END) else bytes([token])


class FakeDecodeState:
    """Implements `Sequence`.

    Attributes:
        extended: how many tokens each call brought.
        interrupted: set while the caller of a call under way has stopped.
    """

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._tokens: list[int] = []
        self.extended: list[int] = []
        self.interrupted = threading.Event()
        self.closed = False
        self.hidden_states: HiddenStates | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self._tokens)

    def extend(
        self,
        tokens: npt.ArrayLike,
        *,
        logits: Rows = "last",
        cancellation: CancellationToken | None = None,
    ) -> Logits:
        if self.closed:
            raise EngineError("closed")
        ids = [int(token) for token in np.atleast_1d(np.asarray(tokens))]
        if not ids:
            raise RequestError("no tokens")
        if cancellation is None:
            self._engine.before_extend(self)
        else:
            with cancellation.on_cancel(self.interrupted.set):
                self._engine.before_extend(self)
            if self.interrupted.is_set():
                self.interrupted.clear()
                raise Cancelled
        total = len(self._tokens) + len(ids)
        if total > self._engine.info.context_length:
            raise ContextOverflow("full", tokens=total, limit=self._engine.info.context_length)
        held = len(self._tokens)
        self._tokens += ids
        self.extended.append(len(ids))
        first = held + 1 if logits != "last" else total
        ends = range(first, total + 1)
        states = [self._engine.hidden_state(self._tokens[:n]) for n in ends]
        known = [state for state in states if state is not None]
        self.hidden_states = np.stack(known) if known else None
        return np.concatenate([self._engine.logits(self._tokens[:n]) for n in ends])

    def rewind(self, length: int) -> None:
        assert 0 <= length <= len(self._tokens)
        del self._tokens[length:]

    def fork(self) -> FakeDecodeState:
        twin = self._engine.new_state()
        twin._tokens = list(self._tokens)
        return twin

    def save(self, path: Path, metadata: StateMetadata | None = None) -> None:
        cache = np.array(self._tokens, np.float32)
        write_saved_state(path, self._engine.kv_identity, self._tokens, [cache], metadata)

    def restore(self, path: Path) -> dict[str, JsonValue]:
        self._tokens, metadata, _ = read_saved_state(path, self._engine.kv_identity)
        return metadata

    def close(self) -> None:
        self.closed = True


class FakeEngine:
    """Implements `Engine`.

    Args:
        answer: bytes that follow the last byte 2 of the sequence; then byte 3.
        probability: of the whole answer, of which each token has an equal part; None for 0.39 a
            token.
        before_extend: called before each `extend`, to wait, to count or to fail.
    """

    def __init__(
        self,
        answer: bytes = b"Hello there.",
        *,
        context_length: int = 4096,
        probability: float | None = None,
        before_extend: Callable[[FakeDecodeState], None] = lambda state: None,
    ) -> None:
        self.answer = answer
        self.probability = probability
        self.before_extend = before_extend
        self.states: list[FakeDecodeState] = []
        self.kv_identity = KvIdentity("fake", "00" * 32, "float32")
        self.info = EngineInfo("fake 1", "auto", Placement("cpu"), VOCAB, context_length, 0.0)

    def new_state(self) -> FakeDecodeState:
        self.states.append(FakeDecodeState(self))
        return self.states[-1]

    def logits(self, tokens: list[int]) -> Logits:
        """The written token is the likeliest, the ids after it less and less likely."""
        since = tokens[::-1].index(OPEN) if OPEN in tokens else 0
        written = self.answer[since] if since < len(self.answer) else END
        distance = (np.arange(VOCAB) - written) % VOCAB
        slope = 0.5
        if self.probability is not None:
            slope = -math.log(1 - self.probability ** (1 / (len(self.answer) + 1)))
        return (-slope * distance).astype(np.float32)[None]

    def hidden_state(self, tokens: list[int]) -> HiddenStates | None:
        """That the logits after `tokens` are made of, float32 [hidden]; None for an engine that
        gives none."""
        return None

    def close(self) -> None:
        pass


def fake_model(
    engine: FakeEngine | None = None,
    *,
    template: str | None = TEMPLATE,
    prefix_cache: PrefixCache | None = None,
) -> Model:
    """A model around a fake engine."""
    compiled = None if template is None else ChatTemplate(template)
    encoder = PromptEncoder(ByteTokenizer(), compiled, None, None)
    return Model("fake", Runtime(engine or FakeEngine(), encoder, 0.25, prefix_cache))
