"""The lock whose holder does others' work: its promises, one by one and with many threads."""

from __future__ import annotations

import random
import threading

import pytest
from support.waiting import until

from edgesdk.engines.gguf.combining_lock import CombiningLock, Ticket


class Work:
    """So many parts are to be done; `done` counts. A holder may do a part of another's."""

    def __init__(self, name: int, parts: int) -> None:
        self.name = name
        self.parts = parts
        self.done = 0


class Waiters:
    """Threads that wait for the lock, in the order in which they were sent; `led` is who got it."""

    def __init__(self, lock: CombiningLock[int]) -> None:
        self.lock = lock
        self.ticket: dict[int, Ticket[int]] = {}
        self.led: list[int] = []
        self.through: list[int] = []
        self._threads: list[threading.Thread] = []

    def send(self, name: int) -> None:
        """It waits when this returns."""
        ticket = self.ticket[name] = Ticket(name)
        waiting = self.lock.waiting

        def run() -> None:
            try:
                if self.lock.acquire(ticket):
                    self.led.append(name)
            finally:
                self.lock.release(ticket)
                self.through.append(name)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()
        until(lambda: self.lock.waiting == waiting + 1)

    def join(self) -> None:
        """All are through."""
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def held() -> tuple[CombiningLock[int], Ticket[int]]:
    """Turns, and the test's own, which it has."""
    lock: CombiningLock[int] = CombiningLock()
    mine: Ticket[int] = Ticket()
    assert lock.acquire(mine)
    return lock, mine


def test_first_come_first_served(held: tuple[CombiningLock[int], Ticket[int]]) -> None:
    lock, mine = held
    waiters = Waiters(lock)
    for name in range(5):
        waiters.send(name)
    lock.release(mine)
    waiters.join()
    assert waiters.led == [0, 1, 2, 3, 4]


def test_who_is_taken_does_not_lead_and_who_is_put_back_comes_last(
    held: tuple[CombiningLock[int], Ticket[int]],
) -> None:
    lock, mine = held
    waiters = Waiters(lock)
    for name in range(4):
        waiters.send(name)
    asked: list[int] = []

    def wanted(name: int) -> bool:
        asked.append(name)
        return name in (0, 2)

    taken = lock.take(wanted)
    assert asked == [0, 1, 2, 3]
    assert [ticket.work for ticket in taken] == [0, 2]
    assert lock.waiting == 2
    lock.put_back(taken[0])
    lock.finish(taken[1])
    until(lambda: waiters.through == [2])
    lock.release(mine)
    waiters.join()
    assert waiters.led == [1, 3, 0]


def test_an_exclusive_holder_is_not_taken(
    held: tuple[CombiningLock[int], Ticket[int]],
) -> None:
    lock, mine = held
    thread = threading.Thread(target=lambda: lock.exclusive().__enter__(), daemon=True)
    thread.start()
    until(lambda: lock.waiting == 1)
    assert lock.take(lambda name: True) == []
    lock.release(mine)
    thread.join(30)
    assert not thread.is_alive()


def test_cancelling_ends_a_wait_and_only_that(held: tuple[CombiningLock[int], Ticket[int]]) -> None:
    lock, mine = held
    waiters = Waiters(lock)
    for name in range(3):
        waiters.send(name)
    lock.cancel(waiters.ticket[1])
    until(lambda: waiters.through == [1])
    assert lock.waiting == 2
    lock.cancel(mine)  # holds the lock already
    lock.release(mine)
    waiters.join()
    assert waiters.led == [0, 2]
    lock.cancel(waiters.ticket[0])  # has left
    with lock.exclusive():
        pass


def test_cancelling_before_the_wait(held: tuple[CombiningLock[int], Ticket[int]]) -> None:
    lock, _ = held
    ticket = Ticket(1)
    lock.cancel(ticket)
    assert not lock.acquire(ticket)
    assert lock.waiting == 0


@pytest.mark.parametrize("end", ["finish", "put_back"])
def test_who_is_cancelled_while_taken_is_waited_for(
    held: tuple[CombiningLock[int], Ticket[int]], end: str
) -> None:
    lock, mine = held
    waiters = Waiters(lock)
    waiters.send(0)
    [taken] = lock.take(lambda name: True)
    lock.cancel(taken)
    assert waiters.through == []
    getattr(lock, end)(taken)
    waiters.join()
    assert waiters.led == []
    assert lock.waiting == 0
    lock.release(mine)


def test_gathering_ends_when_enough_wait(held: tuple[CombiningLock[int], Ticket[int]]) -> None:
    lock, mine = held
    waiters = Waiters(lock)
    assert not lock.gather(1, 0.0)
    waiters.send(0)
    assert lock.gather(1, 0.0)
    late = Ticket(1)
    led: list[bool] = []

    def come() -> None:
        led.append(lock.acquire(late))
        lock.release(late)

    thread = threading.Thread(target=come, daemon=True)
    thread.start()
    assert lock.gather(2, 30.0)
    lock.release(mine)
    waiters.join()
    thread.join(30)
    assert led == [True]


@pytest.mark.parametrize("seed", range(3))
def test_everyone_is_served_by_somebody(seed: int) -> None:
    """Threads ask for work in parts; holders do it for each other, and some give up under way."""
    lock: CombiningLock[Work] = CombiningLock()
    inside = threading.Lock()
    outcomes: dict[int, Work] = {}
    cancelled: set[int] = set()
    errors: list[BaseException] = []
    served_by_others: list[int] = []

    def lead(mine: Work, chooser: random.Random) -> None:
        assert inside.acquire(blocking=False), "two hold the lock"
        taken = lock.take(lambda other: chooser.random() < 0.7)
        works = [mine, *(ticket.work for ticket in taken if ticket.work is not None)]
        for work in works:
            assert work.done < work.parts, "done more often than asked for"
            work.done += 1
        inside.release()
        for ticket in taken:
            assert ticket.work is not None
            if ticket.work.done == ticket.work.parts:
                lock.finish(ticket)
                served_by_others.append(ticket.work.name)
            else:
                lock.put_back(ticket)

    def ask(name: int, chooser: random.Random) -> None:
        work = outcomes[name] = Work(name, chooser.randint(1, 4))
        while work.done < work.parts:
            ticket = Ticket(work)
            if chooser.random() < 0.2:
                cancelled.add(name)
                threading.Thread(target=lock.cancel, args=(ticket,), daemon=True).start()
            try:
                if lock.acquire(ticket):
                    lead(work, chooser)
                elif ticket.cancelled:
                    return
                else:
                    assert work.done == work.parts, "woken before its work was done"
            finally:
                lock.release(ticket)

    def live(number: int) -> None:
        chooser = random.Random(1000 * seed + number)
        try:
            for round_ in range(60):
                if chooser.random() < 0.1:
                    with lock.exclusive():
                        assert inside.acquire(blocking=False), "not alone"
                        inside.release()
                ask(100 * number + round_, chooser)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=live, args=(n,), daemon=True) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "somebody was forgotten"
    assert not errors, errors[0]
    assert lock.waiting == 0
    unfinished = {name for name, work in outcomes.items() if work.done < work.parts}
    assert unfinished <= cancelled
    assert len(outcomes) == 6 * 60
    with lock.exclusive():
        pass  # the lock is free
