"""What an answer took."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgesdk.engines.base import EngineInfo, Placement
from edgesdk.generation.finish import Finish, FinishReason
from edgesdk.overflow import Overflow
from edgesdk.system.resources import double_counted_bytes


@dataclass(frozen=True, kw_only=True)
class Receipt(Finish):
    """How an answer ended, what it took, and what gave it. None stands for "not measured".

    Attributes:
        info: of the engine that gave the answer.
        load_seconds: time that loading the model took, once.
        peak_memory_bytes: most resident memory that this process ever had.
        overflow: what was done so that the turn fits the context; None if it fitted.
        generic_tools: whether tools were described in edgesdk's words, because the model's chat
            template has none: such a model was not trained to call them.
    """

    info: EngineInfo
    load_seconds: float
    peak_memory_bytes: int | None
    overflow: Overflow | None = None
    generic_tools: bool = False

    @property
    def route(self) -> Literal["local"]:
        """Who answered."""
        return "local"

    @property
    def engine(self) -> str:
        """The engine and its version."""
        return self.info.name

    @property
    def device(self) -> str:
        """The device that the model runs on."""
        return self.info.device

    @property
    def placement(self) -> Placement:
        """Where the model runs, as its engine read it back after loading."""
        return self.info.placement

    @property
    def requested_device(self) -> str:
        """The device that the caller asked for."""
        return self.info.requested_device

    @property
    def threads(self) -> int | None:
        """CPU threads that the engine uses."""
        return self.info.threads

    @property
    def adapter(self) -> str | None:
        """The adapter that changed the answer; None for the model alone."""
        return self.info.adapter

    @property
    def finish_reason(self) -> FinishReason:
        """Why the answer ended; see `edgesdk.generation.finish.Finish`."""
        return self.reason

    @property
    def output_tokens(self) -> int:
        """Tokens of the answer, the end token left out."""
        return len(self.tokens)

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of the decode after the first token; None in software that stands for a device,
        whose times say nothing."""
        timed = self.decode_steps > 0 and self.decode_seconds > 0 and not self.placement.in_software
        return self.decode_steps / self.decode_seconds if timed else None

    def figures(self) -> dict[str, Any]:
        """What people and programs read of it, by name; for JSON."""
        return {
            name: getattr(self, name)
            for name in (
                "route",
                "engine",
                "adapter",
                "requested_device",
                "device",
                "threads",
                "prompt_tokens",
                "cached_tokens",
                "output_tokens",
                "load_seconds",
                "queue_seconds",
                "prefill_seconds",
                "decode_seconds",
                "paused_seconds",
                "time_to_first_token",
                "tokens_per_second",
                "peak_memory_bytes",
                "finish_reason",
                "drafted_tokens",
                "accepted_tokens",
                "generic_tools",
                "reasoning_tokens",
                "reasoning_seconds",
            )
        } | {
            "placement": self.placement.figures(),
            "overflow": None if self.overflow is None else asdict(self.overflow),
        }

    def line(self) -> str:
        """One line for people."""
        waited = f" · waited {self.queue_seconds:.2f} s" if self.queue_seconds >= 0.01 else ""
        paused = f" · rested {self.paused_seconds:.2f} s" if self.paused_seconds >= 0.01 else ""
        guessed = ""
        if self.drafted_tokens:
            guessed = f" · {self.accepted_tokens:,} of {self.drafted_tokens:,} guesses right"
        cached = f" ({self.cached_tokens:,} cached)" if self.cached_tokens else ""
        thought = ""
        if self.reasoning_tokens:
            thought = f" ({self.reasoning_tokens:,} of reasoning)"
        first, speed, memory = "not measured", "not measured", "not measured"
        if self.time_to_first_token is not None and not self.placement.in_software:
            first = f"{self.time_to_first_token:.2f} s"
        if self.tokens_per_second is not None:
            speed = f"{self.tokens_per_second:.1f} tokens/s"
        if self.peak_memory_bytes is not None:
            memory = f"{self.peak_memory_bytes / 1e6:,.0f} MB"
        ended = "" if self.finish_reason == "stop" else f" · ended by {self.finish_reason}"
        adapted = "" if self.adapter is None else f" · adapter {self.adapter}"
        generic = " · generic tools" if self.generic_tools else ""
        shortened = "" if self.overflow is None else f" · {self.overflow.phrase()}"
        return (
            f"{self.prompt_tokens:,} tokens in{cached}, {self.output_tokens:,} out{thought}"
            f"{waited} · first token {first} · speed {speed}{guessed}{paused}"
            f" · peak memory {memory} · {self._where()} · {self.engine}{adapted}{generic}"
            f"{shortened}{ended}"
        )

    def _where(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} threads"
        asked = (
            ""
            if self.requested_device in ("auto", self.device)
            else f" ({self.requested_device} asked)"
        )
        software = " in software" if self.placement.in_software else ""
        shared = "".join(f", {count} nodes on {name}" for name, count in self.placement.nodes[1:])
        return f"{self.device}{software}{shared}{asked}{threads}"


def receipt_of(
    finish: Finish,
    info: EngineInfo,
    *,
    load_seconds: float,
    overflow: Overflow | None = None,
    generic_tools: bool = False,
) -> Receipt:
    """The receipt of an answer that the engine of `info` gave."""
    return Receipt(
        **vars(finish),
        info=info,
        load_seconds=load_seconds,
        peak_memory_bytes=peak_memory_bytes(),
        overflow=overflow,
        generic_tools=generic_tools,
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
