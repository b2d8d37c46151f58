"""A second request where the first is slow to begin: whoever has the first token answers.

Dean, Barroso, "The Tail at Scale", Communications of the ACM 56(2), 2013: hedged requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from edgesdk.hybrid.cloud.attempt import Attempt


async def first_to_answer(
    first: Attempt,
    another: Callable[[], Awaitable[Attempt | None]],
    delay: float,
    *,
    lost: Callable[[Attempt], None],
) -> Attempt:
    """The trial that answers: the one whose first token came first, or, where none brings one,
    `first` with its failure. The other is closed before anything of it was seen.

    Args:
        another: the second trial; asked for only after `delay`, and None where there is to be
            none.
        delay: seconds without a first token, or a failure.
        lost: hears of each trial that is not the one.
    """
    trials = [first]
    running = 0
    winner: Attempt | None = None
    changed = anyio.Event()

    async def run(trial: Attempt) -> None:
        nonlocal running, winner, changed
        await trial.look_ahead()
        running -= 1
        if trial.failure is None:
            winner = winner or trial
        changed.set()

    try:
        async with anyio.create_task_group() as group:
            running += 1
            group.start_soon(run, first)
            with anyio.move_on_after(delay):
                await changed.wait()
            if running and (second := await another()) is not None:
                trials.append(second)
                running += 1
                group.start_soon(run, second)
            while running and winner is None:
                await changed.wait()
                changed = anyio.Event()
            group.cancel_scope.cancel()
    except BaseException:
        await _lose(trials, lost)
        raise
    found = winner or first
    await _lose([trial for trial in trials if trial is not found], lost)
    return found


async def _lose(trials: list[Attempt], lost: Callable[[Attempt], None]) -> None:
    with anyio.CancelScope(shield=True):
        for trial in trials:
            await trial.close()
            lost(trial)
