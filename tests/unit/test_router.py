"""What is asked before the device tries."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_engine import TEMPLATE, FakeEngine, fake_model
from support.script_engine import HERMES_TEMPLATE

from edgesdk.errors import InvalidOption, RequestError
from edgesdk.hybrid.confidence.artifacts import ArtifactStore, value_to_json
from edgesdk.hybrid.confidence.linear_models import auroc
from edgesdk.hybrid.confidence.prompt_classifier import (
    CLASSIFIER_ARTIFACT,
    PROMPT_FEATURES,
    PromptClassifier,
    prompt_features,
    question_in,
    train_prompt_classifier,
)
from edgesdk.hybrid.content import text_messages
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.request import HybridRequest
from edgesdk.hybrid.router import DeviceSpeed, Preflight, Rejection, Router
from edgesdk.options import Options
from edgesdk.receipt import Receipt
from edgesdk.request import Request
from edgesdk.runtime import Runtime
from edgesdk.system.power import PowerState

HI = [{"role": "user", "content": "Hi"}]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
WORDS = {"type": "text", "text": "What is this?"}


def said(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def feature(name: str, text: str) -> float:
    return float(prompt_features(said(text))[PROMPT_FEATURES.index(name)])


class Checked:
    """A preflight, and the model that it checks requests for."""

    def __init__(self, preflight: Preflight, runtime: Runtime) -> None:
        self.preflight = preflight
        self.runtime = runtime

    def request(self, messages: Any, options: Options | None = None) -> HybridRequest:
        request = Request(messages, options or Options(), self.runtime.encode)
        return HybridRequest(request, Redactor(()))

    def check(self, messages: Any, options: Options) -> Rejection | None:
        return self.preflight.check(self.request(messages, options))

    def count(self, messages: Any) -> int:
        return self.preflight.count(self.request(messages))


def preflight(
    gate: Router | None = None,
    tmp_path: Path = Path("nowhere"),
    *,
    context_length: int = 4096,
    template: str | None = TEMPLATE,
    **changes: Any,
) -> Checked:
    model = fake_model(FakeEngine(context_length=context_length), template=template)
    return Checked(
        Preflight(model, gate or Router(), ArtifactStore(tmp_path), **changes), model.runtime
    )


def gate_of(found: Any) -> str | None:
    return None if found is None else found.check


RECEIPT = fake_model().respond("Hi").receipt


def receipt(prompt: int, prefill: float, output: int, decode: float, **changes: Any) -> Receipt:
    return dataclasses.replace(
        RECEIPT,
        prompt_tokens=prompt,
        cached_tokens=0,
        prefill_seconds=prefill,
        tokens=list(range(output)),
        decode_seconds=decode,
        **changes,
    )


# Features


@given(st.lists(st.text(max_size=200), min_size=1, max_size=3))
def test_features_of_any_text_are_finite(texts: list[str]) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    found = prompt_features(messages)
    assert found.shape == (len(PROMPT_FEATURES),)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("name", "more", "less"),
    [
        ("characters", "a longer text", "short"),
        ("digits", "12 + 34", "one and two"),
        ("numbers", "1 2 3 4", "12345"),
        ("largest_number", "7 and 123,456", "99999"),
        ("operators", "3 * (4 - 5) = x", "well-known state-of-the-art"),
        ("depth", "((1))", "(1)(2)"),
        ("fences", "```\nx\n```", "`x`"),
        ("code_lines", "def f(x):\n    return x", "I define a function"),
        ("list_lines", "1. one\n2. two", "one, two"),
        ("choices", "Which?\nA) one\nB) two", "Which? A one"),
        ("han", "今天天气怎么样", "how is the weather"),
        ("cyrillic", "Как дела", "how are you"),
        ("reason", "Why is that?", "That is so."),
        ("reason", "为什么", "天气"),
        ("sum", "Calculate how many", "Say hello"),
        ("questions", "什么？谁？", "什么?"),
        ("capitals", "LOUD", "quiet"),
    ],
)
def test_features_see_what_they_name(name: str, more: str, less: str) -> None:
    assert feature(name, more) > feature(name, less)


def test_features_survive_a_long_number_and_a_long_text() -> None:
    assert feature("largest_number", "9" * 5_000) == 18.0
    long = "x " * 30_000 + "Why?"
    assert feature("reason", long) > 0
    assert feature("characters", long) == pytest.approx(math.log1p(len(long)))


def test_the_question_is_the_users_last_words() -> None:
    messages = [
        {"role": "system", "content": "Be terse. 1 2 3"},
        {"role": "user", "content": "First"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": [WORDS, PICTURE]},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    assert question_in(messages).strip() == "What is this?"
    assert prompt_features(messages)[PROMPT_FEATURES.index("turns")] == pytest.approx(math.log1p(2))
    assert prompt_features(messages)[PROMPT_FEATURES.index("digits")] == 0


# What the device's model lacks


@pytest.mark.parametrize(
    ("content", "gate"),
    [
        ([WORDS, PICTURE], "vision"),
        ([{"type": "input_audio", "input_audio": {}}], "hearing"),
        ([{"type": "file", "file": {}}], "files"),
        ([{"type": "smell"}], "parts"),
        ([WORDS, WORDS], None),
        ("What is this?", None),
    ],
)
def test_pictures_and_the_like_are_for_others(content: Any, gate: str | None) -> None:
    found = preflight()
    assert gate_of(found.check(said(content), Options())) == gate
    if gate is not None:
        with pytest.raises(RequestError, match="Nobody can answer"):
            found.preflight.require_text(found.request(said(content)))


def test_parts_of_text_become_one() -> None:
    request = preflight().request(said([WORDS, {"type": "text", "text": "Say it."}]))
    assert request.for_device.messages == said("What is this?\nSay it.")
    # What is text already is encoded once, for all who ask.
    plain = preflight().request(said("Hi"))
    assert plain.for_device is plain.full is plain.request
    assert text_messages(said([WORDS, PICTURE])) == said("What is this?")


def test_a_picture_counts_for_the_budget() -> None:
    plain, seen = (
        preflight().count(said("What is this?")),
        preflight().count(said([WORDS, PICTURE])),
    )
    assert seen == plain + 1_500


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no system') }}"])
def test_a_template_that_refuses_is_an_objection(template: str | None) -> None:
    found = preflight(template=template)
    assert gate_of(found.check(HI, Options())) == "template"
    assert found.count(said("x" * 300)) > 100


@pytest.mark.parametrize(("template", "gate"), [(None, "tools"), (HERMES_TEMPLATE, None)])
def test_tools_need_a_model_that_learned_them(template: str | None, gate: str | None) -> None:
    found = preflight() if template is None else preflight(template=template)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        *HI,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "f", "tool_call_id": "1", "content": "5"},
    ]
    assert gate_of(found.check(messages, Options())) == gate
    assert gate_of(found.check(HI, Options())) is None


def test_the_context_must_hold_the_prompt_and_its_answer() -> None:
    speed = DeviceSpeed()
    found = preflight(Router(speed=speed), context_length=100)
    # "user: " and two control characters go around the prompt.
    assert gate_of(found.check(said("x" * 92), Options())) == "context"
    assert gate_of(found.check(said("x" * 91), Options())) is None
    speed.observe(receipt(40, 1, 30, 1))
    assert gate_of(found.check(said("x" * 80), Options())) == "context"
    assert gate_of(found.check(said("x" * 80), Options(max_tokens=5))) is None
    assert gate_of(found.check(said("x" * 50), Options())) is None


# The device's state


@pytest.mark.parametrize(
    ("state", "gate"),
    [
        (PowerState(), None),
        (PowerState(celsius=89), None),
        (PowerState(celsius=90), "heat"),
        (PowerState(battery=15, plugged=False), "battery"),
        (PowerState(battery=16, plugged=False), None),
        (PowerState(battery=3, plugged=True), None),
        (PowerState(battery=3), None),
    ],
)
def test_a_hot_or_empty_device_is_spared(state: PowerState, gate: str | None) -> None:
    found = preflight(Router(sensor=lambda: state)).check(HI, Options())
    assert gate_of(found) == gate


def test_sensors_are_read_seldom_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    now, reads = [0.0], []

    def sensor() -> PowerState:
        reads.append(now[0])
        if len(reads) == 2:
            raise OSError("no such sensor")
        return PowerState(celsius=99)

    found = preflight(Router(sensor=sensor), clock=lambda: now[0])
    for now[0], gate in ((0.0, "heat"), (4.9, "heat"), (5.0, None), (9.9, None), (10.0, "heat")):
        assert gate_of(found.check(HI, Options())) == gate
    assert reads == [0.0, 5.0, 10.0]
    assert "a sensor failed" in caplog.text


# Its speed


def test_rates_are_medians_of_what_was_measured() -> None:
    speed = DeviceSpeed()
    assert speed.seconds(100, 10) is None
    for prefill in (1, 2, 100):
        speed.observe(receipt(100, prefill, 11, 1, reason="stop"))
    # 50 tokens of prompt and 10 of answer each second.
    assert speed.seconds(100, 20) == pytest.approx(4)
    assert speed.length == 11
    speed.observe(receipt(3, 9, 2, 9, reason="stop"))
    assert speed.seconds(100, 20) == pytest.approx(4)
    speed.observe(receipt(100, 2, 99, 9.8, reason="cancelled"))
    assert speed.length == 11


def test_cached_tokens_are_no_speed() -> None:
    speed = DeviceSpeed()
    speed.observe(dataclasses.replace(receipt(1000, 0.1, 11, 1), cached_tokens=990))
    assert speed.seconds(1000, 10) == pytest.approx(1)


def test_what_is_known_beforehand_counts_until_it_is_measured() -> None:
    speed = DeviceSpeed(decode=10)
    assert speed.seconds(1_000, 20) == pytest.approx(2)
    speed.observe(receipt(8, 1, 11, 5))
    assert speed.seconds(1_000, 20) == pytest.approx(10)
    with pytest.raises(InvalidOption):
        DeviceSpeed(decode=0)


def test_a_slow_device_is_passed_by_where_there_is_a_deadline() -> None:
    speed = DeviceSpeed()
    found = preflight(Router(speed=speed))
    assert found.check(HI, Options(deadline=0.1)) is None
    found.preflight.observe(receipt(10, 0.1, 101, 20))
    # 101 tokens at 5 a second; three quarters of the deadline are the draft's.
    assert found.check(HI, Options()) is None
    assert found.check(HI, Options(deadline=28)) is None
    assert found.check(HI, Options(deadline=1, max_tokens=3)) is None
    turned = found.check(HI, Options(deadline=25))
    assert gate_of(turned) == "speed"
    assert "20.2 s" in turned.reason  # type: ignore[union-attr]


def test_a_device_that_was_turned_down_for_slowness_gets_another_chance() -> None:
    speed = DeviceSpeed()
    found = preflight(Router(speed=speed))
    for _ in range(3):
        found.preflight.observe(receipt(10, 0.1, 101, 20))
    verdicts = [gate_of(found.check(HI, Options(deadline=1))) for _ in range(4)]
    assert verdicts == ["speed", "speed", "speed", None]


# Hints, and what was learned


@pytest.mark.parametrize(("hint", "gate"), [("cloud", "hint"), ("local", None), (None, "heat")])
def test_hints_of_the_app(hint: Any, gate: str | None) -> None:
    hot = Router(hint=lambda messages: hint, sensor=lambda: PowerState(celsius=99))
    assert gate_of(preflight(hot).check(HI, Options())) == gate


def test_a_hint_cannot_make_the_impossible_possible() -> None:
    found = preflight(Router(hint=lambda messages: "local"), context_length=50)
    assert gate_of(found.check(said("x" * 60), Options())) == "context"
    assert gate_of(found.check(said([PICTURE]), Options())) == "vision"


def test_a_hint_that_is_none_is_an_error() -> None:
    odd: Any = Router(hint=lambda messages: "Cloud")
    with pytest.raises(InvalidOption, match="must be one of local, cloud, not 'Cloud'"):
        preflight(odd).check(HI, Options())


def test_a_hint_that_fails_has_no_opinion(caplog: pytest.LogCaptureFixture) -> None:
    def hint(messages: Any) -> Any:
        raise KeyError(messages[0]["content"])

    assert preflight(Router(hint=hint)).check(said("a secret"), Options()) is None
    assert "KeyError" in caplog.text
    assert "secret" not in caplog.text


def sums(count: int, seed: int) -> list[tuple[str, bool]]:
    """Sums, of which a small model gets those of few and small numbers right, mostly."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        terms, digits = chance.randint(2, 7), chance.randint(1, 6)
        numbers = [str(chance.randrange(10**digits)) for _ in range(terms)]
        right = chance.random() < 1 / (1 + math.exp(terms + digits - 7))
        found.append((f"What is {' + '.join(numbers)}?", right))
    return found


def test_a_gate_learns_what_goes_wrong() -> None:
    gate = train_prompt_classifier(sums(400, seed=1))
    assert gate.examples == 400
    assert gate.auroc > 0.75
    fresh = sums(600, seed=2)
    chances = np.array([gate.probability(said(prompt)) for prompt, _ in fresh])
    right = np.array([each for _, each in fresh])
    assert auroc(chances, right) > 0.75
    # It gives away few of those that the device gets right, and more of the others.
    turned = chances < gate.threshold
    assert turned[right].mean() < 0.12
    assert turned[~right].mean() > 2 * turned[right].mean()
    assert gate.probability(said("What is 1 + 2?")) > gate.threshold
    hard = said("What is 918273 + 918273 + 918273 + 918273 + 918273 + 918273?")
    found = preflight(Router(classifier=gate)).check(hard, Options())
    assert gate_of(found) == "prompt"


def test_prompts_that_tell_nothing_turn_little_down() -> None:
    chance = random.Random(3)
    words = ["river", "stone", "light", "cloud", "paper"]
    examples = [(" ".join(chance.choices(words, k=6)), chance.random() < 0.5) for _ in range(300)]
    gate = train_prompt_classifier(examples)
    assert abs(gate.auroc - 0.5) < 0.15
    assert (
        np.mean([gate.probability(said(prompt)) < gate.threshold for prompt, _ in examples]) < 0.15
    )


def test_training_says_what_it_needs() -> None:
    with pytest.raises(RequestError, match="3 prompts with a right answer and 0 with a wrong"):
        train_prompt_classifier([("one", True), ("two", True), ("three", True)])
    with pytest.raises(InvalidOption):
        train_prompt_classifier(sums(100, seed=1), max_false_rejections=1)


def test_what_was_learned_is_found_by_the_models_hash(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = ArtifactStore(tmp_path)
    gate = train_prompt_classifier(sums(100, seed=1))
    gate.save(kept, "00" * 32)
    assert kept.load("00" * 32, CLASSIFIER_ARTIFACT, PromptClassifier) == gate
    hard = said(f"What is {' + '.join(['918273'] * 7)}?")
    assert gate_of(preflight(tmp_path=tmp_path).check(hard, Options())) == "prompt"
    assert preflight(Router(hint=lambda _: "local"), tmp_path).check(hard, Options()) is None
    # Another version of the SDK may look at prompts in another way.
    older: Any = value_to_json(gate)
    older["regression"]["names"].reverse()
    kept.write("00" * 32, CLASSIFIER_ARTIFACT, older)
    assert preflight(tmp_path=tmp_path).check(hard, Options()) is None
    assert "other features" in caplog.text
    kept.write("00" * 32, CLASSIFIER_ARTIFACT, {"threshold": 1})
    assert preflight(tmp_path=tmp_path).check(hard, Options()) is None
    assert "no stored PromptClassifier" in caplog.text


@pytest.mark.parametrize(
    "change", [{"deadline_share": 0}, {"deadline_share": 1.5}, {"min_battery": 101}]
)
def test_settings_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        Router(**change)
