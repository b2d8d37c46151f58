"""Count greedy answers that differ from a fresh one when their KV cache comes from elsewhere.

    python -m benchmarks.quality.greedy_determinism MODEL... --prompts 50

MODEL is what `edgesdk.load` takes. Each prompt is answered in a new state: the fresh answer.
Then it is asked again after `reset()`, several at once, and with speculation ("lookup" is
the way that promises nothing); with a system message
whose KV cache comes from the disk; and in a decode state of the server's pool. A second turn is
asked of the chat itself, of a fork, of a restored chat, and of the server's pool, each against a
new chat with the same history. What is printed are the answers that differ, by way and model.
Of 50 prompts, SmolLM2-135M (onnxruntime 1.32, llama-cpp-python 0.3.36, 2 threads):

                reset  at once  lookup  next turn  forked  restored  disk  server
    ONNX int8       0        0       0          0       0         0
    ONNX int4       0        0       3          0       0         0
    GGUF Q4_1       0        0       0          0       0         0     0       0

The GGUF's row is the same with 1 thread and with 2.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import edgesdk
from edgesdk.generation.prefix_cache import PrefixCache
from edgesdk.model import Model
from edgesdk.server.state_pool import StatePool

_SUBJECTS = (
    "rivers",
    "bread",
    "the moon",
    "chess",
    "bees",
    "glass",
    "sleep",
    "maps",
    "salt",
    "wind",
)
_QUESTIONS = (
    "What is the best known fact about {}?",
    "Write two sentences about {} for a child of six years.",
    "Name three words that go with {}, one a line.",
    "Why do people care about {}? Give one reason, and say what speaks against it.",
    "I know nothing of {}. Where should I begin, and what may I leave out at first?",
)
_AT_ONCE = 4
_NEXT = "Say more."
_SYSTEM = {"role": "system", "content": "You answer briefly, kindly and in whole sentences. " * 8}
Ask = Callable[..., edgesdk.Reply]


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--prompts", "count", default=50, show_default=True, help="At most 50.")
@click.option("--max-tokens", default=24, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option(
    "--throughput", is_flag=True, help="Load with batch_invariant=False, as a server may."
)
def main(
    models: tuple[str, ...], count: int, max_tokens: int, threads: int, throughput: bool
) -> None:
    """See the module's text."""
    prompts = [text.format(subject) for text in _QUESTIONS for subject in _SUBJECTS][:count]
    for name in models:
        with edgesdk.load(
            name, threads=threads, context=1024, batch_invariant=not throughput
        ) as model:
            differing = compare(model, prompts, max_tokens)
        for way, number in differing.items():
            click.echo(f"{name}  {way:<14} {number:>3} of {len(prompts)} differ")


def compare(model: Model, prompts: list[str], max_tokens: int) -> Counter[str]:
    """How many answers differ from the fresh ones, by way."""

    def ask(respond: Ask, prompt: Any, speculate: Any = "off") -> tuple[int, ...]:
        reply = respond(prompt, temperature=0, max_tokens=max_tokens, speculate=speculate)
        return reply.tokens

    ways = ("reset", "at once", "speculated", "lookup", "next turn", "forked", "restored", "disk")
    ways += ("server",)
    differing = Counter(dict.fromkeys(ways, 0))
    states = StatePool(2)

    def serve(messages: list[dict[str, Any]]) -> tuple[int, ...]:
        options = {"temperature": 0, "max_tokens": max_tokens, "speculate": "off"}
        request = model.runtime.request(messages, options)
        state = states.take(model.runtime.engine, request.tokens)
        generation = model.runtime.generate(state, request)
        list(generation)
        states.release(model.runtime.engine, state)
        assert generation.finish is not None, "it ended"
        return generation.finish.tokens

    def from_disk(prompt: str, folder: Path) -> bool:
        cache = PrefixCache(folder, min_tokens=64)
        caching = Model("", replace(model.runtime, prefix_cache=cache), model.source)
        messages = [_SYSTEM, {"role": "user", "content": prompt}]
        caching.cache_prefix([_SYSTEM])
        return ask(caching.respond, messages) == ask(model.respond, messages)

    fresh = [ask(model.respond, prompt) for prompt in prompts]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        together = list(pool.map(lambda prompt: ask(model.respond, prompt), prompts))
    differing["at once"] = sum(a != b for a, b in zip(fresh, together, strict=True))
    for prompt, wanted in zip(prompts, fresh, strict=True):
        differing["speculated"] += ask(model.respond, prompt, "auto") != wanted
        differing["lookup"] += ask(model.respond, prompt, "lookup") != wanted
        with model.chat() as chat, tempfile.TemporaryDirectory() as folder:
            ask(chat.respond, prompt)
            chat.reset()
            differing["reset"] += ask(chat.respond, prompt) != wanted
            chat.save(Path(folder) / "chat")
            differing["disk"] += not from_disk(prompt, Path(folder) / "prefixes")
            history = [*chat.messages, {"role": "user", "content": _NEXT}]
            following = ask(model.respond, history)
            turns = (serve([{"role": "user", "content": prompt}]), serve(history))
            differing["server"] += turns != (wanted, following)
            with chat.fork() as fork:
                differing["forked"] += ask(fork.respond, _NEXT) != following
            with model.restore(Path(folder) / "chat") as restored:
                differing["restored"] += ask(restored.respond, _NEXT) != following
            differing["next turn"] += ask(chat.respond, _NEXT) != following
    states.close()
    return differing


if __name__ == "__main__":
    main()
