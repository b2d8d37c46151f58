"""The decode loop, written once over any engine's `DecodeState`."""

from __future__ import annotations

import codecs
import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from time import perf_counter
from typing import NamedTuple

from edgesdk.engines.base import DecodeState, EngineInfo, HiddenStates, Logits
from edgesdk.errors import EngineError
from edgesdk.generation.constraint import Constraint
from edgesdk.generation.finish import Finish, FinishReason
from edgesdk.generation.prefill import check_fits, prefill, reusable_prefix
from edgesdk.generation.reasoning_reader import ReadText, ReasoningReader
from edgesdk.generation.repetition import RepetitionFinder
from edgesdk.generation.sampling import Sampler, log_probability, top_log_probabilities, without
from edgesdk.generation.speculation import Speculator
from edgesdk.generation.stopping import StopFilter
from edgesdk.options import Options
from edgesdk.system.cancellation import CancellationToken, Cancelled
from edgesdk.text.tokenizer import Tokenizer


class Step(NamedTuple):
    """One token of the answer, or the end of its text.

    Attributes:
        token: its id; None where only text that was held back comes out, or nothing yet.
        text: what can be shown now; "" while a character or a possible stop text is incomplete.
        logprob: natural log-probability under the model's own logits; None if not asked for.
        likeliest: the likeliest ids with theirs, the best first; empty if not asked for.
        reasoning: what can be shown now of the reasoning before the answer; None where the token
            is no part of it.
    """

    token: int | None
    text: str
    logprob: float | None
    likeliest: tuple[tuple[int, float], ...] = ()
    reasoning: str | None = None


# A token, its log-probability if asked for, and the likeliest ids with theirs.
_Choice = tuple[int, float | None, tuple[tuple[int, float], ...]]


# Sees the logits and the token of each step, and the hidden state that the logits are made of.
StepCallback = Callable[[Logits, int, HiddenStates | None], None]


class Generation(Iterator[Step]):
    """One answer, computed step by step as it is iterated.

    When it ends, in whichever way, `finish` is set and the state holds the prompt and the
    answer as far as they were computed (after a cancellation it may hold more). Closing it before
    its end counts as a cancellation.
    """

    def __init__(
        self,
        state: DecodeState,
        prompt: list[int],
        tokenizer: Tokenizer,
        options: Options,
        *,
        info: EngineInfo,
        cancellation: CancellationToken,
        logprobs: bool,
        top_logprobs: int,
        started: float,
        restore_prefix: Callable[[DecodeState, list[int]], None] | None,
        speculator: Speculator | None,
        constraint: Constraint | None,
        repetition: RepetitionFinder | None,
        stops: StopFilter | None,
        reader: ReasoningReader | None,
        on_step: StepCallback | None,
    ) -> None:
        self.finish: Finish | None = None
        self._state = state
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._options = options
        self._sampler = Sampler(options, info.vocab_size, tokenizer.token_bytes)
        self._room = info.context_length - len(prompt)
        self._prefill_step = info.prefill_step
        self._cancellation = cancellation
        self._logprobs = logprobs
        self._top_logprobs = top_logprobs
        self._started = started
        self._restore_prefix = restore_prefix
        self._speculator = speculator
        self._constraint = constraint
        self._ends = tokenizer.eos_token_ids | set(options.stop_token_ids)
        self._repetition = repetition
        self._stops = stops or StopFilter(options.stops)
        self._reader = reader or ReasoningReader(None)
        self._on_step = on_step
        self._answer: list[int] = []
        # Of the answer, and not given out yet, because it may be a turn of a cycle.
        self._held: deque[Step] = deque()
        # Characters of the steps that were given out: of the reasoning, and of the answer.
        self._num_reasoned = self._num_shown = 0
        # Chosen already, by a verified draft, and not given out yet.
        self._ahead: deque[_Choice] = deque()
        self._cached = 0
        self._prefill_seconds = 0.0
        self._decode_seconds = 0.0
        self._first: float | None = None
        self._decode_steps = 0
        self._steps = self._run()

    def __next__(self) -> Step:
        return next(self._steps)

    def close(self) -> None:
        """End here; harmless where it has ended."""
        self._steps.close()
        if self.finish is None:
            self._cut(len(self._held))
            self._end("cancelled")

    def _run(self) -> Generator[Step, None, None]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        stops = self._stops
        ends, token_bytes = self._ends, self._tokenizer.token_bytes
        answer = self._answer
        constraint = self._constraint
        most = min(self._room, self._options.max_tokens or self._room)
        reason: FinishReason | None = None
        try:
            logits = self._prefill()
            reason = self._interruption()
            while reason is None:
                begun = self._clock()
                if answer:
                    token, logprob, likeliest = self._next(most - len(answer))
                else:
                    token, logprob, likeliest = self._chosen(logits, 0, answer)
                if token in ends:
                    reason = "stop"
                    self._count(begun)
                    break
                answer.append(token)
                if constraint is not None:
                    constraint.accept(token)
                reasoning, text = self._read(decoder.decode(token_bytes(token)), begun)
                text = stops.feed(text)
                self._held.append(Step(token, text, logprob, likeliest, reasoning))
                if stops.stopped or (constraint is not None and constraint.finished):
                    reason = "stop"
                elif self._goes_in_a_cycle(token):
                    reason = "repetition"
                elif len(answer) >= most:
                    reason = "length"
                self._count(begun)
                if reason is None:
                    yield from self._certain()
                    reason = self._interruption()
        except Cancelled:
            # If nobody cancelled it was the deadline, which another clock may see a little sooner.
            reason = "cancelled" if self._cancellation.cancelled else "deadline"
        except Exception:
            # What waited was computed before the failure.
            while self._held:
                yield self._give()
            raise
        # An incomplete character at the end stays in the decoder: it would show as U+FFFD.
        rest = self._reader.flush()
        rest = rest._replace(answer=stops.finish(rest.answer))
        if reason == "repetition":
            rest = self._cut(self._num_held)
        while self._held:
            yield self._give()
        self._end(reason)
        if rest.reasoning or rest.answer:
            yield Step(None, rest.answer, None, reasoning=rest.reasoning or None)

    def _read(self, text: str, begun: float) -> tuple[str | None, str]:
        """Read a token that was computed since `begun`: its part of the reasoning, None where it
        has none, and its part of the answer."""
        reader = self._reader
        reasoned, tokens = reader.reasons, reader.tokens
        reasoning, answer = reader.feed(text, (begun, self._clock()))
        if reasoned and not reader.reasons and self._repetition is not None:
            # The answer may well repeat what was thought.
            self._repetition.restart()
        return reasoning if reader.tokens > tokens or not reader.answers else None, answer

    @property
    def _num_held(self) -> int:
        """How many steps may yet be cut off. What was given out cannot be taken back."""
        held = 0 if self._repetition is None else self._repetition.held
        return min(held, len(self._held))

    def _goes_in_a_cycle(self, token: int) -> bool:
        return self._repetition is not None and self._repetition.update(token)

    def _certain(self) -> Iterator[Step]:
        """Give out the steps that no cycle will cut off, or one without a token.

        Whoever reads the steps may want to end the answer while they wait.
        """
        if len(self._held) == self._num_held:
            yield Step(None, "", None)
        while len(self._held) > self._num_held:
            yield self._give()

    def _give(self) -> Step:
        step = self._held.popleft()
        self._num_shown += len(step.text)
        self._num_reasoned += len(step.reasoning or "")
        return step

    def _cut(self, count: int) -> ReadText:
        """Leave out the latest tokens; return what the others have of text that no step has."""
        for _ in range(count):
            self._held.pop()
            self._answer.pop()
        text = b"".join(map(self._tokenizer.token_bytes, self._answer))
        whole = codecs.getincrementaldecoder("utf-8")("replace").decode(text)
        reader = self._reader.restarted()
        reasoning, answer = map("".join, zip(reader.feed(whole), reader.flush(), strict=True))
        reasoned = self._num_reasoned + sum(len(step.reasoning or "") for step in self._held)
        shown = self._num_shown + sum(len(step.text) for step in self._held)
        return ReadText(reasoning[reasoned:], answer[shown:])

    def _next(self, room: int) -> _Choice:
        """The token after the answer so far, which may still get `room` tokens."""
        if self._ahead:
            return self._ahead.popleft()
        speculator = self._speculator
        if speculator is None:
            return self._chosen(self._state.extend(self._answer[-1:]), 0, self._answer)
        draft = speculator.draft(self._state, self._answer[-1], room - 1)
        if draft:
            self._verify(draft, speculator)
            return self._ahead.popleft()
        rows = self._state.extend(self._answer[-1:])
        speculator.record_step(rows[0])
        return self._chosen(rows, 0, self._answer)

    def _verify(self, draft: list[int], speculator: Speculator) -> None:
        """Choose the next tokens as far as the draft is right, and one more."""
        rows = self._state.extend([self._answer[-1], *draft], logits=speculator.logits_mode)
        answer = list(self._answer)
        for at, guess in enumerate([*draft, None]):
            choice = self._chosen(rows, at, answer)
            token = choice[0]
            self._ahead.append(choice)
            answer.append(token)
            if token != guess or token in self._ends:
                break
        self._state.rewind(len(self._prompt) + len(answer) - 1)
        speculator.record_verified(len(draft), answer[len(self._answer) : -1])

    def _chosen(self, rows: Logits, at: int, answer: list[int]) -> _Choice:
        """The token after `answer`, by row `at` of the latest logits."""
        row = rows[at]
        scores = row if self._constraint is None else self._constraint.masked(row)
        goes_on = self._options.ignore_eos or len(answer) < self._options.min_tokens
        if goes_on and self._constraint is None:
            scores = without(row, self._ends)
        token = self._sampler.choose(scores, self._prompt, answer)
        if self._on_step is not None:
            states = self._state.hidden_states
            self._on_step(row, token, None if states is None else states[at])
        logprob = log_probability(row, token) if self._logprobs else None
        return token, logprob, top_log_probabilities(row, self._top_logprobs)

    def _prefill(self) -> Logits:
        """Logits after the prompt.

        Raises:
            Cancelled: the answer was cancelled before, or its deadline passed.
        """
        begun = self._clock()
        state = self._state
        try:
            if self._interruption():
                raise Cancelled
            if self._restore_prefix is not None:
                self._restore_prefix(state, self._prompt)
            self._cached = reusable_prefix(state, self._prompt, self._prefill_step)
            state.rewind(self._cached)
            return prefill(state, self._prompt[self._cached :], stopped=self._interruption)
        finally:
            self._prefill_seconds = self._clock() - begun

    def _clock(self) -> float:
        """Seconds, without those of waiting for others."""
        return perf_counter() - self._cancellation.queue_seconds

    def _interruption(self) -> FinishReason | None:
        if self._cancellation.cancelled:
            return "cancelled"
        return "deadline" if self._cancellation.expired else None

    def _count(self, begun: float) -> None:
        if self._first is None:
            self._first = perf_counter() - self._started
        else:
            self._decode_seconds += self._clock() - begun
            self._decode_steps += 1

    def _end(self, reason: FinishReason) -> None:
        speculator = self._speculator
        if speculator is not None:
            speculator.close()
        length = len(self._prompt)
        if self._prefill_step == 0:
            length += len(self._answer)
        # An answer that was cut or drafted holds more than it gave out. Where single steps round
        # otherwise than a prefill, the next turn must compute the answer again.
        with contextlib.suppress(EngineError):
            if self._answer and len(self._state.tokens) > length:
                self._state.rewind(length)
        self.finish = Finish(
            reason=reason,
            tokens=tuple(self._answer),
            prompt_tokens=len(self._prompt),
            cached_tokens=self._cached,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
            decode_steps=self._decode_steps,
            time_to_first_token=self._first,
            drafted_tokens=speculator.drafted if speculator else 0,
            accepted_tokens=speculator.accepted if speculator else 0,
            queue_seconds=self._cancellation.queue_seconds,
            paused_seconds=self._cancellation.paused_seconds,
            stop_text=self._stops.stop_text,
            reasoning_tokens=self._reader.tokens,
            reasoning_seconds=self._reader.seconds,
            ended_in_reasoning=self._reader.reasons,
        )


def generate(
    state: DecodeState,
    prompt: list[int],
    tokenizer: Tokenizer,
    options: Options,
    *,
    info: EngineInfo,
    cancellation: CancellationToken | None = None,
    logprobs: bool = False,
    top_logprobs: int = 0,
    started: float | None = None,
    restore_prefix: Callable[[DecodeState, list[int]], None] | None = None,
    speculator: Speculator | None = None,
    constraint: Constraint | None = None,
    repetition: RepetitionFinder | None = None,
    stops: StopFilter | None = None,
    reader: ReasoningReader | None = None,
    on_step: StepCallback | None = None,
) -> Generation:
    """Start an answer to `prompt`; nothing is computed until it is iterated.

    What the state holds already is kept as far as it agrees with `prompt`.

    Args:
        state: its content is replaced by prompt and answer.
        prompt: token ids.
        info: of the state's engine.
        cancellation: ends the answer when it is cancelled, or at its own deadline; looked at before
            each token and each chunk of the prompt. Its waiting is on the receipt. None for one
            with the deadline of `options`.
        logprobs: give each step its log-probability (costs one pass over the vocabulary).
        top_logprobs: give each step so many of the likeliest ids.
        started: `time.perf_counter()` when the request came, from which the deadline and the time
            to the first token count; now by default.
        restore_prefix: called before the prompt is computed; may fill the state with a beginning
            of it from elsewhere.
        speculator: drafts tokens of this one answer, and is closed at its end; None for the plain
            loop.
        constraint: holds the answer to its format; at its start.
        stops: finds the stop texts; at its start. None for one that looks for them everywhere.
        reader: tells the reasoning from the answer; at its start. None where all is answer.
        on_step: called with the logits, float32 [vocab], the token chosen by them, and the hidden
            state behind them, float32 [hidden] or None, for each token of the answer and the one
            that ends it; the arrays are valid during the call.

    Raises:
        EmptyPrompt: there is no token.
        ContextOverflow: prompt and one token of the answer do not fit the context.
        InvalidOption: `logit_bias` names a token outside the vocabulary.
    """
    check_fits(len(prompt), info.context_length)
    started = perf_counter() if started is None else started
    if cancellation is None:
        cancellation = CancellationToken(options.deadline, started=started)
    return Generation(
        state,
        prompt,
        tokenizer,
        options,
        info=info,
        cancellation=cancellation,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        started=started,
        restore_prefix=restore_prefix,
        speculator=speculator,
        constraint=constraint,
        repetition=repetition,
        stops=stops,
        reader=reader,
        on_step=on_step,
    )
