"""`edgesdk bench`: measure how fast a model reads and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from edgesdk import __version__
from edgesdk.benchmark import SpeedResult, measure_speed, speed_tests
from edgesdk.cli.model_options import adapter_option, loaded_model, loading_options
from edgesdk.cli.output import message_console, print_json, result_console
from edgesdk.model import Model

_EPILOG = """\b
Examples:
  edgesdk bench smollm2-135m-instruct
  edgesdk bench ./my-bundle -p 128,512 -n 32 -d 0,2048
  edgesdk bench model.gguf -r 3 -o json

The names of the options, of the tests and of the fields in JSON are those of llama-bench.
"""


class TokenCounts(click.types.StringParamType):
    """Numbers of tokens, with commas between them."""

    name = "N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return [int(part) for part in value.split(",")]
        except ValueError:
            return self.fail(f"{value!r} is not a list of numbers, as 128,512.", param, ctx)


@click.command("bench", epilog=_EPILOG)
@click.argument("model")
@click.option(
    "-p",
    "--n-prompt",
    type=TokenCounts(),
    default="512",
    show_default=True,
    help="Tokens of prompts to read.",
)
@click.option(
    "-n",
    "--n-gen",
    type=TokenCounts(),
    default="128",
    show_default=True,
    help="Tokens of answers to write.",
)
@click.option(
    "-d",
    "--n-depth",
    type=TokenCounts(),
    default="0",
    show_default=True,
    help="Tokens that are in the KV cache already.",
)
@click.option(
    "-r",
    "--repetitions",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How often each is measured.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["md", "json"]),
    default="md",
    show_default=True,
    help="How to print the results.",
)
@loading_options
@adapter_option
def command(
    model: str,
    n_prompt: list[int],
    n_gen: list[int],
    n_depth: list[int],
    repetitions: int,
    output: str,
    device: str,
    allow_fallback: bool,
    context: int | None,
    threads: int | None,
    adapter: Path | None,
) -> None:
    """Measure how many tokens per second MODEL reads and writes.

    MODEL is a name in the store, a bundle folder or a .gguf file. The engine alone is measured, on
    drawn tokens: pp512 reads 512 at once, tg128 writes 128 one by one, and d1024 says that 1,024
    were there before. It is loaded with a context of as many tokens as that takes.
    """
    tests = speed_tests(n_prompt, n_gen, n_depth)
    longest = max(test.depth + test.num_tokens for test in tests)
    with loaded_model(
        model,
        device=device,
        allow_fallback=allow_fallback,
        context=context or longest + 1,
        threads=threads,
        adapter=adapter,
    ) as opened:
        results = list(measure_speed(opened, tests, repetitions=repetitions))
        if output == "json":
            print_json([_facts(opened) | result.figures() for result in results])
        else:
            _print_table(opened, results)


def _facts(model: Model) -> dict[str, Any]:
    info = model.runtime.engine.info
    return {
        "edgesdk": __version__,
        "model": model.name,
        "engine": info.name,
        "device": info.device,
        "placement": info.placement.figures(),
        "n_threads": info.threads,
    }


def _print_table(model: Model, results: list[SpeedResult]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("MODEL", "DEVICE", "TEST"):
        table.add_column(heading)
    table.add_column("TOKENS/S", justify="right")
    device = model.runtime.engine.info.placement.line()
    for result in results:
        speed = f"{result.mean:,.2f} ± {result.deviation:,.2f}"
        table.add_row(model.name, device, result.test.name, speed)
    result_console().print(table, soft_wrap=False)
    if model.runtime.engine.info.placement.in_software:
        message_console().print("It ran in software: these speeds say nothing of the device.")
