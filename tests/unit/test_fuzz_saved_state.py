"""Damaged chats and prefixes on disk: a chat is refused, a prefix is computed again."""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from collections import Counter
from pathlib import Path

import pytest
from support.fake_engine import FakeEngine, fake_model
from support.fuzzing import chances, damaged, damaged_json, outcome, report

from edgesdk.engines.saved_state import KvIdentity, read_saved_state
from edgesdk.errors import EdgeError, RequestError
from edgesdk.generation.prefix_cache import PrefixCache
from edgesdk.model import Model

ROUNDS = 400


@pytest.fixture
def model() -> Model:
    return fake_model()


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    path = tmp_path / "saved.chat"
    with model.chat("You are terse.") as chat:
        chat.respond("Hello")
        chat.respond("And more?")
        chat.save(path)
    return path


def _regions(whole: bytes) -> list[tuple[int, int]]:
    """Magic, version, length, header, its checksum, payload, its checksum; the end."""
    header_end = 12 + struct.unpack_from("<I", whole, 8)[0]
    ends = [0, 6, 8, 12, header_end, header_end + 4, len(whole) - 4, len(whole)]
    return [*itertools.pairwise(ends), (len(whole) - 1, len(whole))]


def _go_on(model: Model, path: Path) -> None:
    with model.restore(path) as chat:
        assert chat.respond("Go on", max_tokens=3).text == "Hel"


def test_damaged_chats(model: Model, saved: Path) -> None:
    whole = saved.read_bytes()
    regions = _regions(whole)
    seen = Counter([outcome(lambda: _go_on(model, saved))])
    for chance in chances(ROUNDS):
        changed = damaged(whole, chance, regions)
        saved.write_bytes(changed)
        came = outcome(lambda: _go_on(model, saved))
        # The checksums leave no damage unseen; nothing was damaged where bytes met their like.
        assert came == ("accepted" if changed == whole else "RequestError")
        seen[came] += 1
    report("chat bytes", seen)


def test_chats_that_somebody_wrote(model: Model, saved: Path) -> None:
    """With checksums that are right, so that each field is looked at."""
    whole = saved.read_bytes()
    length = struct.unpack_from("<I", whole, 8)[0]
    header, rest = json.loads(whole[12 : 12 + length]), whole[16 + length :]
    seen: Counter[str] = Counter()
    for chance in chances(ROUNDS):
        text = json.dumps(damaged_json(header, chance)).encode()
        saved.write_bytes(
            whole[:8]
            + struct.pack("<I", len(text))
            + text
            + struct.pack("<I", zlib.crc32(text))
            + rest
        )
        seen[outcome(lambda: _go_on(model, saved))] += 1
    report("chat fields", seen)


def test_a_chat_of_another_model(saved: Path) -> None:
    engine = FakeEngine()
    engine.kv_identity = KvIdentity("fake", "11" * 32, "float32")
    with pytest.raises(RequestError, match="another model"):
        fake_model(engine).restore(saved)


def test_a_file_larger_than_the_memory(tmp_path: Path) -> None:
    """A hole takes no disk, and its size is what the header says."""
    size = 2**42
    fields = {"engine": "e", "model": "m", "layout": "l", "tokens": [], "metadata": {}}
    text = json.dumps(fields | {"payload_bytes": size}).encode()
    path = tmp_path / "hole"
    with path.open("wb") as stream:
        stream.write(b"EDGEKV" + struct.pack("<HI", 1, len(text)) + text)
        stream.write(struct.pack("<I", zlib.crc32(text)))
        try:
            stream.truncate(16 + len(text) + size + 4)
        except OSError:
            pytest.skip("this file system has no holes of that size")
    with pytest.raises(RequestError, match="memory"):
        read_saved_state(path, KvIdentity("e", "m", "l"))


def test_damaged_prefixes(tmp_path: Path) -> None:
    """Whatever lies in the folder, the answer is the same."""
    text = "a" * 40
    cache = PrefixCache(tmp_path / "prefixes", min_tokens=8)
    model = fake_model(prefix_cache=cache)
    model.cache_prefix(text)
    [path] = cache.folder.glob("*/*.kv")
    whole = path.read_bytes()
    regions = _regions(whole)
    seen: Counter[str] = Counter()
    for chance in chances(ROUNDS):
        # A file that was found to be damaged is gone by now.
        path.write_bytes(damaged(whole, chance, regions))
        reply = model.respond(text + "!", max_tokens=3)
        assert reply.text == "Hel"
        held = reply.receipt.cached_tokens
        assert held == 0 or path.read_bytes() == whole
        seen["accepted" if held else "computed again"] += 1
    report("prefixes", seen | Counter(accepted=1))


@pytest.mark.parametrize("name", ["\u00b2-x.kv", "x.kv", "-1-x.kv", "9" * 200 + "-x.kv", "0-.kv"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_strange_names_among_prefixes(tmp_path: Path, name: str, kind: str) -> None:
    cache = PrefixCache(tmp_path / "prefixes", min_tokens=8, max_bytes=700)
    model = fake_model(prefix_cache=cache)
    model.cache_prefix("a" * 40)
    [path] = cache.folder.glob("*/*.kv")
    strange = path.with_name(name)
    if kind == "file":
        strange.write_bytes(b"x")
    elif kind == "folder":
        strange.mkdir()
    else:
        strange.symlink_to("nowhere")
    assert model.respond("a" * 40 + "!").receipt.cached_tokens > 0
    model.cache_prefix("b" * 40)
    model.cache_prefix("c" * 40)


def test_a_folder_where_a_prefix_should_be(tmp_path: Path) -> None:
    cache = PrefixCache(tmp_path / "prefixes", min_tokens=8)
    model = fake_model(prefix_cache=cache)
    model.cache_prefix("a" * 40)
    [path] = cache.folder.glob("*/*.kv")
    path.unlink()
    path.mkdir()
    (cache.folder / ".lock").unlink(missing_ok=True)
    (cache.folder / ".lock").mkdir()
    assert model.respond("a" * 40 + "!", max_tokens=3).text == "Hel"
    with pytest.raises(EdgeError):
        model.cache_prefix("a" * 40)
    assert list(path.parent.iterdir()) == [path]
