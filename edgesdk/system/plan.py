"""Plan whether a model fits this device, and how fast it can be there at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edgesdk.errors import InvalidOption, NotEnoughMemory
from edgesdk.system.resources import available_bytes, bandwidth, thread_count

MIB = 2**20
# A Python process with edgesdk imported, before it loads a model (measured on Linux x86-64).
PROCESS_BYTES = 50 * MIB


@dataclass(frozen=True)
class MemoryNeed:
    """Most resident memory of a process that fills one context, in bytes.

    Attributes:
        process: the interpreter and edgesdk itself.
        runtime: the engine's library, the tokenizer.
        weights: with the copies that the engine makes in a layout of its own.
        kv_cache: of a context full of tokens.
        scratch: activations of a prefill chunk, and copies that exist while a KV cache grows or
            a model loads.
    """

    process: int
    runtime: int
    weights: int
    kv_cache: int
    scratch: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.process + self.runtime + self.weights + self.kv_cache + self.scratch


class Footprint(Protocol):
    """What a model takes in memory, by its engine's own formula, before anything is loaded."""

    @property
    def context_length(self) -> int:
        """Most tokens that the model was trained for."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache of one token."""

    @property
    def read_bytes_per_token(self) -> int:
        """Bytes of weights that each decoded token reads."""

    def need(self, context: int) -> MemoryNeed:
        """Most memory that a context of that many tokens takes at any moment."""


@dataclass(frozen=True)
class FixedFootprint:
    """Implements `Footprint` for graphs of fixed shapes: a short text takes what a long one does.

    Attributes:
        memory: what any context takes.
    """

    context_length: int
    kv_bytes_per_token: int
    read_bytes_per_token: int
    memory: MemoryNeed

    def need(self, context: int) -> MemoryNeed:
        return self.memory


@dataclass(frozen=True)
class Plan:
    """What a model needs with a context, and what the device has. Sizes are in bytes.

    Attributes:
        context: tokens of the one conversation that is planned for.
        model_context: most tokens that the model takes.
        need: the memory of a process that fills that context; peak, not average.
        kv_bytes_per_1000_tokens: what the KV cache grows by.
        available: what the device can still give.
        fits: whether it can give what is needed beyond this process's own start.
        longest_context: most tokens that fit, up to the model's own limit; 0 if none do.
        bandwidth: bytes per second that memory was measured to move.
        tokens_per_second: of decode with an empty KV cache, if reading the weights were all the
            work: a bound from above, which slow processors stay well under.
        tokens_per_second_full: likewise with a KV cache of `context` tokens to read.
    """

    context: int
    model_context: int
    need: MemoryNeed
    kv_bytes_per_1000_tokens: int
    available: int
    fits: bool
    longest_context: int
    bandwidth: float
    tokens_per_second: float
    tokens_per_second_full: float


def plan(
    found: Footprint, *, context: int | None = None, threads: int | None = None, reusable: int = 0
) -> Plan:
    """Plan for a model by its footprint.

    Args:
        context: tokens of the conversation; None for the model's own limit.
        threads: how many read memory; None for what `edgesdk.load` would take.
        reusable: bytes that the model may take beyond what the system has free.

    Raises:
        InvalidOption: `context` is not between 1 and the model's limit, or `threads` is less than
            1.
    """
    wanted = found.context_length if context is None else context
    if not 1 <= wanted <= found.context_length:
        raise InvalidOption(
            f"context must be between 1 and {found.context_length:,} tokens, not {wanted:,}."
        )
    return plan_for(
        found,
        wanted,
        available=available_bytes() + reusable,
        bandwidth=bandwidth(thread_count(threads)),
    )


def plan_for(found: Footprint, context: int, *, available: int, bandwidth: float) -> Plan:
    """Plan with figures that the caller has measured."""
    need = found.need(context)
    read = found.read_bytes_per_token
    return Plan(
        context=context,
        model_context=found.context_length,
        need=need,
        kv_bytes_per_1000_tokens=1000 * found.kv_bytes_per_token,
        available=available,
        fits=_beyond_start(need) <= available,
        longest_context=longest_context(found, available),
        bandwidth=bandwidth,
        tokens_per_second=bandwidth / read,
        tokens_per_second_full=bandwidth / (read + context * found.kv_bytes_per_token),
    )


def longest_context(found: Footprint, available: int) -> int:
    """Most tokens of one conversation that fit into `available` bytes; 0 if none do."""
    low, high = 0, found.context_length
    while low < high:
        middle = (low + high + 1) // 2
        if _beyond_start(found.need(middle)) <= available:
            low = middle
        else:
            high = middle - 1
    return low


def require_memory(found: Footprint, *, context: int | None) -> None:
    """Raise unless the model fits: with `context` tokens if they are asked for, else with one.

    Raises:
        NotEnoughMemory: it does not fit.
    """
    check_fits(found, min(context or 1, found.context_length), available=available_bytes())


def check_fits(found: Footprint, context: int, *, available: int) -> None:
    """Raise NotEnoughMemory unless `context` tokens fit into `available` bytes."""
    needed = _beyond_start(found.need(context))
    if needed <= available:
        return
    longest = longest_context(found, available)
    advice = f"Load it with context={longest} or less" if longest else "Take a smaller model"
    raise NotEnoughMemory(
        f"The model needs {needed / 1e6:,.0f} MB of memory with {context:,} tokens of context;"
        f" {available / 1e6:,.0f} MB are available.",
        needed=needed,
        available=available,
        hint=f"{advice}, close other programs, or pass check_memory=False to try anyway.",
    )


def _beyond_start(need: MemoryNeed) -> int:
    """Bytes that this process, which runs already, still needs."""
    return need.total - need.process
