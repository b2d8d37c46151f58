"""What waits is encrypted, is handed out once, and never was to stay on the device."""

from __future__ import annotations

import base64
import logging
import os
import secrets
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import keyring
import keyring.backends.fail
import keyring.backends.null
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keyring.backend import KeyringBackend
from support.offline_queues import KEY, Clock, queue_at, request, texts

from edgesdk.errors import InvalidOption, MissingExtra, RequestError
from edgesdk.hybrid.cloud.spending import Budget, SpendingLimits
from edgesdk.hybrid.offline.cipher import DecryptionFailed, QueueCipher
from edgesdk.hybrid.offline.queue import (
    OfflineQueue,
    QueuedRequest,
    from_bytes,
    queued_request,
)
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.options import Options


class Memory(KeyringBackend):
    """A keyring that forgets with the test."""

    priority = 1  # type: ignore[assignment]

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password


@pytest.fixture
def memory() -> Iterator[Memory]:
    before = keyring.get_keyring()
    found = Memory()
    keyring.set_keyring(found)
    yield found
    keyring.set_keyring(before)


def stored(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.iterdir()))


def test_what_is_put_comes_back_in_another_opening(tmp_path: Path) -> None:
    options = Options(max_tokens=9, stop=("\n", "end"), temperature=0.5, top_p=0.9, seed=7)
    one = QueuedRequest([{"role": "user", "content": "帮我"}], options, "ask", "ask", ("work", "x"))
    queue = queue_at(tmp_path / "new")
    assert [queue.put(one), queue.put(request("second"))] == [1, 2]
    queue.close()
    again = queue_at(tmp_path / "new")
    assert [one.id for one in again.entries()] == [1, 2]
    claim = again.claim()
    assert claim is not None
    assert claim.request == one
    assert claim.done()
    assert [one.id for one in again.entries()] == [2]
    # An id is never given twice, or a late answer would be taken for another's.
    again.claim(after=1)
    assert again.put(request("third")) == 3


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=4))
def test_messages_of_every_kind_come_back(messages: list[dict[str, object]]) -> None:
    one = QueuedRequest(messages, Options(seed=1), "allow")
    assert from_bytes(one.to_bytes()) == one


def test_a_message_that_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no JSON"):
        queue_at(tmp_path).put(QueuedRequest([{"content": object()}], Options(), "allow"))


def test_nothing_can_be_read_in_the_file(tmp_path: Path) -> None:
    queue = queue_at(tmp_path)
    one = QueuedRequest(
        [{"role": "user", "content": "the secret plan of Ann"}],
        Options(stop="Yours, Bob"),
        "redact",
        tags=("divorce",),
    )
    queue.put(one)
    queue.put(one)
    raw = stored(tmp_path)
    for word in (b"secret", b"Ann", b"user", b"Bob", b"divorce", b"redact", KEY):
        assert word not in raw
    # The same request looks different each time.
    with sqlite3.connect(tmp_path / "q") as database:
        (first,), (second,) = database.execute("SELECT encrypted FROM requests").fetchall()
    assert first != second
    # What was taken out is gone from the disk too.
    while claim := queue.claim():
        claim.done()
    assert first not in stored(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="there are no such permissions")
def test_the_file_is_its_owners(tmp_path: Path) -> None:
    queue_at(tmp_path)
    assert (tmp_path / "q").stat().st_mode & 0o777 == 0o600


def test_what_is_to_stay_does_not_wait_to_leave(tmp_path: Path) -> None:
    queue = queue_at(tmp_path)
    with pytest.raises(InvalidOption, match="stay on the device"):
        queue.put(QueuedRequest([], Options(), "local_only"))
    assert queue.entries() == []


def test_the_verdict_goes_along() -> None:
    policy = Policy("ask", tags={"work": "redact"})
    messages = [{"role": "user", "content": "Hi"}]
    for call, tags in ((None, ("work",)), ("allow", ()), (None, ())):
        verdict = policy.evaluate(messages, call=call, tags=iter(tags))  # type: ignore[arg-type]
        found = queued_request(messages, Options(), verdict)
        assert (found.call, found.tags) == (call, tags)
        again = policy.evaluate(messages, call=found.call, tags=found.tags)
        assert again.upload == found.upload
        stricter = queued_request(messages, Options(), verdict.tightened("local_only", "a header"))
        assert (stricter.upload, stricter.call, stricter.tags) == ("local_only", call, tags)


def test_a_claimed_request_is_nobody_elses(tmp_path: Path) -> None:
    clock = Clock()
    queue, other = queue_at(tmp_path, clock, lease=60), queue_at(tmp_path, clock, lease=60)
    queue.put(request("a"))
    claim = queue.claim()
    assert claim is not None
    assert claim.seconds < 60
    assert other.claim() is None
    clock.now += 59
    assert other.claim() is None
    clock.now += 1
    later = other.claim()
    assert later is not None
    # The first took too long; what it has to say comes too late.
    claim.release()
    assert queue.claim() is None
    assert not claim.done()
    assert later.done()
    assert not later.done()
    assert queue.entries() == []


def test_a_released_request_waits_on(tmp_path: Path) -> None:
    queue = queue_at(tmp_path)
    queue.put(request("a"))
    queue.put(request("b"))
    claim = queue.claim()
    assert claim is not None
    claim.release()
    assert texts(queue) == ["a", "b"]
    second = queue.claim(after=claim.entry.id)
    assert second is not None
    assert second.request == request("b")


def test_threads_never_share_a_request(tmp_path: Path) -> None:
    queues = [queue_at(tmp_path) for _ in range(2)]
    for number in range(24):
        queues[0].put(request(str(number)))
    taken: list[str] = []
    ready = threading.Barrier(6)

    def take(number: int) -> None:
        ready.wait(20)
        while (claim := queues[number % 2].claim()) is not None:
            taken.append(claim.request.messages[0]["content"])
            assert claim.done()

    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken, key=int) == [str(number) for number in range(24)]


def test_old_requests_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    queue = queue_at(tmp_path, clock, max_age=100, lease=500)
    queue.put(request("old"))
    clock.now += 60
    queue.put(request("secret new"))
    clock.now += 41
    with caplog.at_level(logging.WARNING):
        assert [one.id for one in queue.entries()] == [2]
        assert texts(queue) == ["secret new"]
    assert "waited for too long" in caplog.text
    assert "secret" not in caplog.text
    # Not while somebody is sending it.
    claim = queue.claim()
    assert claim is not None
    clock.now += 200
    queue.put(request("newer"))
    assert claim.done()


def test_a_clock_that_goes_back_holds_nothing_for_longer(tmp_path: Path) -> None:
    clock = Clock()
    clock.now += 300 * 86_400
    queue = queue_at(tmp_path, clock, max_age=1000, lease=60)
    queue.put(request("sent by one who died"))
    queue.put(request("waits"))
    assert queue.claim() is not None
    clock.now -= 300 * 86_400
    again = queue_at(tmp_path, clock, max_age=1000, lease=60)
    assert texts(again) == ["waits"]
    clock.now += 61
    assert texts(again) == ["sent by one who died", "waits"]
    clock.now += 1000
    assert texts(again) == []


def test_a_full_queue_drops_its_oldest(tmp_path: Path) -> None:
    queue = queue_at(tmp_path, max_count=3)
    for number in range(5):
        queue.put(request(str(number)))
    assert texts(queue) == ["2", "3", "4"]


def test_a_wrong_key(tmp_path: Path) -> None:
    queue_at(tmp_path).put(request("a"))
    with pytest.raises(RequestError, match="another key"):
        OfflineQueue(tmp_path / "q", key=secrets.token_bytes(32))
    # Whoever had another key has lost nothing of what was there, also who had it open meanwhile.
    assert texts(queue_at(tmp_path)) == ["a"]
    for bad in (b"", b"short", bytes(33)):
        with pytest.raises(InvalidOption, match="32 bytes"):
            OfflineQueue(tmp_path / "other", key=bad)
    assert not (tmp_path / "other").exists()


def test_of_two_keys_for_a_new_queue_one_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    keys = [secrets.token_bytes(32) for _ in range(4)]
    ready = threading.Barrier(len(keys))
    opened: list[OfflineQueue] = []
    refused: list[str] = []

    def open_and_put(key: bytes) -> None:
        ready.wait(20)
        try:
            queue = OfflineQueue(tmp_path / "q", key=key)
        except RequestError as error:
            refused.append(str(error))
            return
        queue.put(request("a"))
        opened.append(queue)

    threads = [threading.Thread(target=open_and_put, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    assert texts(opened[0]) == ["a"]
    assert all("another key" in message for message in refused)
    assert len(refused) == 3


def test_files_that_are_no_queue(tmp_path: Path) -> None:
    (tmp_path / "q").write_text("these are words, not a database " * 50)
    with pytest.raises(RequestError, match="cannot be used"):
        queue_at(tmp_path)
    Budget(SpendingLimits(), tmp_path / "budget")
    with pytest.raises(RequestError, match="another database"):
        OfflineQueue(tmp_path / "budget", key=KEY)
    later = tmp_path / "later"
    OfflineQueue(later, key=KEY)
    with sqlite3.connect(later) as database:
        database.execute("UPDATE about SET version = 9")
    with pytest.raises(RequestError, match="version 9"):
        OfflineQueue(later, key=KEY)
    for limit in ("max_age", "max_count", "lease"):
        with pytest.raises(InvalidOption, match=limit):
            queue_at(tmp_path / "new", **{limit: 0})


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE requests SET encrypted = x'00' WHERE id = 1",
        "UPDATE requests SET encrypted = zeroblob(200) WHERE id = 1",
        "UPDATE requests SET encrypted = (SELECT encrypted FROM requests WHERE id = 2)"
        " WHERE id = 1",
    ],
)
def test_what_was_tampered_with_is_not_sent(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue = queue_at(tmp_path)
    queue.put(request("a"))
    queue.put(request("b"))
    with sqlite3.connect(tmp_path / "q") as database:
        database.execute(change)
    database.close()
    assert texts(queue) == ["b"]
    assert "damaged" in caplog.text
    assert [one.id for one in queue.entries()] == [2]


def test_what_is_encrypted_is_for_its_context_only() -> None:
    encrypted = QueueCipher(KEY).encrypt(b"words", "here")
    assert QueueCipher(KEY).decrypt(encrypted, "here") == b"words"
    for key, context in ((KEY, "there"), (KEY, "her"), (bytes(32), "here")):
        with pytest.raises(DecryptionFailed):
            QueueCipher(key).decrypt(encrypted, context)


def test_the_keyring_keeps_the_key(tmp_path: Path, memory: Memory) -> None:
    queue = OfflineQueue(tmp_path / "q")
    queue.put(request("a"))
    ((service, _), kept) = next(iter(memory.kept.items()))
    assert (service, len(base64.b64decode(kept))) == ("edgesdk queue", 32)
    queue.close()
    # The key goes with the file, wherever that is moved to.
    (tmp_path / "q").rename(tmp_path / "moved")
    assert texts(OfflineQueue(tmp_path / "moved")) == ["a"]
    assert texts(OfflineQueue(tmp_path / "moved", key=base64.b64decode(kept))) == ["a"]
    OfflineQueue(tmp_path / "another")
    assert len(set(memory.kept.values())) == 2
    assert base64.b64decode(kept) not in stored(tmp_path)
    memory.kept.clear()
    with pytest.raises(RequestError, match="no key of this queue"):
        OfflineQueue(tmp_path / "moved")
    assert memory.kept == {}


def test_openings_at_once_make_one_key(tmp_path: Path, memory: Memory) -> None:
    opened: list[OfflineQueue] = []
    threads = [
        threading.Thread(target=lambda: opened.append(OfflineQueue(tmp_path / "q")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, queue in enumerate(opened):
        queue.put(request(str(number)))
    assert len(texts(opened[0])) == 6
    assert len(memory.kept) == 1


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (keyring.backends.fail.Keyring, "keyring cannot be used"),
        (keyring.backends.null.Keyring, "keyring keeps no key"),
    ],
)
def test_a_system_without_a_keyring(
    tmp_path: Path, memory: Memory, backend: type[KeyringBackend], words: str
) -> None:
    keyring.set_keyring(backend())
    with pytest.raises(RequestError, match=words) as raised:
        OfflineQueue(tmp_path / "q")
    assert "Queue(path, key=...)" in str(raised.value)
    # The next try begins from nothing.
    keyring.set_keyring(memory)
    OfflineQueue(tmp_path / "q").put(request("a"))


@pytest.mark.parametrize(
    ("module", "package"),
    [("cryptography.fernet", "cryptography"), ("keyring", "keyring")],
)
def test_without_the_extra_there_is_a_line_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    key = KEY if package == "cryptography" else None
    with pytest.raises(MissingExtra, match=package) as raised:
        OfflineQueue(tmp_path / "q", key=key)
    assert "pip install 'edgesdk[queue]'" in str(raised.value)
