"""Several processes with one folder of prompt beginnings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.other_process import run_python

pytestmark = pytest.mark.e2e

WORK = """
import json, sys
from pathlib import Path
from support.fake_engine import fake_model
from edgesdk.generation.prefix_cache import PrefixCache
model = fake_model(prefix_cache=PrefixCache(Path(sys.argv[1]), max_bytes=12_000))
replies = []
for turn in range(25):
    text = chr(97 + (int(sys.argv[2]) + turn) % 5) * 300
    model.cache_prefix(text)
    reply = model.respond(text + "?")
    replies.append((reply.text, reply.receipt.cached_tokens))
print(json.dumps(replies))
"""


def test_processes_share_a_folder_and_its_limit(tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    with ThreadPoolExecutor(3) as pool:
        for replies in pool.map(lambda n: run_python(WORK, str(folder), str(n)), range(3)):
            assert {text for text, _ in replies} == {"Hello there."}
            assert {cached for _, cached in replies} <= {0, 306}
    run_python(WORK, str(folder), "0")
    assert sum(path.stat().st_size for path in folder.glob("*/*.kv")) <= 12_000
    assert list(folder.glob("*/.*.kv.*")) == []
