"""Count answers that go in a cycle, and what `stop_on_repetition` makes of them.

    python -m benchmarks.quality.loops answer MODEL FILE --prompts FOLDER
    python -m benchmarks.quality.loops report MODEL FILE... --show

`answer` asks the 300 prompts of `loop_prompts` and lets all answers run on, to a limit of tokens;
FILE gets one JSON object a line, and a second run goes on where the first one stopped. `report`
reads them with the finder: an answer is the same with and without it up to where it is cut, so one
run shows both. An answer that ended by itself and would have been cut is a sound answer cut;
whether the others were rightly cut is for people to read (`--show`).

Greedy, one thread; prompts answered, at the limit without and with the finder, sound cut:

    SmolLM2-135M int8, limit 512    276   129    30   0
    SmolLM2-135M int4, limit 256    300   191   110   0
    SmolLM2-135M Q4_1 (GGUF), 256   300   165   126   0
    Qwen2.5-Coder-1.5B int4, 256    104    32    30   0
    Qwen2.5-Coder-1.5B int8, 256     62    21    21   0
    Qwen2.5-Coder-1.5B Q4_K_M, 256   44    12    11   0

With DRY (`--dry-multiplier 0.8`) the same GGUF leaves 3 cycles in 254 prompts to the finder, and
131 of them still run to the limit: DRY changes what is said over and over, it does not end it. So
no sampling is put in place of what a model's makers say; the finder ends cycles.

What stays at the limit is long, or goes in a cycle for too short a time to be sure within it.

Sampling options (`--temperature`, `--repetition-penalty`, `--dry-multiplier`) say what becomes of
the cycles under them.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import click

import edgesdk
from benchmarks.quality.loop_prompts import NUM_PROMPTS, ordinary_prompts
from edgesdk.generation.repetition import RepetitionFinder
from edgesdk.text.tokenizer import Tokenizer


@click.group()
def main() -> None:
    """See the module's text."""


@main.command()
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--prompts", "folder", type=click.Path(path_type=Path), required=True)
@click.option("--count", default=NUM_PROMPTS, show_default=True, help="Prompts to ask.")
@click.option("--max-tokens", default=256, show_default=True)
@click.option("--context", default=2048, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--temperature", type=float)
@click.option("--top-p", type=float)
@click.option("--repetition-penalty", type=float)
@click.option("--dry-multiplier", type=float)
def answer(
    model: str,
    file: Path,
    folder: Path,
    count: int,
    max_tokens: int,
    context: int,
    threads: int,
    **sampling: float | None,
) -> None:
    """Ask MODEL, and write its answers to FILE."""
    options: Any = {name: value for name, value in sampling.items() if value is not None}
    options = {"temperature": 0.0, **options, "seed": 1, "stop_on_repetition": False}
    done = len(file.read_text().splitlines()) if file.exists() else 0
    folder.mkdir(exist_ok=True, parents=True)
    prompts = ordinary_prompts(folder)[:count]
    with edgesdk.load(model, context=context, threads=threads) as opened, file.open("a") as out:
        for number, prompt in enumerate(prompts[done:], done):
            begun = perf_counter()
            reply = opened.respond(prompt, max_tokens=max_tokens, **options)
            entry = {
                "i": number,
                "messages": prompt,
                "reason": reply.finish_reason,
                "tokens": reply.tokens,
                "text": reply.text,
                "s": round(perf_counter() - begun, 2),
            }
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")
            out.flush()


@main.command()
@click.argument("model")
@click.argument("files", type=click.Path(path_type=Path, exists=True), nargs=-1)
@click.option("--show", is_flag=True, help="Print the end of each answer that is cut.")
def report(model: str, files: tuple[Path, ...], show: bool) -> None:
    """Read answers of MODEL, or of one with its tokenizer, and say what became of them."""
    with edgesdk.load(model, check_memory=False) as opened:
        tokenizer = opened.runtime.encoder.tokenizer
        for file in files:
            _report(file, tokenizer, show=show)


def _report(file: Path, tokenizer: Tokenizer, *, show: bool) -> None:
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    counts: Counter[str] = Counter()
    read, seconds = 0, 0.0
    for entry in entries:
        begun = process_time()
        num_read, num_left = _cut(entry, tokenizer)
        seconds += process_time() - begun
        read += num_read
        counts[entry["reason"]] += 1
        counts["tokens"] += len(entry["tokens"])
        counts["tokens with it"] += num_read
        if num_left is None:
            continue
        counts[f"{entry['reason']} cut"] += 1
        if show or entry["reason"] == "stop":
            left = b"".join(map(tokenizer.token_bytes, entry["tokens"][:num_left]))
            click.echo(
                f"--- {entry['i']} ({entry['reason']}), {num_left} of {num_read} tokens left"
            )
            click.echo(left.decode("utf-8", "replace")[-400:])
    click.echo(
        f"{file.stem}: {len(entries)} prompts; at the token limit {counts['length']} without,"
        f" {counts['length'] - counts['length cut']} with stop_on_repetition"
        f" ({counts['length cut']} ended as cycles); sound answers cut: {counts['stop cut']};"
        f" tokens decoded {counts['tokens']:,} and {counts['tokens with it']:,};"
        f" {seconds / max(read, 1) * 1e6:.0f} µs of CPU a token"
    )


def _cut(entry: dict[str, Any], tokenizer: Tokenizer) -> tuple[int, int | None]:
    """How many tokens are decoded, and how many are left of an answer that is cut."""
    finder = RepetitionFinder(tokenizer.token_bytes, question=entry["messages"][-1]["content"])
    for number, token in enumerate(entry["tokens"], 1):
        if finder.update(token):
            return number, number - finder.held
    return len(entry["tokens"]), None


if __name__ == "__main__":
    main()
