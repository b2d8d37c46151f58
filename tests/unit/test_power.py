"""Power policies, with sensors and a clock that the test turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_engine import TEMPLATE, ByteTokenizer, FakeDecodeState, FakeEngine

from edgesdk.engines.paced import PacedEngine
from edgesdk.errors import InvalidOption
from edgesdk.generation.loop import generate
from edgesdk.model import Model
from edgesdk.options import Options
from edgesdk.runtime import Runtime
from edgesdk.system.power import (
    Governor,
    Pace,
    PowerPolicy,
    PowerState,
    balanced,
    performance,
    read_sensors,
    saver,
)
from edgesdk.text.prompts import PromptEncoder
from edgesdk.text.template import ChatTemplate


class Device:
    """Sensors, a clock, and what was slept; computing takes a second for each call."""

    def __init__(self, state: PowerState) -> None:
        self.state = state
        self.now = 0.0
        self.looks = 0
        self.pauses: list[float] = []

    def sensor(self) -> PowerState:
        self.looks += 1
        return self.state

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def work(self, _: FakeDecodeState, seconds: float = 0.01) -> None:
        self.now += seconds

    def governor(self, policy: PowerPolicy) -> Governor:
        return Governor(policy, sensor=self.sensor, clock=self.clock, sleep=self.sleep)


MAINS = PowerState(100, plugged=True, celsius=50)
BATTERY = PowerState(80, plugged=False, celsius=50)
LOW = PowerState(10, plugged=False, celsius=50)
HOT = PowerState(100, plugged=True, celsius=90)
BURNING = PowerState(100, plugged=True, celsius=99)
NOTHING = PowerState()


def test_performance_never_rests() -> None:
    for state in (MAINS, BATTERY, LOW, HOT, BURNING, NOTHING):
        assert performance(state) == Pace(1.0, 0.0)


def test_balanced_rests_when_it_must() -> None:
    for state in (MAINS, BATTERY, NOTHING):
        assert balanced(state) == Pace()
    for state in (LOW, HOT):
        assert 0 < balanced(state).pause < balanced(BURNING).pause
        assert balanced(state).cores < 1


def test_saver_rests_more() -> None:
    assert saver(NOTHING).pause == saver(MAINS).pause == 0
    assert 0 < saver(BATTERY).pause < saver(LOW).pause
    for state in (MAINS, BATTERY, LOW, HOT, BURNING, NOTHING):
        assert saver(state).cores <= balanced(state).cores
        assert saver(state).pause >= balanced(state).pause


def test_a_charging_battery_is_not_low() -> None:
    assert balanced(PowerState(5, plugged=True)) == Pace()


@pytest.mark.parametrize(
    ("policy", "state", "threads"),
    [("performance", LOW, 8), ("balanced", MAINS, 8), ("balanced", LOW, 4), ("saver", MAINS, 4)],
)
def test_threads(policy: PowerPolicy, state: PowerState, threads: int) -> None:
    governor = Device(state).governor(policy)
    assert governor.threads(8) == threads
    assert governor.threads(1) == 1


def test_pauses_follow_the_sensors_between_tokens() -> None:
    device = Device(MAINS)
    engine = FakeEngine(b"x" * 50, before_extend=device.work)
    decode_state = PacedEngine(engine, device.governor("balanced")).new_state()
    decode_state.extend([1])
    decode_state.extend([1])
    assert device.pauses == []
    device.state = HOT
    device.now += 5
    decode_state.extend([1])
    assert device.pauses == [pytest.approx(0.0025)]
    device.state = MAINS
    decode_state.extend([1])
    assert len(device.pauses) == 2
    device.now += 5
    decode_state.extend([1])
    assert len(device.pauses) == 2
    assert device.looks == 3


def test_a_long_call_is_paid_for_in_short_pauses() -> None:
    device = Device(BURNING)
    engine = FakeEngine(before_extend=lambda _: device.work(_, 0.25))
    decode_state = PacedEngine(engine, device.governor("balanced")).new_state()
    for _ in range(5):
        decode_state.extend([1])
    assert device.pauses == [pytest.approx(0.1)] * 4


def test_a_function_is_a_policy() -> None:
    seen: list[PowerState] = []

    def policy(state: PowerState) -> Pace:
        seen.append(state)
        return Pace(0.25, pause=2.0)

    device = Device(BATTERY)
    governor = device.governor(policy)
    assert governor.threads(8) == 2
    assert seen == [BATTERY]
    engine = PacedEngine(FakeEngine(b"Hi", before_extend=device.work), governor)
    steps = generate(engine.new_state(), [65, 2], ByteTokenizer(), Options(), info=engine.info)
    assert "".join(step.text for step in steps) == "Hi"
    assert device.pauses == [pytest.approx(0.02)] * 2


def test_a_paced_sequence_is_a_sequence(tmp_path: Path) -> None:
    decode_state = PacedEngine(FakeEngine(), Device(MAINS).governor("saver")).new_state()
    decode_state.extend([65, 66, 67])
    decode_state.rewind(2)
    twin = decode_state.fork()
    twin.extend([68])
    assert (decode_state.tokens, twin.tokens) == ((65, 66), (65, 66, 68))
    twin.save(tmp_path / "a", {"n": 1})
    assert decode_state.restore(tmp_path / "a") == {"n": 1}
    assert decode_state.tokens == (65, 66, 68)


@pytest.mark.parametrize("pace", [(0, 0), (1.5, 0), (1, -1), (1, float("nan"))])
def test_a_pace_that_cannot_be_kept(pace: tuple[float, float]) -> None:
    with pytest.raises(InvalidOption):
        Pace(*pace)


def test_an_unknown_policy() -> None:
    with pytest.raises(InvalidOption, match="performance, balanced, saver"):
        Governor("turbo")  # type: ignore[arg-type]


def test_this_device_can_be_read() -> None:
    state = read_sensors()
    assert state.battery is None or 0 <= state.battery <= 100


def test_the_receipt_tells_threads_and_pauses() -> None:
    device = Device(BURNING)
    engine = FakeEngine(b"Hi", before_extend=device.work)
    engine.info = replace(engine.info, threads=3)
    paced = PacedEngine(engine, device.governor("balanced"))
    encoder = PromptEncoder(ByteTokenizer(), ChatTemplate(TEMPLATE), None, None)

    receipt = Model("paced", Runtime(paced, encoder, 0.0)).respond("Hello").receipt

    assert len(device.pauses) == 2, "before each call but the first"
    assert receipt.paused_seconds == pytest.approx(sum(device.pauses))
    assert receipt.threads == 3
    assert f"rested {receipt.paused_seconds:.2f} s" in receipt.line()
    assert "cpu, 3 threads" in receipt.line()
