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
    """Threads that wait for a turn, in the order in which they were sent; `led` is who got one."""

    def __init__(self, turns: CombiningLock[int]) -> None:
        self.turns = turns
        self.turn: dict[int, Ticket[int]] = {}
        self.led: list[int] = []
        self.through: list[int] = []
        self._threads: list[threading.Thread] = []

    def send(self, name: int) -> None:
        """It waits when this returns."""
        turn = self.turn[name] = Ticket(name)
        waiting = self.turns.waiting

        def run() -> None:
            try:
                if self.turns.wait(turn):
                    self.led.append(name)
            finally:
                self.turns.leave(turn)
                self.through.append(name)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()
        until(lambda: self.turns.waiting == waiting + 1)

    def join(self) -> None:
        """All are through."""
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def held() -> tuple[CombiningLock[int], Ticket[int]]:
    """Turns, and the test's own, which it has."""
    turns: CombiningLock[int] = CombiningLock()
    mine: Ticket[int] = Ticket()
    assert turns.wait(mine)
    return turns, mine


def test_first_come_first_served(held: tuple[CombiningLock[int], Ticket[int]]) -> None:
    turns, mine = held
    waiters = Waiters(turns)
    for name in range(5):
        waiters.send(name)
    turns.leave(mine)
    waiters.join()
    assert waiters.led == [0, 1, 2, 3, 4]


def test_who_is_taken_does_not_lead_and_who_is_put_back_comes_last(
    held: tuple[CombiningLock[int], Ticket[int]],
) -> None:
    turns, mine = held
    waiters = Waiters(turns)
    for name in range(4):
        waiters.send(name)
    asked: list[int] = []

    def wanted(name: int) -> bool:
        asked.append(name)
        return name in (0, 2)

    taken = turns.take(wanted)
    assert asked == [0, 1, 2, 3]
    assert [turn.asked for turn in taken] == [0, 2]
    assert turns.waiting == 2
    turns.put_back(taken[0])
    turns.finish(taken[1])
    until(lambda: waiters.through == [2])
    turns.leave(mine)
    waiters.join()
    assert waiters.led == [1, 3, 0]


def test_a_turn_that_does_nobodys_work_is_not_taken(
    held: tuple[CombiningLock[int], Ticket[int]],
) -> None:
    turns, mine = held
    thread = threading.Thread(target=lambda: turns.alone().__enter__(), daemon=True)
    thread.start()
    until(lambda: turns.waiting == 1)
    assert turns.take(lambda name: True) == []
    turns.leave(mine)
    thread.join(30)
    assert not thread.is_alive()


def test_quitting_ends_a_wait_and_only_that(held: tuple[CombiningLock[int], Ticket[int]]) -> None:
    turns, mine = held
    waiters = Waiters(turns)
    for name in range(3):
        waiters.send(name)
    turns.quit(waiters.turn[1])
    until(lambda: waiters.through == [1])
    assert turns.waiting == 2
    turns.quit(mine)  # has its turn already
    turns.leave(mine)
    waiters.join()
    assert waiters.led == [0, 2]
    turns.quit(waiters.turn[0])  # has left
    with turns.alone():
        pass


def test_quitting_before_the_wait(held: tuple[CombiningLock[int], Ticket[int]]) -> None:
    turns, _ = held
    turn = Ticket(1)
    turns.quit(turn)
    assert not turns.wait(turn)
    assert turns.waiting == 0


@pytest.mark.parametrize("end", ["finish", "put_back"])
def test_who_quits_while_taken_is_waited_for(
    held: tuple[CombiningLock[int], Ticket[int]], end: str
) -> None:
    turns, mine = held
    waiters = Waiters(turns)
    waiters.send(0)
    [taken] = turns.take(lambda name: True)
    turns.quit(taken)
    assert waiters.through == []
    getattr(turns, end)(taken)
    waiters.join()
    assert waiters.led == []
    assert turns.waiting == 0
    turns.leave(mine)


def test_gathering_ends_when_enough_wait(held: tuple[CombiningLock[int], Ticket[int]]) -> None:
    turns, mine = held
    waiters = Waiters(turns)
    assert not turns.gather(1, 0.0)
    waiters.send(0)
    assert turns.gather(1, 0.0)
    late = Ticket(1)
    led: list[bool] = []

    def come() -> None:
        led.append(turns.wait(late))
        turns.leave(late)

    thread = threading.Thread(target=come, daemon=True)
    thread.start()
    assert turns.gather(2, 30.0)
    turns.leave(mine)
    waiters.join()
    thread.join(30)
    assert led == [True]


@pytest.mark.parametrize("seed", range(3))
def test_everyone_is_served_by_somebody(seed: int) -> None:
    """Threads ask for work in parts; holders do it for each other, and some give up under way."""
    turns: CombiningLock[Work] = CombiningLock()
    inside = threading.Lock()
    outcomes: dict[int, Work] = {}
    quitters: set[int] = set()
    errors: list[BaseException] = []
    served_by_others: list[int] = []

    def lead(mine: Work, chooser: random.Random) -> None:
        assert inside.acquire(blocking=False), "two have the turn"
        taken = turns.take(lambda other: chooser.random() < 0.7)
        works = [mine, *(turn.asked for turn in taken if turn.asked is not None)]
        for work in works:
            assert work.done < work.parts, "done more often than asked for"
            work.done += 1
        inside.release()
        for turn in taken:
            assert turn.asked is not None
            if turn.asked.done == turn.asked.parts:
                turns.finish(turn)
                served_by_others.append(turn.asked.name)
            else:
                turns.put_back(turn)

    def ask(name: int, chooser: random.Random) -> None:
        work = outcomes[name] = Work(name, chooser.randint(1, 4))
        while work.done < work.parts:
            turn = Ticket(work)
            if chooser.random() < 0.2:
                quitters.add(name)
                threading.Thread(target=turns.quit, args=(turn,), daemon=True).start()
            try:
                if turns.wait(turn):
                    lead(work, chooser)
                elif turn.quits:
                    return
                else:
                    assert work.done == work.parts, "woken before its work was done"
            finally:
                turns.leave(turn)

    def live(number: int) -> None:
        chooser = random.Random(1000 * seed + number)
        try:
            for round_ in range(60):
                if chooser.random() < 0.1:
                    with turns.alone():
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
    assert turns.waiting == 0
    unfinished = {name for name, work in outcomes.items() if work.done < work.parts}
    assert unfinished <= quitters
    assert len(outcomes) == 6 * 60
    with turns.alone():
        pass  # the turn is free
