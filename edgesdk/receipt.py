"""What an answer took."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgesdk.engines.base import EngineInfo
from edgesdk.generation.loop import Finish, FinishReason
from edgesdk.overflow import Overflow
from edgesdk.system.resources import double_counted_bytes


@dataclass(frozen=True)
class Receipt:
    """What an answer took. None stands for "not measured".

    Attributes:
        route: who answered.
        engine: the engine and its version.
        requested_device: what the caller asked for; `device` is what it got.
        threads: CPU threads that the engine uses.
        prompt_tokens: tokens of the prompt, of which
        cached_tokens: so many were in the KV cache already.
        output_tokens: tokens of the answer, the end token left out.
        load_seconds: time that loading the model took, once.
        queue_seconds: time spent waiting while the engine worked for others; not in the next two.
        prefill_seconds: time spent on the uncached part of the prompt.
        decode_seconds: time spent on the tokens after the first.
        paused_seconds: how much of the two a power policy rested.
        time_to_first_token: seconds from the request to the first token, waiting included.
        tokens_per_second: of the decode after the first token.
        peak_memory_bytes: most resident memory that this process ever had.
        finish_reason: see `edgesdk.generation.loop.Finish`.
        overflow: what was done so that the turn fits the context; None if it fitted.
        drafted_tokens: guesses that speculation verified, of which
        accepted_tokens: so many were right.
    """

    route: Literal["local"]
    engine: str
    requested_device: str
    device: str
    threads: int | None
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    load_seconds: float
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    paused_seconds: float
    time_to_first_token: float | None
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    finish_reason: FinishReason
    drafted_tokens: int
    accepted_tokens: int
    overflow: Overflow | None = None

    def line(self) -> str:
        """One line for people."""
        waited = f" · waited {self.queue_seconds:.2f} s" if self.queue_seconds >= 0.01 else ""
        paused = f" · rested {self.paused_seconds:.2f} s" if self.paused_seconds >= 0.01 else ""
        guessed = ""
        if self.drafted_tokens:
            guessed = f" · {self.accepted_tokens:,} of {self.drafted_tokens:,} guesses right"
        cached = f" ({self.cached_tokens:,} cached)" if self.cached_tokens else ""
        first, speed, memory = "not measured", "not measured", "not measured"
        if self.time_to_first_token is not None:
            first = f"{self.time_to_first_token:.2f} s"
        if self.tokens_per_second is not None:
            speed = f"{self.tokens_per_second:.1f} tokens/s"
        if self.peak_memory_bytes is not None:
            memory = f"{self.peak_memory_bytes / 1e6:,.0f} MB"
        ended = "" if self.finish_reason == "stop" else f" · ended by {self.finish_reason}"
        shortened = "" if self.overflow is None else f" · {self.overflow.phrase()}"
        return (
            f"{self.prompt_tokens:,} tokens in{cached}, {self.output_tokens:,} out"
            f"{waited} · first token {first} · speed {speed}{guessed}{paused}"
            f" · peak memory {memory} · {self._where()} · {self.engine}{shortened}{ended}"
        )

    def _where(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} threads"
        asked = (
            ""
            if self.requested_device in ("auto", self.device)
            else f" ({self.requested_device} asked)"
        )
        return f"{self.device}{asked}{threads}"


def receipt_of(
    finish: Finish, info: EngineInfo, *, load_seconds: float, overflow: Overflow | None = None
) -> Receipt:
    """The receipt of an answer that the engine of `info` gave."""
    timed = finish.decode_steps > 0 and finish.decode_seconds > 0
    return Receipt(
        route="local",
        engine=info.name,
        requested_device=info.requested_device,
        device=info.device,
        threads=info.threads,
        prompt_tokens=finish.prompt_tokens,
        cached_tokens=finish.cached_tokens,
        output_tokens=len(finish.tokens),
        load_seconds=load_seconds,
        queue_seconds=finish.queue_seconds,
        prefill_seconds=finish.prefill_seconds,
        decode_seconds=finish.decode_seconds,
        paused_seconds=finish.paused_seconds,
        time_to_first_token=finish.time_to_first_token,
        tokens_per_second=finish.decode_steps / finish.decode_seconds if timed else None,
        peak_memory_bytes=peak_memory_bytes(),
        finish_reason=finish.reason,
        drafted_tokens=finish.drafted_tokens,
        accepted_tokens=finish.accepted_tokens,
        overflow=overflow,
    )


def peak_memory_bytes() -> int | None:
    """Most resident memory that this process ever had; None where the system does not tell."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        # getrusage would also count what the parent process was when it started this one.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(peaks[0]) * 1024 - double_counted_bytes() if peaks else None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kibibytes, except where it is bytes.
    return peak if sys.platform == "darwin" else peak * 1024
