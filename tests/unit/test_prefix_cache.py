"""Prompt beginnings on disk, on a fake engine whose tokens are bytes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fake_engine import FakeDecodeState, FakeEngine, fake_model

from edgesdk.engines.saved_state import KvIdentity
from edgesdk.errors import EngineError, RequestError
from edgesdk.generation.prefix_cache import PrefixCache

SYSTEM = "You know all of this: " + "fact, " * 60
SHARED = len(f"system: {SYSTEM}\nuser: ")


def _cache(folder: Path, **limits: int) -> PrefixCache:
    return PrefixCache(folder / "prefixes", **limits)


def _files(cache: PrefixCache) -> list[Path]:
    return sorted(cache.folder.glob("*/*.kv"))


def test_a_system_message_is_computed_once(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    with fake_model(prefix_cache=cache).chat(SYSTEM) as chat:
        assert chat.respond("One").receipt.cached_tokens == 0
    engine = FakeEngine()
    with fake_model(engine, prefix_cache=cache).chat(SYSTEM) as chat:
        assert chat.respond("Two").receipt.cached_tokens == SHARED
    assert engine.states[0].extended[0] == len("Two\n\x02")
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Three"}]
    assert fake_model(prefix_cache=cache).respond(messages).receipt.cached_tokens == SHARED
    assert len(_files(cache)) == 1


def test_a_short_system_message_is_not_kept(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    fake_model(prefix_cache=cache).chat("Be kind.").respond("One")
    fake_model(prefix_cache=cache).respond("x" * 500)
    assert not cache.folder.exists()


def test_a_cancelled_answer_keeps_nothing(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    with fake_model(prefix_cache=cache).chat(SYSTEM).stream("One") as stream:
        next(stream)
    assert not cache.folder.exists()


def test_a_document_is_remembered(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    document = "All about DNS. " * 40
    kept = fake_model(prefix_cache=cache).cache_prefix(document)
    assert kept == len(f"user: {document}")
    reply = fake_model(prefix_cache=cache).respond(document + "What is it about?")
    assert reply.receipt.cached_tokens == kept


def test_the_longest_beginning_wins(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    model = fake_model(prefix_cache=cache)
    short, long = "a" * 300, "a" * 700
    kept = [model.cache_prefix(text) for text in (short, long)]
    assert model.respond(long + " And?").receipt.cached_tokens == kept[1]
    assert model.respond("a" * 650 + "b").receipt.cached_tokens == kept[0]
    assert model.respond("b" * 900).receipt.cached_tokens == 0
    # A whole prompt that is kept still computes its last token, for the logits.
    assert model.respond(short).receipt.cached_tokens == kept[0]


def test_what_the_sequence_holds_already_is_not_read_again(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    model = fake_model(prefix_cache=cache)
    model.cache_prefix("a" * 300)
    with model.chat() as chat:
        assert chat.respond("a" * 320).receipt.cached_tokens == 306
        [path] = _files(cache)
        path.write_bytes(b"damaged")
        assert chat.respond("Go on").receipt.cached_tokens > 306
    assert path.exists()


def test_another_model_does_not_hit(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    fake_model(prefix_cache=cache).cache_prefix("a" * 300)
    engine = FakeEngine()
    engine.kv_identity = KvIdentity("fake", "11" * 32, "float32")
    assert fake_model(engine, prefix_cache=cache).respond("a" * 320).receipt.cached_tokens == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    kept=st.lists(st.text("ab", min_size=4, max_size=12), max_size=4),
    asked=st.text("ab", min_size=1, max_size=16),
)
def test_never_a_wrong_hit(
    tmp_path_factory: pytest.TempPathFactory, kept: list[str], asked: str
) -> None:
    cache = _cache(tmp_path_factory.mktemp("cache"), min_tokens=4)
    engine = FakeEngine()
    for text in kept:
        state = engine.new_state()
        state.extend(list(text.encode()))
        cache.store(state, engine.kv_identity, len(text))
    prompt = list(asked.encode())
    fresh = engine.new_state()
    cache.restore(fresh, engine.kv_identity, prompt)
    fitting = [len(text) for text in kept if asked.startswith(text)]
    assert list(fresh.tokens) == prompt[: max(fitting, default=0)]


def test_a_file_under_a_wrong_name_is_no_hit_and_goes(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    model = fake_model(prefix_cache=cache)
    model.cache_prefix("a" * 300)
    model.cache_prefix("b" * 300)
    first, second = _files(cache)
    first.write_bytes(second.read_bytes())
    second.write_bytes(b"junk")
    for letter in "ab":
        reply = model.respond(letter * 300 + "!")
        assert reply.receipt.cached_tokens <= len("user: ")
        assert reply.text == "Hello there."
    assert len(_files(cache)) < 2


def test_the_least_recently_used_goes(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    model = fake_model(prefix_cache=cache)
    model.cache_prefix("a" * 300)
    [first] = _files(cache)
    cache.max_bytes = 2 * first.stat().st_size + 100
    model.cache_prefix("b" * 300)
    [second] = set(_files(cache)) - {first}
    os.utime(first, (2, 2))
    os.utime(second, (1, 1))
    model.cache_prefix("c" * 300)
    assert len(_files(cache)) == 2
    assert first in _files(cache)
    assert sum(path.stat().st_size for path in _files(cache)) <= cache.max_bytes


def test_a_hit_counts_as_use(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    model = fake_model(prefix_cache=cache)
    model.cache_prefix("a" * 300)
    [path] = _files(cache)
    os.utime(path, (1, 1))
    model.respond("a" * 300 + "!")
    assert path.stat().st_mtime > 1


def test_one_that_is_larger_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    cache = _cache(tmp_path, max_bytes=100)
    model = fake_model(prefix_cache=cache)
    model.cache_prefix("a" * 300)
    assert _files(cache) == []


def test_the_limit_holds_while_another_makes_room(tmp_path: Path) -> None:
    cache = _cache(tmp_path, max_bytes=100)
    cache.folder.mkdir()
    another = FileLock(cache.folder / ".lock")
    another.acquire()
    keeping = threading.Thread(
        target=fake_model(prefix_cache=cache).cache_prefix, args=("a" * 300,)
    )
    keeping.start()
    keeping.join(0.2)
    # The other one has counted the files already, this one's not among them.
    another.release()
    keeping.join(20)
    assert _files(cache) == []


def test_leftovers_of_a_dead_process_go(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    model = fake_model(prefix_cache=cache)
    model.cache_prefix("a" * 300)
    home = _files(cache)[0].parent
    stale, fresh = home / ".300-ab.kv.x1", home / ".300-ab.kv.x2"
    for path in (stale, fresh):
        path.write_bytes(b"half")
    os.utime(stale, (1, 1))
    model.cache_prefix("b" * 300)
    assert not stale.exists()
    assert fresh.exists()


def test_a_folder_that_cannot_be_written_spoils_no_answer(tmp_path: Path) -> None:
    (tmp_path / "prefixes").write_text("a file is in the way")
    model = fake_model(prefix_cache=_cache(tmp_path))
    assert model.chat(SYSTEM).respond("One").text == "Hello there."
    with pytest.raises(RequestError, match="cannot be written"):
        model.cache_prefix("a" * 300)


def test_an_engine_that_cannot_fork_spoils_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork(self: FakeDecodeState) -> FakeDecodeState:
        raise EngineError("64 sequences of this model are open.")

    monkeypatch.setattr(FakeDecodeState, "fork", fork)
    model = fake_model(prefix_cache=_cache(tmp_path))
    assert model.chat(SYSTEM).respond("One").text == "Hello there."


def test_remember_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="prefix_cache=True"):
        fake_model().cache_prefix("a" * 300)
    with pytest.raises(RequestError, match="256 are the least"):
        fake_model(prefix_cache=_cache(tmp_path)).cache_prefix("a" * 20)


def test_many_at_once(tmp_path: Path) -> None:
    cache = _cache(tmp_path, max_bytes=20_000)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            model = fake_model(prefix_cache=cache)
            for turn in range(12):
                text = chr(97 + (seed + turn) % 6) * 300
                model.cache_prefix(text)
                reply = model.respond(text + "?")
                assert reply.text == "Hello there."
                assert reply.receipt.cached_tokens in (0, 306)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    model = fake_model(prefix_cache=cache)
    model.cache_prefix("z" * 300)
    assert sum(path.stat().st_size for path in _files(cache)) <= cache.max_bytes


def test_a_folder_may_be_named_by_a_text(tmp_path: Path) -> None:
    assert PrefixCache(str(tmp_path)).folder == tmp_path
