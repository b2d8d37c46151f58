"""The hybrid benchmark's measures against their definitions, and its store against kills."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.hybrid.early_stopping import aborted
from benchmarks.hybrid.estimates import Families, share, within_families
from benchmarks.hybrid.learning_curves import by_family, learning_curve
from benchmarks.hybrid.outcomes import (
    Outcome,
    OutcomeStore,
    Try,
    collect,
    outcomes_in,
    written_state,
)
from benchmarks.hybrid.replays import (
    Data,
    answered_by,
    expected_calibration_error,
    faulty_cloud,
    promises,
    routing,
    select,
    trust,
)
from benchmarks.hybrid.routing_curves import oracle_curve, routing_curve
from benchmarks.hybrid.self_consistency import efforts
from edgesdk.errors import InvalidOption
from edgesdk.hybrid.confidence.confidence import TokenStats
from edgesdk.hybrid.confidence.linear_models import auroc

LABELLED = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans()), min_size=2
).filter(lambda pairs: len({right for _, right in pairs}) == 2)


@settings(deadline=None)
@given(LABELLED)
def test_auroc_is_the_chance_that_right_is_above_wrong(pairs: list[tuple[float, bool]]) -> None:
    rights = [score for score, right in pairs if right]
    wrongs = [score for score, right in pairs if not right]
    wins = [(one > other) + 0.5 * (one == other) for one in rights for other in wrongs]
    scores, flags = zip(*pairs, strict=True)
    assert auroc(scores, flags) == pytest.approx(sum(wins) / len(wins))


@pytest.mark.parametrize("right", [[True, True], [False, False]])
def test_auroc_needs_right_and_wrong(right: list[bool]) -> None:
    with pytest.raises(InvalidOption, match="some of each"):
        auroc([0.1, 0.2], right)
    with pytest.raises(InvalidOption, match="3 confidences but 2 labels"):
        auroc([0.1, 0.2, 0.3], right)


def test_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    # Bins of 0.5: (0.1 + 0.3) - 1 right of 2 is 0.6 off, (0.6 + 0.8 + 1.0) - 3 of 3 is 0.6 off.
    scores, right = [0.1, 0.3, 0.6, 0.8, 1.0], [True, False, True, True, True]
    assert expected_calibration_error(scores, right, bins=2) == pytest.approx(1.2 / 5)
    assert expected_calibration_error([0.25] * 4, [True, False, False, False]) == 0
    assert expected_calibration_error([0.95] * 4, [False] * 4) == pytest.approx(0.95)
    for bad in ([1.5], [-0.1], [float("nan")]):
        with pytest.raises(InvalidOption):
            expected_calibration_error(bad, [True])
    with pytest.raises(InvalidOption):
        expected_calibration_error([], [])


def test_a_routing_curve_by_hand() -> None:
    local = np.array([True, False, False, True])
    cloud = np.array([True, True, True, False])
    # Asked in the order 1, 2, 0, 3, which gains 1, 1, 0, -1 of 4.
    curve = routing_curve(np.array([0.7, 0.1, 0.3, 0.9]), local, cloud)
    np.testing.assert_allclose(curve.quality, [0.5, 0.75, 1.0, 1.0, 0.75])
    assert (curve.local, curve.cloud) == (0.5, 0.75)
    np.testing.assert_allclose(curve.recovered(), [0, 1, 2, 2, 1])
    assert curve.apgr() == pytest.approx((0.5 + 1.5 + 2 + 1.5) / 4)
    assert curve.calls_for(0.8) == pytest.approx(0.2)
    assert curve.calls_for(0.0) == 0.0
    np.testing.assert_allclose(oracle_curve(local, cloud).quality, curve.quality)


def test_equal_confidences_are_the_mean_over_their_orders() -> None:
    local = np.array([True, False, False, True, False, False])
    cloud = np.ones(6, bool)
    same = routing_curve(np.zeros(6), local, cloud)
    assert same.apgr() == pytest.approx(0.5)
    assert same.calls_for(0.8) == pytest.approx(0.8)
    # The two in the middle are equal: half of either order.
    scores = np.array([3.0, 2.0, 1.0, 1.0, 0.0, 0.0])
    orders = [np.array([3.0, 2.0, 1.0 + tip, 1.0 - tip, 0.2, 0.1]) for tip in (0.1, -0.1)]
    mean = np.mean([routing_curve(order, local, cloud).quality for order in orders], axis=0)
    np.testing.assert_allclose(routing_curve(scores, local, cloud).quality, mean)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1))
def test_no_router_beats_the_oracle(rows: list[tuple[float, bool, bool]]) -> None:
    scores, local, cloud = (np.array(column) for column in zip(*rows, strict=True))
    best, found = oracle_curve(local, cloud), routing_curve(scores, local, cloud)
    assert (best.quality >= found.quality - 1e-12).all()
    assert (best.local, best.cloud) == pytest.approx((found.local, found.cloud))


def test_without_a_gap_there_is_nothing_to_recover() -> None:
    curve = routing_curve(np.array([0.5]), np.array([True]), np.array([False]))
    with pytest.raises(InvalidOption, match="no better"):
        curve.apgr()


def test_within_families_ignores_what_tells_families_apart() -> None:
    outcomes = [_outcome(i, family="ab"[i % 2], right=i % 2 == 1) for i in range(40)]
    outcomes += [_outcome(40, family="a", right=True), _outcome(41, family="b", right=False)]
    scores = np.array([float(outcome.family == "b") for outcome in outcomes])
    right = np.array([outcome.right for outcome in outcomes])
    groups = list(Families(outcomes).places.values())
    assert auroc(scores, right) > 0.9
    assert within_families(scores, right, groups) == 0.5


def test_the_interval_holds_the_share_that_it_estimates() -> None:
    rng = np.random.default_rng(7)
    right = rng.random(400) < 0.3
    outcomes = [_outcome(i, family="ab"[i % 2], right=bool(right[i])) for i in range(400)]
    found = Families(outcomes).estimate(lambda groups: float(right[np.concatenate(groups)].mean()))
    assert found.value == pytest.approx(right.mean())
    # The normal approximation of a share's interval.
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)


@pytest.mark.parametrize(
    ("count", "trials", "low", "high"),
    # From tables of the exact interval; with none counted it is 1 - 0.025^(1/n).
    [(0, 20, 0.0, 1 - 0.025 ** (1 / 20)), (5, 10, 0.1871, 0.8129), (10, 10, 0.6915, 1.0)],
)
def test_a_counted_share_has_its_exact_interval(
    count: int, trials: int, low: float, high: float
) -> None:
    found = share(count, trials)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


class FakeAsker:
    """Answers numbers, and counts how often."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.asked: list[int] = []
        self._dies_at = dies_at

    def key(self, question: int) -> str:
        return str(question)

    def ask(self, question: int) -> Outcome:
        if question == self._dies_at:
            raise KeyboardInterrupt
        self.asked.append(question)
        return _outcome(question)


def test_a_collection_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "outcomes.jsonl"
    first = FakeAsker(dies_at=3)
    with pytest.raises(KeyboardInterrupt):
        collect(first, range(6), OutcomeStore(path), _ignore)
    assert [outcome.seed for outcome in outcomes_in(path)] == [0, 1, 2]
    # The next line was being written.
    with path.open("ab") as file:
        file.write(path.read_bytes()[:57])
    assert [outcome.seed for outcome in outcomes_in(path)] == [0, 1, 2]

    second, noted = FakeAsker(), []
    collect(second, range(6), OutcomeStore(path), noted.append)
    assert second.asked == [3, 4, 5]
    assert [outcome.seed for outcome in noted] == [3, 4, 5]
    assert outcomes_in(path) == [_outcome(i) for i in range(6)]


def test_a_reader_leaves_the_writer_its_line(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    OutcomeStore(path).append(_outcome(1))
    with path.open("ab") as file:
        file.write(b'{"key": "ha')
    before = path.read_bytes()
    assert len(outcomes_in(path)) == 1
    assert path.read_bytes() == before


def test_an_outcome_keeps_what_its_signals_are_made_of(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    tries = (Try("8", False, (TokenStats(8, -1.5, 1.0, 0.5), TokenStats(9, -0.5, 1.0, 0.5))),)
    OutcomeStore(path).append(replace(_outcome(5), tries=tries))
    (read,) = outcomes_in(path)
    assert read.tries == tries
    assert read.tries[0].signals.mean_log_probability == pytest.approx(-1.0)
    assert read.signals == _outcome(5).signals
    assert read.signals.mean_log_probability == pytest.approx(-0.75)
    assert "é" in json.loads(path.read_text(encoding="utf-8"))["answer"]


def test_no_question_is_in_two_splits() -> None:
    pytest.importorskip("reasoning_gym")
    from benchmarks.hybrid.prompts import FAMILIES, rounds

    prompts = list(_first(rounds(), 400))
    assert len({(prompt.family, prompt.question) for prompt in prompts}) == len(prompts)
    assert prompts == list(_first(rounds(), 400))
    # The same ones where only some are wanted, and an end where there are no more.
    easy = [one for one in prompts if (one.family, one.level, one.split) == ("gcd", 0, "test")]
    asked = list(rounds(lambda *which: which == ("gcd", 0, "test")))
    assert asked[: len(easy)] == easy
    assert len(easy) < len(asked) < 100
    shown = {message["content"] for prompt in prompts for message in prompt.messages()[:-1]}
    assert not shown & {prompt.question for prompt in prompts}
    for family in FAMILIES:
        mine = [prompt for prompt in prompts if prompt.family == family.name]
        assert {prompt.level for prompt in mine} == {0, 1, 2, 3}
        splits = {prompt.split for prompt in mine}
        assert splits == ({"test"} if family.held_out else {"train", "calibration", "test"})


@pytest.mark.parametrize(
    ("family", "reply", "right"),
    [
        ("chain_sum", "{}", True),
        ("chain_sum", "That makes {}.", True),
        ("chain_sum", "{}0", False),
        ("chain_sum", "I do not know", False),
        ("fraction_simplification", "= {}", True),
        ("calendar_arithmetic", "{}.", True),
        ("calendar_arithmetic", "{} or so", False),
        ("prime_factorization", "{}\nThat is all.", True),
        ("prime_factorization", "{} = what", False),
    ],
)
def test_answers_are_found_in_replies(family: str, reply: str, right: bool) -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    from benchmarks.hybrid.prompts import FAMILIES, rounds

    prompt = next(prompt for prompt in rounds() if prompt.family == family)
    settings = next(each for each in FAMILIES if each.name == family).levels[prompt.level]
    entry = reasoning_gym.create_dataset(family, seed=prompt.seed, size=1, **settings)[0]
    assert entry["question"].strip() == prompt.question
    assert prompt.right(reply.format(entry["answer"])) is right


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Data:
    """Three families and one held out, of a model whose probabilities are honest."""
    monkeypatch.setattr("benchmarks.hybrid.estimates._DRAWS", 20)
    rng = np.random.default_rng(11)
    outcomes = []
    for seed in range(1500):
        family = ("a", "b", "c", "new", "hopeless")[seed % 5]
        logs = -rng.exponential(1.0 if family == "a" else 0.3, size=2)
        split = "test" if family == "new" else ("train", "calibration", "test")[seed % 3]
        steps = tuple(TokenStats(7, float(log), 1.0, 1.0) for log in logs)
        right = family != "hopeless" and bool(rng.random() < np.exp(logs.sum()))
        question = f"{seed}{'?' * int(rng.integers(5, 50))}"
        changes = {"split": split, "steps": steps, "question": question}
        outcomes.append(replace(_outcome(seed, family=family, right=right), **changes))
    return select(outcomes, frozenset({"new"}))


def test_a_report_finds_what_was_put_into_it(world: Data) -> None:
    families = {one.family for one in (*world.train, *world.calibration, *world.test)}
    assert families == {"a", "b", "c"}
    assert {one.family for one in world.unknown} == {"new"}
    assert {one.split for one in world.train} == {"train"}

    found = trust(world)
    signals, chance = found["signals"], found["random"]
    assert signals.within.low > 0.6
    assert signals.unknown.low > 0.55
    assert chance.within.low < 0.5 < chance.within.high
    assert found["mean log-probability"].gain.value == 0
    assert signals.error is not None
    assert signals.floor is not None
    assert signals.error.value < signals.floor + 0.05
    assert chance.error is None
    for one in found.values():
        assert one.within.low <= one.within.value <= one.within.high

    policies, oracle = routing(world, faulty_cloud(world.test, 0.1))
    assert oracle.cloud == pytest.approx(0.9, abs=0.06)
    assert policies["random"].apgr.value < policies["signals"].apgr.value < 1
    assert policies["signals"].calls.value < policies["random"].calls.value
    assert policies["random"].calls.value == pytest.approx(0.8, abs=0.1)


def test_states_count_where_all_outcomes_have_one(world: Data, tmp_path: Path) -> None:
    rng = np.random.default_rng(8)

    def felt(one: Outcome) -> Outcome:
        # One number of eight knows, as far as a number with noise can.
        state = rng.normal(size=8)
        state[2] += 3 * one.right
        return replace(one, state=written_state(state.astype(np.float32)))

    with_states = Data(*([felt(one) for one in part] for part in vars(world).values()))
    found = trust(with_states)
    probed, without = found["signals, prompt, probe"], found["signals and prompt"]
    assert probed.within.low > without.within.high
    assert probed.error is not None
    assert promises(with_states, "signals, prompt, probe", alpha=0.2, delta=0.05).promised > 100
    assert "signals, prompt, probe" not in trust(world)
    # They come back as they went to the disk, but for the digits of half precision.
    store = OutcomeStore(tmp_path / "fake.jsonl")
    state = np.array([0.1, -70.0, 1e-3], np.float32)
    store.append(replace(world.test[0], state=written_state(state)))
    (back,) = outcomes_in(tmp_path / "fake.jsonl")
    assert back.hidden_state is not None
    np.testing.assert_allclose(back.hidden_state, state, rtol=1e-3)
    assert world.test[0].hidden_state is None


def test_agreement_is_worth_what_was_put_into_it(world: Data) -> None:
    rng = np.random.default_rng(5)

    def asked_again(one: Outcome) -> Outcome:
        # Half of the questions are ones that the model knows, though its first answer may slip.
        knows = one.seed % 2 == 0

        def answer() -> Try:
            right = bool(rng.random() < (0.8 if knows else 0.2))
            text = "7" if right else str(rng.integers(100, 999))
            return Try(text, right, (TokenStats(7, -0.5, 1.0, 1.0),))

        first, *tries = (answer() for _ in range(4))
        changes = {"answer": first.answer, "right": first.right, "steps": first.steps}
        return replace(one, tries=tuple(tries), **changes)

    again = Data(*([asked_again(one) for one in part] for part in vars(world).values()))
    none, *_, most = found = efforts(again)
    assert [one.tries for one in found] == [0, 1, 2, 3]
    assert none.more.value == 0
    assert none.right.value == pytest.approx(0.5, abs=0.08)
    # Of 4 answers two and more of "7" win over others, which never agree.
    assert most.more.low > 0.05
    assert most.within.low > none.within.high
    assert most.error.value < 0.1
    # A single outcome without tries, and there is nothing to say.
    assert efforts(replace(again, test=[*again.test, world.test[0]])) == []
    assert efforts(world) == []


def test_what_is_learned_grows_with_the_answers(world: Data) -> None:
    curve = learning_curve(world, "signals")
    assert [one.answers for one in curve] == [100, 200, len(world.train)]
    found = trust(world)["signals"]
    assert (curve[-1].within, curve[-1].unknown, curve[-1].error) == (
        found.within, found.unknown, found.error,
    )  # fmt: skip
    rows = by_family(world, ["random", "signals"])
    assert [row.family for row in rows] == ["a", "b", "c"]
    assert [row.questions for row in rows] == [100] * 3
    assert np.mean([row.aurocs[1] for row in rows]) == pytest.approx(found.within.value)
    # The probabilities of the first family are spread the widest.
    assert rows[0].aurocs[1] > max(row.aurocs[1] for row in rows[1:])
    alike = replace(world, test=[replace(one, right=one.family != "b") for one in world.test])
    assert by_family(alike, ["signals"]) == []


def test_giving_up_is_worth_what_was_put_into_it(world: Data) -> None:
    rng = np.random.default_rng(3)

    def longer(one: Outcome) -> Outcome:
        # Wrong answers stumble early, most of them; right ones at the end, as often.
        stumbles = 5 if not one.right and rng.random() < 0.9 else 38
        steps = tuple(
            TokenStats(at, -2.0 if at == stumbles else -0.1, 1.0, 0.1 if at == stumbles else 2.0)
            for at in range(40)
        )
        return replace(one, steps=steps)

    long = Data(*([longer(one) for one in part] for part in vars(world).values()))
    plain, learned = aborted(long, 24)
    wrong = sum(not one.right for one in long.test)
    assert plain.answers == learned.answers == len(long.test)
    assert learned.within.value == pytest.approx(0.95, abs=0.03)
    assert learned.wrong.value == pytest.approx(0.9, abs=0.05)
    assert learned.right.value == learned.kept.value == 0
    # Of 40 tokens 16 are saved.
    share_saved = learned.wrong.value * wrong / len(long.test) * 16 / 40
    assert learned.saved.value == pytest.approx(share_saved)
    # Of whole answers there is nothing to learn, so halves are all the same to it.
    assert plain.within.value == pytest.approx(0.5, abs=0.1)
    assert aborted(world, 2) == []


def test_a_promise_is_held_against_all_answers(world: Data) -> None:
    found = promises(world, "signals", alpha=0.4, delta=0.05)
    assert found.recalibrations == 200
    assert found.promised > 150
    # Of 200 trials at 5% each, more than 20 come out in one test of a thousand.
    assert found.violated.value <= 0.1
    assert 0.2 < found.kept < 0.9
    assert promises(world, "random", alpha=0.05, delta=0.05).promised == 0


def test_another_models_answers_are_the_cloud(world: Data) -> None:
    asked = [replace(one, right=one.seed % 2 == 0) for one in world.test[:50]]
    data, right = answered_by(world, asked)
    assert data.test == world.test[:50]
    assert data.train == world.train
    np.testing.assert_array_equal(right, [one.seed % 2 == 0 for one in world.test[:50]])


def _outcome(seed: int, *, family: str = "sums", right: bool = True) -> Outcome:
    steps = (TokenStats(3, -0.5, 1.0, 2.0), TokenStats(4, -1.0, 1.5, 0.5))
    likeliest = (((3, -0.5), (9, -1.5)), ((4, -1.0),))
    return Outcome(
        str(seed), "fake", family, 0, "test", seed, "1 + 1?", "2 é", right, "stop", 9, 2, 0.1,
        steps, likeliest,
    )  # fmt: skip


def _ignore(outcome: Outcome) -> None:
    """Nobody looks at it."""


def _first(found: Iterator[object], most: int) -> Iterator[object]:
    return (item for item, _ in zip(found, range(most), strict=False))
