"""Guesses from the text itself, and how many of them are worth a try."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.decode.lookup import PromptLookup
from edgesdk.decode.pace import Costs, Pace


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 8))
def test_lookup_gives_what_followed_before(text: list[int], most: int) -> None:
    lookup = PromptLookup()
    for end in range(len(text) + 1):
        found = lookup.propose(text[:end], most)
        assert len(found) <= most
        if found:
            key = text[end - 3 : end]
            places = [at + 3 for at in range(end - 3) if text[at : at + 3] == key]
            assert found in [text[place : place + len(found)] for place in places]


def test_lookup_finds_each_repetition_of_three_tokens() -> None:
    text = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3]
    assert PromptLookup().propose(text, 3) == [4, 5, 6]
    assert PromptLookup().propose(text[:-1], 3) == []


def test_a_copy_is_followed_past_tokens_that_are_common() -> None:
    lookup = PromptLookup()
    text = [1, 2, 3, 0, 0, 0, 4, 5, 0, 0, 0, 8, 1, 2, 3]
    assert lookup.propose(text, 2) == [0, 0]
    assert lookup.propose([*text, 0, 0, 0], 2) == [4, 5]


def test_the_pace_grows_while_drafts_are_right() -> None:
    pace = Pace(Costs())
    assert pace.length(7) == 0
    pace.plain(1.0)
    lengths = []
    for _ in range(20):
        lengths.append(pace.length(7))
        pace.drafted(lengths[-1], lengths[-1], 1 + 0.2 * lengths[-1])
    assert 0 < lengths[0] < lengths[-1] == 7
    assert lengths == sorted(lengths)
    assert pace.length(2) == 2


def test_the_pace_stops_where_drafts_are_wrong_and_tries_ever_more_seldom() -> None:
    pace = Pace(Costs())
    tries = []
    for step in range(2_000):
        length = pace.length(7)
        if length:
            pace.drafted(length, 0, 1 + 0.2 * length)
            tries.append(step)
        else:
            pace.plain(1.0)
    assert len(tries) < 30
    assert len([step for step in tries if step > 1_000]) < 8
    assert tries[-1] > 500


def test_the_pace_stops_where_several_tokens_cost_as_much_as_one_by_one() -> None:
    pace = Pace(Costs())
    drafted = 0
    for _ in range(500):
        length = pace.length(7)
        if length:
            pace.drafted(length, length, 1.0 + length)
            drafted += length
        else:
            pace.plain(1.0)
    assert 0 < drafted < 250


def test_a_watching_pace_needs_no_draft_to_learn() -> None:
    pace = Pace(Costs(), watching=True)
    pace.plain(1.0)
    assert pace.length(7) == 0
    for _ in range(4):
        pace.watched(True)
    assert pace.length(7) > 0
    for _ in range(6):
        pace.watched(False)
    assert pace.length(7) == 0


def test_what_one_answer_learns_of_the_costs_the_next_one_knows() -> None:
    costs = Costs()
    first = Pace(costs)
    first.plain(1.0)
    for _ in range(12):
        first.drafted(4, 4, 1 + 1.2 * 4)
    assert costs.slope == pytest.approx(1.2)
    # One call that another process disturbed changes nothing.
    first.drafted(4, 4, 100.0)
    assert costs.slope == pytest.approx(1.2)

    second = Pace(costs)
    second.plain(1.0)
    drafted = sum(second.length(7) > 0 for _ in range(60))
    assert drafted == 0
    # An engine that was busy then may be worth a try much later.
    assert sum(second.length(7) > 0 for _ in range(5_000)) > 0
