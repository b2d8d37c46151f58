"""Count greedy answers that differ from a fresh one when their KV cache comes from elsewhere.

    python -m benchmarks.quality.greedy_determinism MODEL... --prompts 50

MODEL is what `edgesdk.load` takes. Each prompt is answered in a new state: the fresh answer.
Then it is asked again after `reset()`, several at once, and with speculation; and a second turn is
asked of the chat itself, of a fork, and of a restored chat, each against a new chat with the same
history. What is printed are the answers that differ, by way and model. Of 50 prompts, SmolLM2-135M,
2 threads (onnxruntime 1.32, llama-cpp-python 0.3.36):

                reset  at once  speculated  next turn  forked  restored
    ONNX int8       0        0           0          0       0         0
    ONNX int4       0        0           3          0       0         0
    GGUF Q4_1       0       28           0         11      11        13
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

import edgesdk
from edgesdk.model import Model

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
Ask = Callable[..., edgesdk.Reply]


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--prompts", "count", default=50, show_default=True, help="At most 50.")
@click.option("--max-tokens", default=24, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(models: tuple[str, ...], count: int, max_tokens: int, threads: int) -> None:
    """See the module's text."""
    prompts = [text.format(subject) for text in _QUESTIONS for subject in _SUBJECTS][:count]
    for name in models:
        with edgesdk.load(name, threads=threads, context=1024) as model:
            differing = compare(model, prompts, max_tokens)
        for way, number in differing.items():
            click.echo(f"{name}  {way:<14} {number:>3} of {len(prompts)} differ")


def compare(model: Model, prompts: list[str], max_tokens: int) -> Counter[str]:
    """How many answers differ from the fresh ones, by way."""

    def ask(respond: Ask, prompt: Any, speculate: Any = "off") -> tuple[int, ...]:
        reply = respond(prompt, temperature=0, max_tokens=max_tokens, speculate=speculate)
        return reply.tokens

    differing = Counter(
        dict.fromkeys(("reset", "at once", "speculated", "next turn", "forked", "restored"), 0)
    )
    fresh = [ask(model.respond, prompt) for prompt in prompts]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        together = list(pool.map(lambda prompt: ask(model.respond, prompt), prompts))
    differing["at once"] = sum(a != b for a, b in zip(fresh, together, strict=True))
    for prompt, wanted in zip(prompts, fresh, strict=True):
        differing["speculated"] += ask(model.respond, prompt, "lookup") != wanted
        with model.chat() as chat, tempfile.TemporaryDirectory() as folder:
            ask(chat.respond, prompt)
            chat.reset()
            differing["reset"] += ask(chat.respond, prompt) != wanted
            chat.save(Path(folder) / "chat")
            history = [*chat.messages, {"role": "user", "content": _NEXT}]
            following = ask(model.respond, history)
            with chat.fork() as fork:
                differing["forked"] += ask(fork.respond, _NEXT) != following
            with model.restore(Path(folder) / "chat") as restored:
                differing["restored"] += ask(restored.respond, _NEXT) != following
            differing["next turn"] += ask(chat.respond, _NEXT) != following
    return differing


if __name__ == "__main__":
    main()
