"""What a forked process does with what its parent opened: it says so at once, and never hangs.

Each case runs in a process of its own, with a timeout, and forks there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.other_process import run_python
from support.talking_cloud import TalkingCloud, echo
from support.tiny_models import make_tiny

from edgesdk.bundle.opening import Bundle

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]

# Prints, as JSON, what each of `uses` raises in a fork, and then what the parent still answers.
FORK = """
import json, os, sys

def in_fork(uses):
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        said = {}
        for name, use in uses.items():
            try:
                use()
                said[name] = "nothing was raised"
            except Exception as error:
                said[name] = f"{type(error).__name__}: {error}"
        os.write(writable, json.dumps(said).encode())
        if sys.argv[-1] == "leave at once":
            os._exit(0)
        # Its finalizers run, too, as those of a worker that ends.
        sys.exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as stream:
        said = json.loads(stream.read())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"said": said, "status": status}
"""

MODEL = f"""{FORK}
import edgesdk
from pathlib import Path
model = edgesdk.load(Path(sys.argv[1]), threads=2, context=512, device=sys.argv[2])
chats = [model.chat() for _ in range(3)]
for chat in chats:
    chat.respond("Hello", max_tokens=4)
state = model.runtime.engine.new_state()
state.extend([1, 2, 3])
found = in_fork({{
    "respond": lambda: model.respond("Hello", max_tokens=4),
    "a chat": lambda: chats[0].respond("Hello", max_tokens=4),
    "saving a chat": lambda: chats[1].save(sys.argv[1] + ".saved"),
    "a fork of a chat": lambda: chats[2].fork(),
    "a decode state": lambda: state.extend([4]),
}})
found["parent"] = model.respond("Hello", max_tokens=4).receipt.output_tokens
model.close()
sys.stdout.write(json.dumps(found))
"""

HYBRID = f"""{FORK}
from support.fake_engine import FakeEngine, fake_model
from edgesdk import Cloud, HybridClient, Policy
from edgesdk.hybrid import Budget, Journal, OfflineQueue, SpendingLimits
folder, url = sys.argv[1:]
journal, queue = Journal(folder + "/journal.db"), OfflineQueue(folder + "/queue.db", key=bytes(32))
budget = Budget(SpendingLimits(tokens_per_day=100_000), folder + "/budget.db")
client = HybridClient(
    fake_model(FakeEngine(list(b"Perhaps."))), cloud=Cloud(url, "big", "sk-key"),
    policy=Policy("allow"), budget=budget, journal=journal, queue=queue,
)
assert client.respond("Hi", prefer="cloud").route == "cloud"
found = in_fork({{
    "the cloud": lambda: client.respond("Hi", prefer="cloud"),
    "the device": lambda: client.respond("Hi", prefer="local"),
    "flushing": lambda: list(client.flush_queue()),
    "the journal": lambda: list(journal.entries()),
    "the queue": lambda: queue.entries(),
    "the budget": lambda: budget.spent(),
}})
found["parent"] = [client.respond("Hi", prefer=who).route for who in ("cloud", "local")]
client.close()
sys.stdout.write(json.dumps(found))
"""

SERVER = f"""{FORK}
from starlette.testclient import TestClient
from support.served import EchoEngine, FakeModels
from edgesdk.server.app import create_app
from edgesdk.server.service import Service
from edgesdk.server.settings import ServerSettings
service = Service(FakeModels(echo=EchoEngine), ServerSettings())

def ask():
    body = {{"model": "echo", "messages": [{{"role": "user", "content": "Hi"}}]}}
    client = TestClient(create_app(service), "http://127.0.0.1")
    answer = client.post("/v1/chat/completions", json=body).json()
    if "error" in answer:
        raise RuntimeError(answer["error"]["message"])
    return answer["choices"][0]["message"]["content"]

sys.stdout.write(json.dumps(in_fork({{"unused": ask}}) | {{"parent": ask()}} | {{
    "used": in_fork({{"used": ask}})
}}))
"""


@pytest.mark.parametrize("kind", ["gguf", "onnx", "mlx"])
def test_a_model_that_was_loaded_before_a_fork(
    kind: str, smollm2_gguf: Path, smollm2_int8: Bundle, tmp_path: Path
) -> None:
    path = smollm2_gguf if kind == "gguf" else smollm2_int8.path
    if kind == "mlx":
        pytest.importorskip("mlx.core")
        make_tiny("llama", tmp_path / "checkpoint", max_position_embeddings=512)
        job = ExportJob(tmp_path / "checkpoint", tmp_path / "tiny", "tiny", quality_tokens=0)
        path = export(job, SilentProgress()).path
    device = "apple" if kind == "mlx" else "cpu"
    # onnxruntime 1.32 itself waits for its threads when a fork ends otherwise, as multiprocessing's
    # workers never do.
    end = "leave at once" if kind == "onnx" else "end as usual"
    found = run_python(MODEL, str(path), device, end, timeout=120)
    assert found["status"] == 0
    assert found["parent"] > 0
    for use, words in found["said"].items():
        assert words.startswith("EngineError: The model was opened before this process"), use
        assert "spawn" in words


def test_a_hybrid_client_and_its_files_that_were_used_before_a_fork(tmp_path: Path) -> None:
    with TalkingCloud(echo) as server:
        found = run_python(HYBRID, str(tmp_path), server.url, timeout=60)
    assert found["status"] == 0
    assert found["parent"] == ["cloud", "local"]
    for use, words in found["said"].items():
        assert words.startswith("RequestError: "), (use, words)
        assert "was opened before this process was forked" in words, use


def test_a_server_that_was_used_before_a_fork() -> None:
    found = run_python(SERVER, timeout=60)
    # An app that is only loaded before the fork, as web servers do to save memory, serves in it.
    assert found["said"] == {"unused": "nothing was raised"}
    assert found["parent"] == "Hi"
    words = found["used"]["said"]["used"]
    assert words.startswith("RuntimeError: This process was forked from a server that had answered")
    assert "spawn" in words
