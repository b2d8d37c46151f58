"""Stands before the device's model: is a draft worth the time and the battery?"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

from edgesdk.decode.options import Options
from edgesdk.errors import RequestError, TemplateError
from edgesdk.hybrid.gate.capabilities import in_words, senses_lacking, tools_lacking
from edgesdk.hybrid.gate.features import Messages
from edgesdk.hybrid.gate.gate import DraftGate, Hint
from edgesdk.hybrid.gate.objection import Objection
from edgesdk.hybrid.gate.prompts import KEPT_AS, PromptGate, prompt_gate_from
from edgesdk.hybrid.parts import media_in
from edgesdk.hybrid.privacy.policy import texts_in
from edgesdk.hybrid.trust.kept import Kept
from edgesdk.power import PowerState
from edgesdk.receipt import Receipt
from edgesdk.runtime import Runtime

# Sensors change slowly, and reading them may take milliseconds.
_LOOK_SECONDS = 5.0
# About what a cloud counts for a large picture, in tokens; and bytes of a token where the device's
# tokenizer cannot tell.
_TOKENS_PER_PICTURE = 1_500
_BYTES_PER_TOKEN = 3
# Tokens of an answer where none was given yet.
_USUAL_LENGTH = 32

_LOG = logging.getLogger("edgesdk.hybrid")


class Gatekeeper:
    """Asks an app's gates in order of what they cost. Several threads may use it.

    Args:
        kept: where a prompt gate may have been kept for this model.
        clock: as `time.monotonic`.
    """

    def __init__(
        self,
        runtime: Runtime,
        gate: DraftGate,
        kept: Kept,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runtime = runtime
        bundle = runtime.engine.origin.model
        prompts = gate.prompts or kept.known(bundle, KEPT_AS, prompt_gate_from)
        self._gate = replace(gate, prompts=prompts)
        self._clock = clock
        self._looked: tuple[float, PowerState] | None = None

    def objection(
        self,
        messages: Messages,
        options: Options,
        *,
        tools: bool = False,
        steady: bool = False,
    ) -> Objection | None:
        """What speaks against a draft; None where nothing does.

        Args:
            tools: whether tools are offered.
            steady: ask only what depends on the prompt, not on how the device is just now.
        """
        lacking = senses_lacking(messages) or tools_lacking(messages, self._runtime, tools)
        if lacking is not None:
            return lacking
        try:
            tokens = len(self._runtime.encode(in_words(messages)))
        except TemplateError:
            return Objection("template", "the device's model cannot read such a conversation")
        full = self._fills_context(tokens, options)
        if full is not None:
            return full
        hint = self._hint(messages)
        if hint == "cloud":
            return Objection("hint", "the app's hint was the cloud")
        if hint == "local":
            return None
        now = None if steady else self._state() or self._slowness(tokens, options)
        return now or self._learned(messages)

    @property
    def hint(self) -> Callable[[Messages], Hint | None] | None:
        """The app's."""
        return self._gate.hint

    @property
    def prompts(self) -> PromptGate | None:
        """The learned gate that is used."""
        return self._gate.prompts

    def prompt_log_odds(self, messages: Messages) -> float:
        """What the learned gate says of a prompt that it let through; 0 where there is none."""
        prompts = self._gate.prompts
        return 0.0 if prompts is None else prompts.log_odds(messages)

    def learn(self, receipt: Receipt) -> None:
        """The device gave an answer."""
        self._gate.rates.learn(receipt)

    def told(self, messages: Messages) -> list[dict[str, Any]]:
        """The messages as the device's model is told them.

        Raises:
            RequestError: they need more than a model of text has.
        """
        lacking = senses_lacking(messages)
        if lacking is not None:
            raise RequestError(
                f"Nobody can answer: {lacking.reason}, and the cloud may not be asked, or gave no"
                " answer.",
                hint='Take them out, or allow the upload; under "redact" `Policy(media=...)` does.',
            )
        return in_words(messages)

    def count(self, messages: Messages) -> int:
        """Tokens of a prompt for the cloud, as many as they may be."""
        words = in_words(messages)
        try:
            tokens = len(self._runtime.encode(words))
        except TemplateError:
            size = sum(len(text.encode("utf-8", "replace")) for text in texts_in(words))
            tokens = size // _BYTES_PER_TOKEN + 1
        return tokens + _TOKENS_PER_PICTURE * len(media_in(messages))

    def _fills_context(self, tokens: int, options: Options) -> Objection | None:
        room = self._runtime.engine.info.context_length - tokens
        if room < 1:
            return Objection("context", "the prompt does not fit the device's model")
        if room < self._expected(options, unknown=1):
            return Objection("context", "the prompt leaves the device's model too little room")
        return None

    def _hint(self, messages: Messages) -> Hint | None:
        if self._gate.hint is None:
            return None
        try:
            found = self._gate.hint(messages)
        except Exception as error:
            # It may quote the prompt, so only its type is told; and so may what it answers.
            _LOG.warning("the app's hint failed with %s", type(error).__name__)
            return None
        if found not in (None, *get_args(Hint)):
            _LOG.warning("the app's hint is none of %s", ", ".join(get_args(Hint)))
            return None
        return found

    def _state(self) -> Objection | None:
        gate, state = self._gate, self._seen()
        if state.celsius is not None and state.celsius >= gate.hottest:
            return Objection("heat", f"the device is too hot ({state.celsius:.0f} °C)")
        low = state.battery is not None and state.battery <= gate.least_battery
        if low and state.plugged is False:
            return Objection("battery", f"the device's battery is low ({state.battery:.0f}%)")
        return None

    def _seen(self) -> PowerState:
        if self._gate.sensor is None:
            return PowerState()
        now = self._clock()
        if self._looked is None or now - self._looked[0] >= _LOOK_SECONDS:
            try:
                state = self._gate.sensor()
            except Exception as error:
                _LOG.warning("a sensor failed: %r", error)
                state = PowerState()
            self._looked = (now, state)
        return self._looked[1]

    def _expected(self, options: Options, *, unknown: int) -> int:
        """Tokens that the answer will have, as far as answers before it tell."""
        length = self._gate.rates.length or unknown
        return length if options.max_tokens is None else min(length, options.max_tokens)

    def _slowness(self, tokens: int, options: Options) -> Objection | None:
        if options.deadline is None:
            return None
        length = self._expected(options, unknown=_USUAL_LENGTH)
        needed = self._gate.rates.seconds(tokens, length)
        if needed is None or needed <= self._gate.share * options.deadline:
            return None
        self._gate.rates.doubt()
        return Objection(
            "speed", f"the device would take {needed:.1f} s, too long for the deadline"
        )

    def _learned(self, messages: Messages) -> Objection | None:
        prompts = self._gate.prompts
        if prompts is None:
            return None
        chance = prompts.chance(messages)
        if chance >= prompts.threshold:
            return None
        return Objection("prompt", f"prompts like this go wrong on the device ({chance:.2f})")
