"""Decides before a draft whether the device should try at all."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, NamedTuple, get_args

from edgesdk.errors import InvalidOption, RequestError, TemplateError
from edgesdk.hybrid.confidence.artifacts import ArtifactStore
from edgesdk.hybrid.confidence.prompt_classifier import (
    CLASSIFIER_ARTIFACT,
    Messages,
    PromptClassifier,
)
from edgesdk.hybrid.content import media_in, texts_in
from edgesdk.hybrid.request import HybridRequest
from edgesdk.model import Model
from edgesdk.options import Options
from edgesdk.receipt import Receipt
from edgesdk.runtime import Runtime
from edgesdk.system.checks import checked_choice
from edgesdk.system.power import PowerState


class Rejection(NamedTuple):
    """The reason why the device should not answer, in words of the SDK's own that may be recorded.

    Attributes:
        check: which check failed, in a word; empty where the draft itself was not good enough.
    """

    check: str
    reason: str


# Enough for a median that one busy moment does not sway, few enough to notice a slow hour.
_WINDOW = 9
# Shorter prompts and answers measure the overhead of a call rather than a rate.
_MIN_PROMPT, _MIN_STEPS = 32, 4


class DeviceSpeed:
    """Measures how fast the device answers: medians of the last answers.

    Several threads and clients of one model may share one.

    Args:
        decode: tokens per second before anything is measured, such as
            `edgesdk.Plan.tokens_per_second`, which is a bound from above: what it says is too
            slow is too slow. None for unknown.

    Raises:
        InvalidOption: a rate is not above 0.
    """

    def __init__(self, *, decode: float | None = None) -> None:
        if decode is not None and not decode > 0:
            raise InvalidOption(f"A rate must be above 0, not {decode}.")
        self._guard = threading.Lock()
        self._known = decode
        self._prefill: deque[float] = deque(maxlen=_WINDOW)
        self._decode: deque[float] = deque(maxlen=_WINDOW)
        self._lengths: deque[int] = deque(maxlen=_WINDOW)
        self._device: str | None = None

    def observe(self, receipt: Receipt) -> None:
        """One more answer. Waiting for other answers is not in its times; rests are. After a warm
        start another device answers, of which the measurements before say nothing."""
        computed = receipt.prompt_tokens - receipt.cached_tokens
        with self._guard:
            if self._device not in (None, receipt.device):
                self._known = None
                self._prefill.clear()
                self._decode.clear()
            self._device = receipt.device
            if computed >= _MIN_PROMPT and receipt.prefill_seconds > 0:
                self._prefill.append(computed / receipt.prefill_seconds)
            # The end token is a step that is no output, so this is a little too slow at worst.
            steps = receipt.output_tokens - 1
            if steps >= _MIN_STEPS and receipt.decode_seconds > 0:
                self._decode.append(steps / receipt.decode_seconds)
            # An aborted answer says nothing of how long it would have been.
            if receipt.finish_reason != "cancelled" and receipt.output_tokens:
                self._lengths.append(receipt.output_tokens)

    def forget_oldest(self) -> None:
        """Forget the oldest measurements, because the device was just rejected as too slow.

        Only answers measure its speed, so it must get another chance.
        """
        with self._guard:
            for measured in (self._prefill, self._decode):
                if measured:
                    measured.popleft()

    @property
    def length(self) -> int | None:
        """Median tokens of an answer; None before the first."""
        with self._guard:
            return round(statistics.median(self._lengths)) if self._lengths else None

    def seconds(self, prompt_tokens: int, output_tokens: int) -> float | None:
        """Estimate the seconds of an answer; None where no rate is known.

        A prefill whose rate is unknown counts as nothing.
        """
        with self._guard:
            decode = statistics.median(self._decode) if self._decode else self._known
            prefill = statistics.median(self._prefill) if self._prefill else None
        if decode is None and prefill is None:
            return None
        reading = prompt_tokens / prefill if prefill else 0.0
        return reading + (output_tokens / decode if decode else 0.0)


Hint = Literal["local", "cloud"]


@dataclass(frozen=True)
class Router:
    """Settings: when the device does not even try. They only matter where the cloud may be asked.

    Attributes:
        hint: looks at the messages. "cloud" sends them there at once; "local" has the device try
            whatever its state and the classifier say; None has no effect. Where it raises, it has
            no effect either; any other word of it is an InvalidOption for who asked.
        classifier: predicts from the prompt whether the device will be right; None for the one
            stored for this model, if there is one.
        sensor: says how the device is, such as `edgesdk.system.power.read_sensors`; None asks none.
        max_celsius: degrees Celsius from which on the device is spared.
        min_battery: percent down to which it is spared, where it is not plugged in.
        speed: how fast the device is; shared by clients of one model, if it is given to all.
        deadline_share: of the deadline that a draft may be expected to take, above 0 and at most 1;
            the rest is the cloud's, should the draft not be kept.

    Raises:
        InvalidOption: a number is out of its range.
    """

    hint: Callable[[Messages], Hint | None] | None = None
    classifier: PromptClassifier | None = None
    sensor: Callable[[], PowerState] | None = None
    max_celsius: float = 90.0
    min_battery: float = 15.0
    speed: DeviceSpeed = field(default_factory=DeviceSpeed)
    deadline_share: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.deadline_share <= 1:
            raise InvalidOption(
                f"deadline_share must be above 0 and at most 1, not {self.deadline_share}."
            )
        if not 0 <= self.min_battery <= 100:
            raise InvalidOption(f"min_battery must be between 0 and 100, not {self.min_battery}.")


# Sensors change slowly, and reading them may take milliseconds.
_SENSOR_SECONDS = 5.0
# About what a cloud counts for a large picture, in tokens; and bytes of a token where the device's
# tokenizer cannot tell.
_TOKENS_PER_PICTURE = 1_500
_BYTES_PER_TOKEN = 3
# Tokens of an answer where none was given yet.
_DEFAULT_LENGTH = 32

_LOG = logging.getLogger("edgesdk.hybrid")


class Preflight:
    """Checks requests before a draft, the cheapest checks first. Several threads may use it.

    Args:
        artifacts: where a prompt classifier may be stored for this model; None for nowhere.
        clock: as `time.monotonic`.
    """

    def __init__(
        self,
        model: Model,
        router: Router,
        artifacts: ArtifactStore | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        bundle = model.runtime.engine.kv_identity.model
        classifier = router.classifier
        if classifier is None and artifacts is not None:
            classifier = artifacts.load(bundle, CLASSIFIER_ARTIFACT, PromptClassifier)
        self._router = replace(router, classifier=classifier)
        self._clock = clock
        self._looked: tuple[float, PowerState] | None = None

    def check(self, hybrid: HybridRequest, *, prompt_only: bool = False) -> Rejection | None:
        """Return why the device should not try; None where it should.

        Args:
            prompt_only: check only what depends on the prompt, not on how the device is just now.

        Raises:
            InvalidOption: the app's hint is no word that it may be.
        """
        messages, options = hybrid.request.messages, hybrid.request.options
        with_tools = hybrid.request.tools is not None
        lacking = missing_senses(messages) or missing_tools(
            messages, self._model.runtime, with_tools
        )
        if lacking is not None:
            return lacking
        try:
            tokens = len(hybrid.full.tokens)
        except TemplateError:
            return Rejection("template", "the device's model cannot read such a conversation")
        full = self._fills_context(tokens, options)
        if full is not None:
            return full
        hint = self._hint(messages)
        if hint == "cloud":
            return Rejection("hint", "the app's hint was the cloud")
        if hint == "local":
            return None
        now = None if prompt_only else self._state() or self._slowness(tokens, options)
        return now or self._learned(messages)

    @property
    def classifier(self) -> PromptClassifier | None:
        """The prompt classifier that is used."""
        return self._router.classifier

    def settings(self) -> dict[str, object]:
        """Return those settings that decide about a prompt, whatever the device's state."""
        found: dict[str, object] = {}
        if self._router.hint is not None:
            found["hint"] = function_name(self._router.hint)
        if self.classifier is not None:
            found["classifier"] = [asdict(self.classifier.regression), self.classifier.threshold]
        return found

    def prompt_log_odds(self, messages: Messages) -> float:
        """What the classifier says of a prompt; 0 where there is no classifier."""
        return 0.0 if self.classifier is None else self.classifier.log_odds(messages)

    def observe(self, receipt: Receipt) -> None:
        """The device gave an answer."""
        self._router.speed.observe(receipt)

    def require_text(self, hybrid: HybridRequest) -> None:
        """Refuse what the device would have to see or hear."""
        lacking = missing_senses(hybrid.local_messages or hybrid.request.messages)
        if lacking is not None:
            raise RequestError(
                f"Nobody can answer: {lacking.reason}, and the cloud may not be asked, or gave no"
                " answer.",
                hint='Take them out, or allow the upload; under "redact" `Policy(media=...)` does.',
            )

    def count(self, hybrid: HybridRequest) -> int:
        """Estimate the tokens of a prompt with its tools for the cloud, rather too many than too
        few."""
        full = hybrid.full
        try:
            tokens = len(full.tokens)
        except TemplateError:
            texts = texts_in([full.messages, list(full.specs)])
            size = sum(len(text.encode("utf-8", "replace")) for text in texts)
            tokens = size // _BYTES_PER_TOKEN + 1
        return tokens + _TOKENS_PER_PICTURE * len(media_in(hybrid.request.messages))

    def _fills_context(self, tokens: int, options: Options) -> Rejection | None:
        room = self._model.runtime.engine.info.context_length - tokens
        if room < 1:
            return Rejection("context", "the prompt does not fit the device's model")
        if room < self._expected(options, unknown=1):
            return Rejection("context", "the prompt leaves the device's model too little room")
        return None

    def _hint(self, messages: Messages) -> Hint | None:
        if self._router.hint is None:
            return None
        try:
            hint = self._router.hint(messages)
        except Exception as error:
            # The error and the answer may quote the prompt, so only the type is logged.
            _LOG.warning("the app's hint failed with %s", type(error).__name__)
            return None
        return None if hint is None else checked_choice("The app's hint", hint, get_args(Hint))

    def _state(self) -> Rejection | None:
        router, state = self._router, self._seen()
        if state.celsius is not None and state.celsius >= router.max_celsius:
            return Rejection("heat", f"the device is too hot ({state.celsius:.0f} °C)")
        low = state.battery is not None and state.battery <= router.min_battery
        if low and state.plugged is False:
            return Rejection("battery", f"the device's battery is low ({state.battery:.0f}%)")
        return None

    def _seen(self) -> PowerState:
        if self._router.sensor is None:
            return PowerState()
        now = self._clock()
        if self._looked is None or now - self._looked[0] >= _SENSOR_SECONDS:
            try:
                state = self._router.sensor()
            except Exception as error:
                _LOG.warning("a sensor failed: %r", error)
                state = PowerState()
            self._looked = (now, state)
        return self._looked[1]

    def _expected(self, options: Options, *, unknown: int) -> int:
        """Estimate the tokens of the answer from the answers before it."""
        length = self._router.speed.length or unknown
        return length if options.max_tokens is None else min(length, options.max_tokens)

    def _slowness(self, tokens: int, options: Options) -> Rejection | None:
        if options.deadline is None:
            return None
        length = self._expected(options, unknown=_DEFAULT_LENGTH)
        needed = self._router.speed.seconds(tokens, length)
        if needed is None or needed <= self._router.deadline_share * options.deadline:
            return None
        self._router.speed.forget_oldest()
        return Rejection(
            "speed", f"the device would take {needed:.1f} s, too long for the deadline"
        )

    def _learned(self, messages: Messages) -> Rejection | None:
        if self.classifier is None:
            return None
        probability = self.classifier.probability(messages)
        if probability >= self.classifier.threshold:
            return None
        return Rejection("prompt", f"prompts like this go wrong on the device ({probability:.2f})")


def function_name(function: Callable[..., object]) -> str:
    """Return the name by which a setting that is a function is told from another."""
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


# By the types that OpenAI's API has for parts of a message.
_SENSES = {
    "image_url": "vision",
    "input_image": "vision",
    "image": "vision",
    "input_audio": "hearing",
    "audio": "hearing",
    "video_url": "vision",
    "file": "files",
    "input_file": "files",
}
_LACKS = {
    "vision": "the prompt has pictures, which the device's model cannot see",
    "hearing": "the prompt has sound, which the device's model cannot hear",
    "files": "the prompt has files, which the device's model cannot read",
    "parts": "the prompt has parts that the device's model does not know",
}


def missing_senses(messages: Messages) -> Rejection | None:
    """Reject messages with pictures, sounds or files: engines know tokens of text only."""
    for media in media_in(messages):
        check = _SENSES.get(media, "parts")
        return Rejection(check, _LACKS[check])
    return None


def missing_tools(messages: Messages, runtime: Runtime, offered: bool) -> Rejection | None:
    """Reject tools where the model was not trained to use them.

    It could still be told of them in words, but that seldom goes well.
    """
    used = offered or any(
        message.get("tool_calls") or message.get("role") == "tool" for message in messages
    )
    if used and not runtime.tool_format.tools:
        return Rejection("tools", "the device's model was not trained to use tools")
    return None
