"""Tasks for the flywheel that a small model fails at, and a cloud that knows their answers.

A task is drawn by a seed from one of some families of reasoning-gym. Each question belongs to one
part (training, profile, calibration, test) by its hash, whatever its seed: a test question is never
one that was trained on. Within a part questions repeat as they come, as an app's do.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import reasoning_gym

from benchmarks.hybrid.prompts import FAMILIES
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.confidence.threshold import last_number

Part = Literal["training", "profile", "calibration", "test"]
# Hashes from 0 to 99; the first of each part.
_PARTS: dict[Part, range] = {
    "training": range(55),
    "profile": range(55, 70),
    "calibration": range(70, 85),
    "test": range(85, 100),
}
_INSTRUCTION = "Answer with the number only."
# More than are ever drawn.
_ENOUGH = 1_000_000
FAMILY_NAMES = ("chain_sum", "products", "simple_equations", "basic_arithmetic")
# The easiest of `benchmarks.hybrid.prompts`.
_LEVEL = 0


@dataclass(frozen=True)
class Task:
    """A question, its answer, and the family that it is of."""

    family: str
    question: str
    answer: str

    def messages(self) -> list[dict[str, Any]]:
        """The chat that asks it."""
        return [
            {"role": "system", "content": _INSTRUCTION},
            {"role": "user", "content": self.question},
        ]

    def right(self, reply: str) -> bool:
        """Whether the last number of a reply is the answer."""
        return last_number(reply) == last_number(self.answer)


def tasks(part: Part, count: int, *, seed: int) -> list[Task]:
    """`count` tasks of a part, evenly over the families; the same for the same seed."""
    streams = [_drawn(name, part, seed) for name in FAMILY_NAMES]
    return [next(streams[index % len(streams)]) for index in range(count)]


def _drawn(family: str, part: Part, seed: int) -> Iterator[Task]:
    levels = next(each.levels for each in FAMILIES if each.name == family)
    dataset = reasoning_gym.create_dataset(family, seed=seed, size=_ENOUGH, **levels[_LEVEL])
    for index in range(_ENOUGH):
        question = str(dataset[index]["question"]).strip()
        digest = hashlib.sha256(question.encode()).digest()
        if int.from_bytes(digest[:4], "big") % 100 in _PARTS[part]:
            yield Task(family, question, str(dataset[index]["answer"]))


@contextmanager
def knowing_cloud(known: Mapping[str, str]) -> Iterator[Cloud]:
    """An endpoint on loopback that gives each question its answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = known[body["messages"][-1]["content"]]
            reply = {
                "choices": [{"message": {"content": answer}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 40, "completion_tokens": len(answer)},
            }
            data = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Cloud(f"http://127.0.0.1:{server.server_port}/v1", "ground-truth")
        finally:
            server.shutdown()
            thread.join()
