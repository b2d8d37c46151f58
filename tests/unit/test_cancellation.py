"""Work ends when its token is cancelled or expires, and no sooner."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from collections.abc import Callable
from time import perf_counter

import pytest

from edgesdk.system.cancellation import CancellationToken, Cancelled
from tests.support.waiting import until


def refused(token: CancellationToken) -> bool:
    """Whether the token lets no work begin."""
    try:
        with token.on_cancel(lambda: None):
            return False
    except Cancelled:
        return True


def test_a_token_without_a_deadline_never_ends_by_itself() -> None:
    token = CancellationToken()
    assert (token.cancelled, token.expired) == (False, False)
    assert (token.remaining, token.timeout) == (math.inf, None)
    token.raise_if_cancelled()
    assert not refused(token)


def test_cancelling_is_for_good() -> None:
    token, called = CancellationToken(), []
    with token.on_cancel(lambda: called.append(1)):
        pass
    token.cancel()
    token.cancel()
    assert called == [], "what it would have ended had ended"
    assert token.cancelled
    assert not token.expired
    assert token.wait(0)
    assert refused(token)
    with pytest.raises(Cancelled):
        token.raise_if_cancelled()


def test_cancelling_calls_back_once_what_is_under_way() -> None:
    token, called = CancellationToken(), []
    with token.on_cancel(lambda: called.append("outer")), token.on_cancel(lambda: called.append(2)):
        token.cancel()
        token.cancel()
        assert called == ["outer", 2]


def test_a_deadline_counts_from_the_start_that_is_given() -> None:
    token = CancellationToken(0.5, started=perf_counter() - 1)
    assert token.expired
    assert not token.cancelled
    assert (token.remaining, token.timeout) == (0.0, 0.0)
    assert refused(token)
    with pytest.raises(Cancelled):
        token.raise_if_cancelled()
    assert 59 < CancellationToken(60).remaining <= 60


def test_a_deadline_ends_what_is_under_way() -> None:
    token, ended = CancellationToken(0.02), threading.Event()
    with token.on_cancel(ended.set):
        assert ended.wait(30)
    assert token.expired
    assert not token.cancelled
    assert refused(token)


def test_a_child_ends_with_its_parent_but_not_the_other_way_round() -> None:
    parent = CancellationToken()
    child, other = parent.child(), parent.child()
    called: list[int] = []
    with child.on_cancel(lambda: called.append(1)):
        other.cancel()
        assert called == []
        assert not parent.cancelled
        parent.cancel()
        assert called == [1]
    assert child.cancelled
    assert refused(parent.child())


def test_a_child_has_no_more_time_than_its_parent() -> None:
    parent = CancellationToken(0.0)
    assert parent.child(60).expired
    assert CancellationToken(60).child(0.0).expired
    assert CancellationToken(60).child().remaining <= 60


def test_counters_belong_to_one_token() -> None:
    parent = CancellationToken()
    child = parent.child()
    child.queue_seconds += 1
    assert (parent.queue_seconds, child.queue_seconds, child.paused_seconds) == (0, 1, 0)


@pytest.mark.parametrize("make", [lambda: CancellationToken(60), lambda: CancellationToken()])
def test_no_thread_and_no_parent_keeps_a_token_alive(make: Callable[[], CancellationToken]) -> None:
    before, parent = threading.active_count(), make()
    child = parent.child(60)
    with child.on_cancel(lambda: None):
        pass
    gone = weakref.ref(child)
    del child
    gc.collect()
    assert gone() is None
    until(lambda: threading.active_count() <= before)


def test_many_threads_cancel_and_work_at_once() -> None:
    for _ in range(50):
        token, ends = CancellationToken(), threading.Event()
        started = threading.Barrier(4)

        def work(
            token: CancellationToken = token,
            ends: threading.Event = ends,
            started: threading.Barrier = started,
        ) -> None:
            started.wait(30)
            try:
                with token.on_cancel(ends.set):
                    assert ends.wait(30)
            except Cancelled:
                pass

        def cancel(token: CancellationToken = token, started: threading.Barrier = started) -> None:
            started.wait(30)
            token.cancel()

        threads = [threading.Thread(target=f, daemon=True) for f in (work, work, cancel, cancel)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
