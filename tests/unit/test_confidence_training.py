"""What was right and wrong teaches a client which prompts to leave alone and what to trust."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_engine import OPEN, FakeEngine, fake_model
from support.talking_cloud import TalkingCloud, said

from edgesdk.engines.base import HiddenStates
from edgesdk.errors import RequestError
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.confidence.artifacts import ArtifactStore, value_from_json, value_to_json
from edgesdk.hybrid.confidence.confidence import (
    SIGNAL_NAMES,
    Confidence,
    Signals,
    TokenStats,
    signals_of,
)
from edgesdk.hybrid.confidence.linear_models import HiddenStateProbe, auroc
from edgesdk.hybrid.confidence.training import (
    ConfidenceProfile,
    LabelledDraft,
    examples_in,
    fit_profile,
    train_profile,
    train_signal_regression,
)
from edgesdk.hybrid.storage.journal import DecisionRecord, Journal, RecordedTexts

BUNDLE = "00" * 32


def answers(count: int, seed: int, *, telling: bool = True) -> list[LabelledDraft]:
    """Sums; whether one is right depends on its numbers and on a sureness, half and half.

    Args:
        telling: whether the numbers do matter.
    """
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        digits, sureness = chance.randint(1, 6), chance.gauss(0, 1.5)
        numbers = [str(chance.randrange(10 ** (digits - 1), 10**digits)) for _ in range(3)]
        odds = sureness + (3.5 - digits if telling else 0)
        log = -math.log1p(math.exp(-sureness))
        signals = signals_of([TokenStats(1, log, -log, 1.0)])
        right = chance.random() < 1 / (1 + math.exp(-odds))
        found.append(LabelledDraft(f"What is {' + '.join(numbers)}?", signals, right))
    return found


def confidences(learned: ConfidenceProfile, examples: list[LabelledDraft]) -> np.ndarray:
    signals = [
        replace(each.signals, prompt_log_odds=learned.classifier.log_odds(user(each.prompt)))
        for each in examples
    ]
    return learned.regression.probability(np.array([each.vector() for each in signals]))


def user(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def test_prompts_and_logits_know_more_than_either() -> None:
    trained, fresh = answers(600, 1), answers(2_000, 2)
    learned = fit_profile(trained)
    right = np.array([each.right for each in fresh])
    both = auroc(confidences(learned, fresh), right)
    alone = train_signal_regression(
        [each.signals for each in trained], [each.right for each in trained]
    )
    logits = auroc(alone.probability(np.array([each.signals.vector() for each in fresh])), right)
    prompts = auroc(
        np.array([learned.classifier.log_odds(user(each.prompt)) for each in fresh]), right
    )
    assert both > max(logits, prompts) + 0.05
    # Its numbers are chances: among answers of about as much confidence, so many are right.
    said_chance = confidences(learned, fresh)
    for low in (0.0, 0.25, 0.5, 0.75):
        among = (said_chance >= low) & (said_chance < low + 0.25)
        assert abs(said_chance[among].mean() - right[among].mean()) < 0.1


def test_prompts_that_tell_nothing_are_not_believed() -> None:
    trained, fresh = answers(400, 3, telling=False), answers(2_000, 4, telling=False)
    learned = fit_profile(trained)
    right = np.array([each.right for each in fresh])
    signals = np.array([each.signals.log_odds for each in fresh])
    assert auroc(confidences(learned, fresh), right) > auroc(signals, right) - 0.02


def test_a_client_uses_what_was_learned(tmp_path: Path) -> None:
    artifacts = ArtifactStore(tmp_path)
    with pytest.raises(RequestError, match="3 prompts with a right answer"):
        fit_profile([replace(each, right=True) for each in answers(3, 5)])
    # Nothing is turned down without a try, so that the confidence alone decides.
    learned = fit_profile(answers(600, 1), max_false_rejections=0.0)
    learned.save(artifacts, BUNDLE, threshold=0.3)
    easy, hard = "What is 2 + 3 + 4?", "What is 91827 + 81726 + 71625?"
    with (
        TalkingCloud(lambda body: said("The cloud's.")) as cloud,
        HybridClient(fake_model(FakeEngine()), cloud=cloud.cloud(), profile=tmp_path) as client,
    ):
        replies = {prompt: client.respond(prompt, prefer="local") for prompt in (easy, hard)}
    found = {prompt: reply.local for prompt, reply in replies.items()}
    assert found[easy] is not None
    assert found[hard] is not None
    assert found[easy].signals.prompt_log_odds == learned.classifier.log_odds(user(easy))
    assert found[easy].confidence > 10 * found[hard].confidence


def steps(count: int, *, doubt: bool) -> list[TokenStats]:
    """An answer that says half-way whether it will be right, and at its end no more: all of them
    have one narrow margin, the wrong ones early."""
    narrow = 20 if doubt else 36
    return [TokenStats(at, -0.2, 0.5, 0.1 if at == narrow else 2.0) for at in range(count)]


def gone_on(count: int) -> list[LabelledDraft]:
    chance = random.Random(7)
    found = []
    for at in range(count):
        right = chance.random() < 0.5
        seen = steps(40, doubt=not right)
        found.append(
            LabelledDraft(
                f"Sort {at} numbers.",
                signals_of(seen),
                right,
                partial_signals=(signals_of(seen[:24]), signals_of(seen[:32])),
            )
        )
    return found


def test_answers_that_go_on_are_judged_as_they_looked_then() -> None:
    learned = fit_profile(gone_on(200))
    confidence = learned.confidence()
    sound, doubtful = (signals_of(steps(40, doubt=doubt)[:24]) for doubt in (False, True))
    assert not confidence.predicts_wrong(sound)
    assert confidence.predicts_wrong(doubtful)
    assert (
        confidence.partial_confidence(doubtful) < 0.1 < 0.9 < confidence.partial_confidence(sound)
    )
    # Of whole answers it learned that they all look alike.
    assert confidence.of(sound) == pytest.approx(confidence.of(doubtful), abs=0.2)
    # Nothing is learned from some twenty.
    few = [*answers(200, 1), *gone_on(35)]
    assert fit_profile(few).partial_regression is None


def test_a_half_is_what_was_seen_by_then(tmp_path: Path) -> None:
    class Constant(FakeEngine):
        def hidden_state(self, tokens: list[int]) -> HiddenStates:
            return np.ones(3, np.float32)

    artifacts, probe = ArtifactStore(tmp_path), HiddenStateProbe((1.0, 1.0, 1.0), 0.0)
    learned = replace(fit_profile(gone_on(200), max_false_rejections=0.0), probe=probe)
    learned.save(artifacts, BUNDLE, threshold=0.0)
    with HybridClient(fake_model(Constant(b"x" * 50)), profile=tmp_path) as client:
        assert client.guarantee.confidence == learned.confidence(0.0)
        long = client.respond("Sort 3 numbers.", max_tokens=45).local
        short = client.respond("Sort 3 numbers.", max_tokens=23).local
    assert long is not None
    assert [half.length for half in long.partial_signals] == [24, 32, 40]
    odds = learned.classifier.log_odds(user("Sort 3 numbers."))
    assert {half.prompt_log_odds for half in long.partial_signals} == {odds}
    # A probe is of states that answers end in.
    assert {half.probe_log_odds for half in long.partial_signals} == {0.0}
    assert long.signals is not None
    assert long.signals.probe_log_odds == pytest.approx(3)
    assert short is not None
    assert short.partial_signals == ()
    # One that was kept before there was such a thing.
    stored: Any = value_to_json(learned.confidence())
    del stored["partial_regression"]
    assert value_from_json(Confidence, stored) == replace(
        learned.confidence(), partial_regression=None
    )


def test_a_model_is_asked_what_it_learns_from(tmp_path: Path) -> None:
    class Feeling(FakeEngine):
        """Its states say how long the prompt was."""

        def hidden_state(self, tokens: list[int]) -> HiddenStates:
            return np.array([tokens.index(OPEN), 1, 0], np.float32)

    # It always says the same, which is right where it is expected.
    labelled: list[tuple[str, str | Callable[[str], bool]]] = [
        ("a" * (20 + at % 30), "hello there" if at % 30 > 15 else "Good-bye.") for at in range(120)
    ]
    labelled += [("b" * 60, lambda text: text == "Hello there."), ("c" * 5_000, "does not fit")]
    model = fake_model(Feeling())
    learned = train_profile(model, iter(labelled), profile=tmp_path, threshold=0.4, max_tokens=50)
    assert learned.classifier.examples == 121
    assert learned.probe is not None
    assert learned.probe.bias + learned.probe.weights[0] * 25 < 0
    with HybridClient(model, profile=tmp_path) as client:
        found = {prompt: client.respond(prompt).local for prompt in ("d" * 22, "d" * 48)}
        assert client.guarantee.confidence.threshold == 0.4
        assert client.guarantee.confidence.probe == learned.probe
    sure = [None if local is None else local.confidence for local in found.values()]
    assert sure[0] is not None
    assert sure[1] is not None
    assert sure[0] < 0.2 < 0.8 < sure[1]
    with pytest.raises(RequestError, match="0 prompts with a right answer"):
        train_profile(model, [("Hi", "Good-bye.")] * 40, profile=tmp_path)


def test_a_journal_with_texts_is_a_training_set(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite", keep_texts=True)
    examples = answers(120, 6)
    for number, example in enumerate(examples):
        text, label = json.dumps(user(example.prompt)), example.right if number % 3 else None
        decision = DecisionRecord(
            1.0, "local", "sure enough", "allow", bundle=f"model {number % 2}",
            signals=vars(example.signals),
        )  # fmt: skip
        journal.append(decision, prompt=text, texts=RecordedTexts(text, "5", None, label))
    plain = DecisionRecord(1.0, "local", "sure enough", "allow", signals=vars(examples[0].signals))
    journal.append(plain, prompt="unseen")
    journal.append(plain, prompt="odd", texts=RecordedTexts("no messages", "5", None, True))
    text = json.dumps(user("Hi"))
    # Of several tries, and with signals that are not those of now.
    for signals in ({**vars(examples[0].signals), "agreement": 1.0, "answers": 2}, {}):
        other = DecisionRecord(1.0, "local", "sure enough", "allow", signals=signals)
        journal.append(other, prompt=text, texts=RecordedTexts(text, "5", None, True))
    # Half an answer.
    for half in ({"finish_reason": "length"}, {"local_finish_reason": "repetition"}):
        cut = replace(plain, **half)  # type: ignore[arg-type]
        journal.append(cut, prompt=text, texts=RecordedTexts(text, "5", None, True))
    entries = list(journal.entries())
    found = examples_in(entries)
    assert len(found) == 80
    assert found[0] == replace(examples[1], prompt=user(examples[1].prompt))
    assert len(examples_in(entries, bundle="model 1")) == 40
    assert isinstance(fit_profile(found), ConfidenceProfile)


def test_few_examples_leave_the_odds_of_the_answer_as_they_are() -> None:
    rng = np.random.default_rng(5)

    def answers(number: int) -> tuple[list[Signals], list[bool]]:
        logs = -rng.exponential(0.4, size=(number, 3))
        signals = [
            signals_of(
                [
                    TokenStats(i, float(log), float(rng.exponential()), 1.0)
                    for i, log in enumerate(row)
                ]
            )
            for row in logs
        ]
        return signals, (rng.random(number) < np.exp(logs.sum(axis=1))).tolist()

    signals, right = answers(40)
    found = train_signal_regression(signals, right)
    assert found.names == SIGNAL_NAMES
    seen, truth = answers(4000)
    chances = found.probability(np.array([each.vector() for each in seen]))
    odds = np.array([each.log_odds for each in seen])
    assert np.corrcoef(np.argsort(np.argsort(chances)), np.argsort(np.argsort(odds)))[0, 1] > 0.9
    assert abs(float(chances.mean()) - float(np.mean(truth))) < 0.2
    with pytest.raises(RequestError, match="All 0 examples"):
        train_signal_regression([], [])
