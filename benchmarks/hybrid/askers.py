"""Put the prompts to a model: one that is loaded here, or one behind an endpoint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from time import perf_counter

import httpx
import numpy as np

from benchmarks.hybrid.outcomes import Likeliest, Outcome, Try, written_state
from benchmarks.hybrid.prompts import Prompt
from edgesdk.engines.base import DecodeState, HiddenStates, Logits
from edgesdk.generation.finish import Finish
from edgesdk.hybrid.confidence.confidence import SignalMeter
from edgesdk.hybrid.self_consistency import SelfConsistency
from edgesdk.model import Model
from edgesdk.options import Options
from edgesdk.request import Request

MOST_TOKENS = 24
_LIKELIEST = 5


class LocalAsker:
    """A loaded model. The examples of a family stay in a KV cache of its own.

    Args:
        plain: go on with a text, in place of a chat.
        tries: further answers to each prompt, drawn as the client's effort draws them.
    """

    def __init__(self, model: Model, *, plain: bool = False, tries: int = 0) -> None:
        self._model = model
        self._plain = plain
        self._tries = tries
        self._sequences: dict[str, DecodeState] = {}

    def key(self, prompt: Prompt) -> str:
        """Of the model's hash, not its name."""
        said = prompt.text() if self._plain else prompt.messages()
        return _key(self._model.runtime.engine.kv_identity.model, said)

    def ask(self, prompt: Prompt) -> Outcome:
        """Answer, and keep what the client would have seen of it."""
        runtime = self._model.runtime
        sequence = self._sequences.get(prompt.family)
        if sequence is None:
            sequence = self._sequences[prompt.family] = runtime.engine.new_state()
        encoder = runtime.encoder
        ids = encoder.plain(prompt.text()) if self._plain else encoder.chat(prompt.messages())
        likeliest: list[Likeliest] = []
        started = perf_counter()

        def answered(options: Options, *, noting: bool) -> tuple[str, SignalMeter, Finish]:
            meter = SignalMeter()

            def on_step(row: Logits, token: int, state: HiddenStates | None) -> None:
                meter.update(row, token, state)
                if noting:
                    likeliest.append(_likeliest(row))

            generation = runtime.generate(
                sequence,
                Request([], options, lambda messages, specs: ids, started=started),
                on_step=on_step,
            )
            text = "".join(step.text for step in generation)
            finish = generation.finish
            assert finish is not None, "a generation that was read to its end has a finish"
            return text, meter, finish

        options = Options(max_tokens=MOST_TOKENS, stop="\n", speculate="off")
        answer, meter, finish = answered(options, noting=True)
        seconds = perf_counter() - started
        tries = []
        for seed in range(1, self._tries + 1):
            sampled = replace(options, temperature=SelfConsistency.temperature, seed=seed)
            text, seen, _ = answered(sampled, noting=False)
            tries.append(Try(text, prompt.right(text), seen.steps))
        return Outcome(
            self.key(prompt), self._model.name, prompt.family, prompt.level,
            prompt.split, prompt.seed, prompt.question, answer, prompt.right(answer),
            finish.reason, finish.prompt_tokens, len(finish.tokens), seconds,
            meter.steps, tuple(likeliest), tuple(tries), written_state(meter.hidden_state),
        )  # fmt: skip


class EndpointAsker:
    """A model behind an OpenAI-compatible endpoint, `http://HOST:PORT/v1`."""

    def __init__(self, base_url: str, model: str) -> None:
        self._client = httpx.Client(base_url=base_url, timeout=120)
        self._model = model

    def key(self, prompt: Prompt) -> str:
        """Of the model's name there; nothing more is known of it."""
        return _key(f"endpoint:{self._model}", prompt.messages())

    def ask(self, prompt: Prompt) -> Outcome:
        """Answer; of the steps nothing is known."""
        started = perf_counter()
        body = {
            "model": self._model,
            "messages": prompt.messages(),
            "max_tokens": MOST_TOKENS,
            "temperature": 0,
            "stop": "\n",
        }
        response = self._client.post("chat/completions", json=body).raise_for_status().json()
        choice, usage = response["choices"][0], response["usage"]
        answer = choice["message"]["content"] or ""
        return Outcome(
            self.key(prompt), self._model, prompt.family, prompt.level,
            prompt.split, prompt.seed, prompt.question, answer, prompt.right(answer),
            choice["finish_reason"], usage["prompt_tokens"], usage["completion_tokens"],
            perf_counter() - started, (), (),
        )  # fmt: skip


def _key(model: str, said: object) -> str:
    """Changes with the model, the question, and the examples and instruction before it."""
    text = json.dumps([model, said], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _likeliest(row: Logits) -> Likeliest:
    """The likeliest tokens and their log-probabilities, from logits float32 [vocab]."""
    found = np.argpartition(row, -_LIKELIEST)[-_LIKELIEST:]
    found = found[np.argsort(-row[found])]
    top = float(row[found[0]])
    total = top + float(np.log(np.exp(row - top).sum(dtype=np.float64)))
    return tuple((int(token), round(float(row[token]) - total, 6)) for token in found)
