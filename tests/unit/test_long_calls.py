"""A device that computes many tokens at once otherwise than few is found out."""

from __future__ import annotations

import numpy as np
import pytest

from edgesdk.engines.base import Logits
from edgesdk.engines.onnx.long_calls import SHORT_CALL, long_calls_are_right
from edgesdk.system.cancellation import Cancelled


def logits(ids: list[int]) -> Logits:
    return np.cos(np.arange(50, dtype=np.float32)[None] * (1 + sum(ids) % 7))


def measured(at_once: object, context_length: int = 700) -> bool | None:
    run = lambda ids, whole: at_once(ids) if whole else logits(ids)  # type: ignore[operator]  # noqa: E731
    return long_calls_are_right(run, 50, context_length)


def test_the_same_up_to_rounding_is_right() -> None:
    assert measured(lambda ids: logits(ids) + 1e-4) is True


def test_other_numbers_are_wrong() -> None:
    assert measured(lambda ids: logits(ids)[:, ::-1]) is False
    assert measured(lambda ids: logits(ids) * np.nan) is False


def test_what_cannot_be_measured_is_not_right() -> None:
    def fail(ids: list[int]) -> Logits:
        raise RuntimeError("out of memory")

    assert measured(fail) is None
    assert measured(logits, context_length=SHORT_CALL) is None


def test_who_stops_is_told() -> None:
    def stop(ids: list[int]) -> Logits:
        raise Cancelled

    with pytest.raises(Cancelled):
        measured(stop)
