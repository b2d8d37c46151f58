"""Where a request is cut into batches."""

from __future__ import annotations

import pytest

from edgesdk.engines.gguf.batching import BatchPlan, BatchRequest, LogitsBuffer


def sizes(
    start: int, count: int, *, rows: int = 1, max_tokens: int = 512, verifies: bool = False
) -> list[int]:
    """How many tokens go into each batch."""
    request = BatchRequest(0, [1] * count, start, LogitsBuffer(rows, 1), verifies)
    found = []
    while not request.complete:
        plan = BatchPlan(max_tokens, 1024, invariant=True)
        assert plan.add(request)
        found.append(plan.slices[0].count)
        request.offset += found[-1]
    return found


@pytest.mark.parametrize(
    ("start", "count", "wanted"),
    [
        (0, 1, [1]),
        (0, 63, [63]),
        (0, 64, [64]),
        (0, 65, [64, 1]),
        (0, 600, [512, 64, 24]),
        (64, 100, [64, 36]),
        (10, 100, [54, 46]),
        (10, 200, [54, 128, 18]),
        (63, 1, [1]),
    ],
)
def test_whole_groups_share_a_batch_and_the_rest_has_its_own(
    start: int, count: int, wanted: list[int]
) -> None:
    assert sizes(start, count) == wanted


def test_slices_between_other_callers_have_the_same_borders() -> None:
    assert sizes(0, 200, max_tokens=64) == [64, 64, 64, 8]


def test_rows_of_logits_do_not_move_the_borders() -> None:
    assert sizes(0, 200, rows=200) == [64, 64, 64, 8]
    assert sizes(0, 200, rows=100) == [128, 64, 8]


def test_drafts_are_verified_in_one_batch_wherever_they_are() -> None:
    assert sizes(60, 8, rows=8, verifies=True) == [8]
