"""The one seam between models and everything above: engines know tokens, nothing else.

Text, templates, sampling, stopping and scheduling live above `DecodeState` and are written once;
kernels, buffers and devices live below it. Every engine checks its arguments with the functions
at the end, so that all engines refuse the same calls with the same words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from edgesdk.bundle.adapter import Adapter
from edgesdk.engines.saved_state import KvIdentity, StateMetadata
from edgesdk.errors import ContextOverflow, EngineError, InvalidOption, RequestError
from edgesdk.system.cancellation import CancellationToken

Logits = npt.NDArray[np.float32]
HiddenStates = npt.NDArray[np.float32]
Rows = Literal["last", "all", "each"]


@dataclass(frozen=True)
class Placement:
    """Where a loaded model runs, as its engine read it back after loading.

    Attributes:
        device: the device, as its record names it, such as "webgpu".
        provider: the provider, as its record names it, such as "WebGPU".
        processor: what it computes on, such as "GPU (Intel)".
        in_software: whether that is a simulator, or the CPU in place of the device.
        nodes: onnxruntime's providers, or Core ML's processors as it plans them, and how many
            nodes of the graph each runs; empty where another library runs the model.
        partitions: subgraphs that the provider compiled; 0 where it runs node by node, or where
            another library runs the model.
        prefill: the device and processor that compute prompts, where those are others.
        passed_over: devices that were tried or asked for before this one, each with the reason why
            it does not run the model.
    """

    device: str
    provider: str = ""
    processor: str = ""
    in_software: bool = False
    nodes: tuple[tuple[str, int], ...] = ()
    partitions: int = 0
    prefill: str = ""
    passed_over: tuple[str, ...] = ()

    def line(self) -> str:
        """One line for people."""
        place = ", ".join(part for part in (self.provider, self.processor) if part)
        words = [f"{self.device} ({place})" if place else self.device]
        if self.in_software:
            words.append("in software")
        if self.prefill:
            words.append(f"prompts on {self.prefill}")
        if len(self.nodes) > 1:
            total = sum(count for _, count in self.nodes)
            words.append(
                f"{total} nodes: " + ", ".join(f"{count} on {name}" for name, count in self.nodes)
            )
        if self.partitions:
            words.append(f"{self.partitions} partition{'s' if self.partitions > 1 else ''}")
        words += [f"not {reason}" for reason in self.passed_over]
        return "; ".join(words)

    def figures(self) -> dict[str, JsonValue]:
        """The same for programs, as JSON."""
        return {
            **vars(self),
            "nodes": dict(self.nodes),
            "passed_over": list(self.passed_over),
        }

    def __str__(self) -> str:
        return self.line()


def joined(placements: Sequence[Placement]) -> Placement:
    """The placement of a model that several graphs of one provider make."""
    nodes: Counter[str] = Counter()
    for each in placements:
        nodes.update(dict(each.nodes))
    return replace(
        placements[0],
        nodes=tuple(nodes.most_common()),
        partitions=sum(each.partitions for each in placements),
    )


@dataclass(frozen=True)
class LoadSettings:
    """How an engine is to load a model.

    Attributes:
        requested_device: the device the caller asked for ("auto" where it did not).
        threads: CPU threads.
        context: most tokens that one sequence may hold; None for the model's own limit.
        options: of the provider, checked against its record.
        allow_fallback: whether a part of the model may run on the CPU beside the device, and the
            device may run a graph in several partitions.
        passed_over: see `Placement`.
        progress: is called with how many of how many graphs are compiled, while a provider
            compiles the model; None to hear nothing.
        batch_invariant: see `EngineInfo`; False lets an engine give that up for throughput, where
            several answers are made at once.
        adapter: what changes the model's answers; None for the model alone.
    """

    requested_device: str
    threads: int
    context: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    allow_fallback: bool = False
    passed_over: tuple[str, ...] = ()
    progress: Callable[[int, int], None] | None = None
    batch_invariant: bool = True
    adapter: Adapter | None = None


@dataclass(frozen=True)
class EngineInfo:
    """What runs, and where.

    Attributes:
        name: the engine and its version, such as "onnxruntime 1.32.0".
        requested_device: the device the caller asked for ("auto" where it did not).
        placement: where it really runs.
        vocab_size: columns of the logits.
        context_length: most tokens that one sequence may hold.
        load_seconds: time that loading took.
        concurrency: how many calls of `extend` are best under way at once, on as many sequences.
        threads: CPU threads that one call uses; None where that is not known.
        prefill_step: 0 where keys and values do not depend on how many tokens a call has. Else
            only those of a prefill are the same whenever it is made again, and only up to a
            multiple of so many tokens; a call for one token gives others.
        batch_invariant: whether a call's numbers do not depend on what is under way on other
            sequences, nor on what the KV cache held before.
        adapter: the name of the adapter that changes its answers; None for the model alone.
    """

    name: str
    requested_device: str
    placement: Placement
    vocab_size: int
    context_length: int
    load_seconds: float
    concurrency: int = 1
    threads: int | None = None
    prefill_step: int = 0
    batch_invariant: bool = True
    adapter: str | None = None

    @property
    def device(self) -> str:
        """The device that really runs the model, as its record names it."""
        return self.placement.device


class DecodeState(Protocol):
    """One token sequence and its KV cache: the seam between engines and all that is above them.

    The state is the sequence `tokens`, nothing else. What a call returns depends on the tokens
    that it holds, never on how they got there: by one `extend` or by many, after a `rewind`, in a
    `fork`, from a file. (The last bits of the logits may; see `extend`.) A call that fails leaves
    the state as it was. A state is not for two threads at once; several states of one engine are.
    """

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids that the KV cache holds, in order."""

    @property
    def hidden_states(self) -> HiddenStates | None:
        """The hidden states behind the latest logits, float32 [rows, hidden], row for row.

        None where the engine does not give them. Valid as long as those logits.
        """

    def extend(
        self,
        tokens: npt.ArrayLike,
        *,
        logits: Rows = "last",
        cancellation: CancellationToken | None = None,
    ) -> Logits:
        """Append `tokens` (int, [n], n >= 1) and return next-token logits.

        Args:
            logits: which rows are wanted, and by which kernels. "last": after the last token.
                "all": after each token; a row may differ in its last bits from that of a call for
                one token. "each": after each token, the very numbers that one call for each token
                would give; the engine verifies in a batch where its kernels allow that, and else
                takes the tokens one by one.
            cancellation: ends the call early, without waiting for the engine to finish it. What
                the call waited for others is added to its `queue_seconds`.

        Returns:
            float32 [1, vocab] for "last", [n, vocab] for "all" and "each"; row i follows token i.
            The array is valid until the next call on this state; copy it to keep it.

        Raises:
            ContextOverflow: the tokens would exceed `context_length`; nothing was appended.
            RequestError: no tokens, or an id outside the vocabulary; nothing was appended.
            EngineError: the engine failed; the state is as it was before the call.
            Cancelled: `cancellation` was cancelled or expired; the state is as it was before.
        """

    def rewind(self, length: int) -> None:
        """Forget all tokens from position `length` on (0 <= length <= len(tokens))."""

    def fork(self) -> DecodeState:
        """Return an independent state with the same tokens, made without prefill."""

    def save(self, path: Path, metadata: StateMetadata | None = None) -> None:
        """Write tokens, KV cache and the caller's `metadata` to `path` (beside, then renamed)."""

    def restore(self, path: Path) -> dict[str, JsonValue]:
        """Replace the content with what `save` wrote, and return the metadata.

        Raises:
            RequestError: the file is damaged, or is of another model or engine; the state is as
                it was before the call.
        """

    def close(self) -> None:
        """Free the KV cache; further calls raise EngineError. Closing twice is fine.

        Waits for nothing and takes no lock, because a garbage collector may be who closes.
        """


class Engine(Protocol):
    """A loaded model. Its states are cheap; the engine is heavy."""

    @property
    def info(self) -> EngineInfo:
        """What runs, and where."""

    @property
    def kv_identity(self) -> KvIdentity:
        """What the KV caches of its states belong to."""

    def new_state(self) -> DecodeState:
        """Return a new state without tokens."""

    def close(self) -> None:
        """Free the model. Its states must not be used afterwards."""


@runtime_checkable
class AdaptableEngine(Engine, Protocol):
    """An engine that can run its model with adapters, several at once."""

    def with_adapter(self, adapter: Adapter) -> Engine:
        """The same loaded model with `adapter`, as an engine of its own: its states are changed by
        the adapter, and closing it leaves this engine open.

        Raises:
            AdapterMismatch: the adapter is for another model.
            EngineError: it cannot be loaded, or this engine is closed.
        """


def adapted_engine(engine: Engine, adapter: Adapter) -> Engine:
    """`engine` with an adapter.

    Raises:
        AdapterMismatch: the adapter is for another model.
        EngineError: the engine runs no adapters, or cannot load this one.
    """
    if not isinstance(engine, AdaptableEngine):
        raise no_adapters(engine.info.placement.device)
    return engine.with_adapter(adapter)


def no_adapters(device: str) -> EngineError:
    """The error for a device whose engine runs no adapters."""
    return EngineError(
        f"Models on {device} run without adapters only.",
        hint="Load an ONNX bundle for cpu, or a GGUF bundle; or merge the adapter:"
        " edgesdk export CHECKPOINT --merge-adapter PEFT_FOLDER.",
    )


def checked_ids(
    tokens: npt.ArrayLike | list[int], *, held: int, vocab_size: int, context_length: int
) -> list[int]:
    """`tokens`, fit to be appended to a sequence that holds `held` tokens.

    Raises:
        RequestError: `tokens` is empty, not one-dimensional, not integers, or has an id outside
            0 <= id < vocab_size.
        ContextOverflow: held + n > context_length.
    """
    # The way of a decode loop. After a pass over the weights numpy's code is no longer in the
    # processor's caches, and asking it about one integer takes 50 us.
    if isinstance(tokens, list) and len(tokens) == 1 and type(tokens[0]) is int:
        ids, low, high = tokens, tokens[0], tokens[0]
    else:
        ids, low, high = _ids_of(tokens)
    if low < 0 or high >= vocab_size:
        raise RequestError(
            f"Token id {low if low < 0 else high} is outside the vocabulary of {vocab_size}.",
            hint="Encode the text with this model's own tokenizer.",
        )
    total = held + len(ids)
    if total > context_length:
        raise ContextOverflow(
            f"{total} tokens do not fit the context of {context_length}"
            + (f" ({held} are in it already)." if held else "."),
            tokens=total,
            limit=context_length,
            hint=f"Shorten the text by {total - context_length} tokens, or start over.",
        )
    return ids


def _ids_of(tokens: npt.ArrayLike) -> tuple[list[int], int, int]:
    try:
        given = np.asarray(tokens)
    except (ValueError, OverflowError) as error:
        raise RequestError(f"The tokens are not a list of integers: {error}.") from None
    if given.ndim != 1 or given.size == 0:
        raise RequestError(
            f"There must be at least one token, in one dimension; got shape {given.shape}."
        )
    if given.dtype.kind not in "iu":
        raise RequestError(f"Token ids must be integers; got {given.dtype}.")
    return given.tolist(), int(given.min()), int(given.max())


def checked_extension(
    tokens: npt.ArrayLike | list[int],
    logits: str,
    *,
    held: int,
    vocab_size: int,
    context_length: int,
) -> tuple[list[int], int]:
    """What `DecodeState.extend` was called with: the ids, and how many of the last get logits.

    Raises:
        RequestError, ContextOverflow: see `checked_ids`.
        InvalidOption: `logits` is not one of `edgesdk.engines.base.Rows`.
    """
    ids = checked_ids(tokens, held=held, vocab_size=vocab_size, context_length=context_length)
    if logits == "last":
        return ids, 1
    if logits in ("all", "each"):
        return ids, len(ids)
    raise InvalidOption(f"logits must be 'last', 'all' or 'each', not {logits!r}.")


def chunks(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut positions [start, stop) at multiples of `step`, however the tokens were handed over, so
    that computing a beginning again makes the same chunks of it."""
    while start < stop:
        end = min(stop, (start // step + 1) * step)
        yield start, end
        start = end


def checked_length(length: int, *, held: int) -> int:
    """A length that a sequence of `held` tokens can be rewound to.

    Raises:
        RequestError: not 0 <= length <= held.
    """
    if not 0 <= length <= held:
        raise RequestError(f"Cannot rewind to {length}: the sequence holds {held} tokens.")
    return int(length)
