"""Damage by chance, and what may come of it: success, or an error of ours with a clear text.

`EDGESDK_FUZZ_ROUNDS=50 pytest tests -k fuzz` makes every fuzz test fifty times as long, with other
damage each time: `EDGESDK_FUZZ_SEED` names where to start.
"""

from __future__ import annotations

import copy
import json
import os
import random
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from edgesdk.errors import EdgeError

MOST_BYTES = 64 * 2**20
_LONGEST_TEXT = 4_000
_WORDS = [0, 1, 2, 8, 9, 255, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1]
_WORDS += [2**63, 2**64 - 1]
_ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**40 - 1, 2**63, 10**30, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "a", "1", "../up", "/etc/passwd", "a/../../b", ".", "\x00"),
    *("\ud800", "x" * 300, "{{ 1/0 }}", "é", [], [[]], {}, {"a": []}, [None], ["a", 1]),
]


def chances(rounds: int) -> Iterator[random.Random]:
    """A source of chance for each round."""
    first = int(os.environ.get("EDGESDK_FUZZ_SEED", "0"))
    for seed in range(rounds * int(os.environ.get("EDGESDK_FUZZ_ROUNDS", "1"))):
        yield random.Random(first * 1_000_003 + seed)


def damaged(data: bytes, chance: random.Random, regions: list[tuple[int, int]]) -> bytes:
    """`data` with one to three changes, each within one of `regions` (start, end)."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        start, end = chance.choice(regions)
        at = chance.randrange(min(start, len(changed)), max(min(end, len(changed)), start + 1))
        _damage(changed, min(at, max(len(changed) - 1, 0)), chance)
    return bytes(changed)


def _damage(data: bytearray, at: int, chance: random.Random) -> None:
    way = chance.choice((0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 6, 7))
    if way == 0 and data:
        data[at] ^= 1 << chance.randrange(8)
    elif way == 1 and data:
        data[at] = chance.randrange(256)
    elif way == 2:
        data[at : at + 4] = struct.pack("<I", chance.choice(_WORDS) & 0xFFFFFFFF)
    elif way == 3:
        data[at : at + 8] = struct.pack("<Q", chance.choice(_WORDS))
    elif way == 4:
        del data[at : at + chance.randint(1, 16)]
    elif way == 5:
        data[at:at] = chance.randbytes(chance.randint(1, 16))
    elif way == 6:
        other = chance.randrange(len(data) + 1)
        data[at : at + 16] = data[other : other + 16]
    elif chance.random() < 0.2:
        del data[at:]


def damaged_json(value: Any, chance: random.Random) -> Any:
    """A copy of a JSON value where one to three places have another value, name or nothing."""
    changed = json.loads(json.dumps(value))
    for _ in range(chance.choice((1, 1, 2, 3))):
        holders = [inner for inner in _within(changed) if inner]
        if not holders:
            return copy.deepcopy(chance.choice(_ODD))
        holder = chance.choice(holders)
        key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        way = chance.random()
        if way < 0.15:
            del holder[key]
        elif way < 0.25 and isinstance(holder, dict):
            holder[chance.choice(["x", "name", "role", ""])] = holder.pop(key)
        elif way < 0.35:
            holder[key] = [holder[key]] * chance.choice((1, 2, 50))
        elif way < 0.5 and isinstance(holder[key], int):
            holder[key] += chance.choice((-1, 1, 2**20, -(2**20)))
        else:
            holder[key] = copy.deepcopy(chance.choice(_ODD))
    return changed


def _within(value: Any) -> Iterator[dict[str, Any] | list[Any]]:
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _within(inner)


def outcome(attempt: Callable[[], object]) -> str:
    """ "accepted", or the kind of our error; anything else fails the test.

    So do an error whose text is empty or very long, and more than `MOST_BYTES` of memory.
    """
    tracemalloc.start()
    came, said = "accepted", "nothing"
    try:
        attempt()
    except EdgeError as error:
        came, said = type(error).__name__, str(error)
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert said.strip(), f"{came} says nothing"
    assert len(said) < _LONGEST_TEXT, said
    assert most < MOST_BYTES, f"{most:,} bytes"
    return came


def report(name: str, seen: Counter[str]) -> None:
    """Show the counts with `pytest -s`, and see to it that both ways out were taken."""
    print(f"\n{name}: {sum(seen.values()):,} rounds, {dict(seen.most_common())}")  # noqa: T201
    assert seen["accepted"], "nothing was accepted"
    assert len(seen) > 1, "nothing was refused"
