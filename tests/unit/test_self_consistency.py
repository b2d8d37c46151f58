"""More tries where the device is unsure: what they agree on, what they may take, how they end."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_engine import FakeDecodeState, fake_model
from support.script_engine import ScriptEngine

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.cloud.cloud_reply import Restart, TextDelta
from edgesdk.hybrid.confidence.artifacts import ArtifactStore
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.local import LocalModel
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.reply import LocalDraft
from edgesdk.hybrid.request import HybridRequest
from edgesdk.hybrid.router import Preflight, Router
from edgesdk.hybrid.self_consistency import (
    SelfConsistency,
    answer_similarity,
    consensus_of,
    result_of,
    sample_until_agreed,
)
from edgesdk.options import Options
from edgesdk.request import Request
from edgesdk.system.cancellation import CancellationToken

HI = [{"role": "user", "content": "Hi"}]
# The answers of `script` have a probability of 0.39. Where all four agree, the mean of that and 1
# is above the first threshold; where two others do, above the second.
STRICT = Confidence(threshold=0.6, abort_below=0.3)
LOOSE = Confidence(threshold=0.5, abort_below=0.3)
# So cold that chance plays no part.
COLD = SelfConsistency(temperature=0.01)


def script(answers: Iterable[str]) -> ScriptEngine:
    return ScriptEngine(tuple(answers), probability=0.39)


class Shown:
    """An answer of a device, and what an app saw of it."""

    def __init__(
        self,
        engine: ScriptEngine,
        confidence: Confidence,
        self_consistency: SelfConsistency | None = COLD,
        *,
        cloud_allowed: bool = True,
        cancellation: CancellationToken | None = None,
        messages: Any = HI,
        **options: Any,
    ) -> None:
        model = fake_model(engine)
        preflight = Preflight(model, Router(), ArtifactStore(Path("nowhere")))
        request = Request(
            messages,
            Options(**options),
            model.runtime.encode,
            cancellation=cancellation or CancellationToken(),
        )
        steps = LocalModel(model, preflight, self_consistency).answer(
            HybridRequest(request, Redactor(())), confidence, cloud_allowed=cloud_allowed
        )
        self.events: list[TextDelta | Restart] = []
        try:
            while True:
                self.events.append(next(steps))
        except StopIteration as end:
            self.draft: LocalDraft = end.value

    @property
    def text(self) -> str:
        text = ""
        for event in self.events:
            text = "" if isinstance(event, Restart) else text + event.text
        return text

    @property
    def restarts(self) -> int:
        return sum(isinstance(event, Restart) for event in self.events)


# Agreement


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        ("The answer is 42.", 42.0),
        ("12 * 3 = 36", 36.0),
        ("It makes 1,234.50 euros.", 1234.5),
        ("x = -7", -7.0),
        ("pages 3-5", 5.0),
        ("**B)** ", "B"),
        ("The answer is (C).", "C"),
        ("A", "A"),
        ("It was built in 1990 and has been closed for a long time.", None),
        ("No idea.", None),
        ("", None),
    ],
)
def test_answers_end_in_results(answer: str, result: float | str | None) -> None:
    assert result_of(answer) == result


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("The answer is 42.", "6 * 7 = 42", 1),
        ("The answer is 42.", "The answer is 43.", 0),
        ("The answer is 5.0", "5", 1),
        ("The answer is (A).", "The answer is (B).", 0),
        ("Paris is the capital.", "The capital is Paris", 1),
        ("red green", "red blue", 1 / 3),
        ("北京", "北京市", 2 / 3),
        ("", "", 1),
        ("", "No.", 0),
    ],
)
def test_answers_say_the_same_as_far_as(one: str, other: str, share: float) -> None:
    assert answer_similarity(one, other) == pytest.approx(share)


@given(st.text(max_size=40), st.text(max_size=40))
def test_likeness_has_no_direction(one: str, other: str) -> None:
    assert answer_similarity(one, one) == 1
    assert 0 <= answer_similarity(one, other) == answer_similarity(other, one) <= 1


@given(st.lists(st.sampled_from("ABC"), min_size=2, max_size=8))
def test_of_results_the_majority_wins(answers: list[str]) -> None:
    choice = consensus_of(answers, [0.5] * len(answers), answer_similarity)
    most = max(answers.count(answer) for answer in answers)
    assert answers.count(answers[choice.at]) == most
    assert choice.agreement == most - 1


def test_of_equals_the_surest_speaks() -> None:
    assert consensus_of(["8", "7", "8 ", "7"], [0.2, 0.3, 0.9, 0.4], answer_similarity).at == 2


# What becomes of a draft


def test_agreement_makes_an_unsure_answer_sure() -> None:
    engine = script(("It is 7.", "I think 7", "7", "It is 7."))
    shown = Shown(engine, STRICT)
    assert (shown.text, shown.restarts) == ("It is 7.", 0)
    assert (shown.draft.agreement, shown.draft.answers) == (1.0, 4)
    assert shown.draft.confidence == pytest.approx((0.39 + 1) / 2, abs=0.01)
    assert shown.draft.measured["agreement"] == 1.0
    assert shown.draft.measured["length"] > 1


def test_what_most_say_replaces_the_draft() -> None:
    shown = Shown(script(("It is 7.", "It is 8.", "It is 8.", "It is 8.")), LOOSE)
    assert (shown.text, shown.draft.text, shown.restarts) == ("It is 8.", "It is 8.", 1)
    assert shown.draft.agreement == pytest.approx(2 / 3)
    assert shown.draft.confidence == pytest.approx((0.39 + 2 / 3) / 2, abs=0.01)


@pytest.mark.parametrize(
    ("answers", "confidence", "tries"),
    [
        # One that disagrees is one too many for the strict threshold,
        (("7", "8", "7", "7"), STRICT, 2),
        # two that agree are enough for the loose one,
        (("7", "7", "7", "8"), LOOSE, 3),
        # and the rest is in between.
        (("7", "8", "7", "7"), LOOSE, 4),
    ],
)
def test_tries_end_when_the_rest_would_change_nothing(
    answers: tuple[str, ...], confidence: Confidence, tries: int
) -> None:
    engine = script(answers)
    assert Shown(engine, confidence).draft.answers == len(engine.prompts) == tries


@pytest.mark.parametrize(
    ("self_consistency", "confidence", "cloud_allowed", "spent"),
    [
        (COLD, STRICT, True, True),
        (None, STRICT, True, False),
        # It is sure enough.
        (COLD, Confidence(threshold=0.3, abort_below=0.3), True, False),
        # It is hopeless, by the confidence's measure or by the effort's own.
        (COLD, Confidence(threshold=0.6, abort_below=0.5), True, False),
        (SelfConsistency(min_confidence=0.5), STRICT, True, False),
        (SelfConsistency(temperature=0.01, min_confidence=0.1),
         dataclasses.replace(STRICT, abort_below=0.5), True, True),
        # Nobody else could answer.
        (COLD, STRICT, False, False),
        (SelfConsistency(temperature=0.01, without_cloud=True), STRICT, False, True),
    ],
)  # fmt: skip
def test_effort_is_spent_in_between(
    self_consistency: SelfConsistency | None,
    confidence: Confidence,
    cloud_allowed: bool,
    spent: bool,
) -> None:
    engine = script(("7",))
    assert (
        Shown(engine, confidence, self_consistency, cloud_allowed=cloud_allowed).draft.answers > 1
    ) is spent
    assert (len(engine.prompts) > 1) is spent
    assert all(state.closed for state in engine.states)


def test_an_answer_that_was_given_up_is_not_tried_again() -> None:
    confidence = Confidence(threshold=0.6, abort_below=0.45, decide_after=4)
    shown = Shown(ScriptEngine(("x" * 90,)), confidence, SelfConsistency(min_confidence=0.1))
    assert (shown.draft.aborted, shown.draft.answers) == (True, 1)


def test_tries_compute_no_prompt_again() -> None:
    engine = script(("7", "7", "7", "7"))
    Shown(engine, STRICT, messages=[{"role": "user", "content": "x" * 500}])
    (state,) = engine.states
    assert len(engine.prompts) == 4
    assert sum(state.extended) < 2 * 500


def test_an_instruction_goes_after_the_prompt() -> None:
    engine = script(("7", "7", "7", "7"))
    self_consistency = dataclasses.replace(COLD, instruction="Think first.")
    Shown(engine, STRICT, self_consistency)
    assert engine.prompts[0].startswith("user: Hi\n\x02")
    assert engine.prompts[1].startswith("user: Hi\n\nThink first.\n")
    history = [*HI, {"role": "tool", "name": "f", "content": "5"}]
    engine = script(("7", "7", "7", "7"))
    Shown(engine, STRICT, self_consistency, messages=history)
    assert engine.prompts[1].endswith("user: Think first.\n\x02")


def test_what_is_alike_is_the_apps_to_say() -> None:
    self_consistency = dataclasses.replace(
        COLD, similarity=lambda one, other: float(one[0] == other[0])
    )
    shown = Shown(script(("7 a", "7 b", "7 c", "7 d")), STRICT, self_consistency)
    assert shown.draft.agreement == 1


def test_an_answer_that_is_cut_is_never_chosen() -> None:
    self_consistency = dataclasses.replace(COLD, max_tokens=6)
    shown = Shown(script(("7", "It is 8.", "It is 8.", "It is 8.")), STRICT, self_consistency)
    assert (shown.text, shown.draft.complete, shown.draft.agreement) == ("7", True, 0)


# What tries may take


DRAFT = Shown(script(("7",)), STRICT, None).draft


def ended(steps: Generator[None, None, LocalDraft]) -> LocalDraft:
    try:
        while True:
            next(steps)
    except StopIteration as end:
        found: LocalDraft = end.value
        return found


def tried(
    deadline: float | None = None, self_consistency: SelfConsistency = COLD, **options: Any
) -> tuple[list[Options], LocalDraft]:
    """The options of the tries, the last of which comes to no end."""
    asked: list[Options] = []

    def again(
        options: Options, instruction: str | None
    ) -> Generator[None, None, LocalDraft | None]:
        asked.append(options)
        yield
        return DRAFT if len(asked) < 3 else None

    return asked, ended(
        sample_until_agreed(
            DRAFT, again, Options(**options), STRICT, self_consistency, CancellationToken(deadline)
        )
    )


def test_tries_are_sampled_and_seeded() -> None:
    asked, verdict = tried(seed=5, max_tokens=9, top_p=0.9, stop="!")
    assert [each.seed for each in asked] == [6, 7, 8]
    assert {(each.temperature, each.max_tokens, each.top_p, each.stops) for each in asked} == {
        (0.01, 9, 0.9, ("!",))
    }
    assert (verdict.answers, verdict.agreement) == (3, 1.0)
    (first, *_), _ = tried(self_consistency=SelfConsistency(temperature=0.5), temperature=0.9)
    assert (first.temperature, first.seed, first.deadline) == (0.9, None, None)
    # Greedy calls are repeatable, and stay it.
    assert [each.seed for each in tried()[0]] == [1, 2, 3]


def test_a_try_has_a_limit_always() -> None:
    (first, *_), _ = tried()
    assert first.max_tokens == 2 * DRAFT.receipt.output_tokens + 64
    (first, *_), _ = tried(self_consistency=dataclasses.replace(COLD, max_tokens=500), max_tokens=9)
    assert first.max_tokens == 500


def test_tries_leave_the_cloud_its_time() -> None:
    asked, _ = tried(1_000)
    times = [each.deadline or 0 for each in asked]
    assert 500 >= times[0] >= times[1] >= times[2] > 0


def test_without_time_there_is_no_try() -> None:
    assert tried(1e-9) == ([], DRAFT)
    slow = dataclasses.replace(DRAFT.receipt, decode_seconds=60.0)
    asked: list[Options] = []

    def again(
        options: Options, instruction: str | None
    ) -> Generator[None, None, LocalDraft | None]:
        asked.append(options)
        yield
        return None

    first = dataclasses.replace(DRAFT, receipt=slow)
    assert (
        ended(sample_until_agreed(first, again, Options(), STRICT, COLD, CancellationToken(100)))
        == first
    )
    assert not asked
    ended(sample_until_agreed(first, again, Options(), STRICT, COLD, CancellationToken(400)))
    assert len(asked) == 1


def blocked(answers: Iterable[str], reached: threading.Event) -> ScriptEngine:
    """An engine whose second answer waits for its caller to stop."""
    engine = script(answers)

    def before_extend(state: FakeDecodeState) -> None:
        if len(engine.prompts) == 2:
            reached.set()
            assert state.interrupted.wait(30)

    engine.before_extend = before_extend
    return engine


def test_a_try_that_is_too_slow_ends_at_its_deadline() -> None:
    engine = blocked(("It is 7.", "It is 8."), threading.Event())
    self_consistency = dataclasses.replace(COLD, deadline_share=0.05)
    shown = Shown(engine, STRICT, self_consistency, deadline=8.0)
    assert (shown.text, shown.draft.answers) == ("It is 7.", 1)


def test_tries_can_be_cancelled_from_another_thread() -> None:
    reached, cancellation, found = threading.Event(), CancellationToken(), []
    engine = blocked(("It is 7.", "It is 8."), reached)
    worker = threading.Thread(
        target=lambda: found.append(Shown(engine, STRICT, cancellation=cancellation)), daemon=True
    )
    worker.start()
    assert reached.wait(30)
    cancellation.cancel()
    worker.join(30)
    assert [shown.text for shown in found] == ["It is 7."]
    assert all(state.closed for state in engine.states)


@pytest.mark.parametrize(
    "change",
    [
        {"tries": 0},
        {"temperature": 0},
        {"deadline_share": 0},
        {"deadline_share": 2},
        {"max_tokens": 0},
    ],
)
def test_settings_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        SelfConsistency(**change)
