"""`edgesdk generate`: have a cloud model write answers to a file of prompts, to train on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgesdk.cli.cloud_options import cloud_options, clouds_of
from edgesdk.cli.output import message_console, print_json, result_console, stage_progress_bar
from edgesdk.errors import requires_extra
from edgesdk.hybrid.cloud.spending import SpendingLimits

_EPILOG = """\b
PROMPTS are .jsonl files. A line is {"prompt": "..."} or {"messages": [...]}, with "answer" where
the right one is known.

\b
Examples:
  edgesdk generate prompts.jsonl --cloud groq:llama-3.3-70b-versatile --output answers.jsonl
  edgesdk generate math.jsonl --cloud http://127.0.0.1:8000/v1 --cloud-model big --best-of 4 \\
      --output math-answers.jsonl
  edgesdk distill ./small answers.jsonl --output student

Each answer is kept in OUTPUT.db as soon as it is there. Where the endpoint dies, the budget is
spent or you stop it, the same command goes on from there and asks for nothing twice. Prompts that
say nearly the same are asked once. They are sent as they are, with whatever is private in them.
"""


@click.command("generate", epilog=_EPILOG)
@click.argument(
    "prompts",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
)
@cloud_options
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="A .jsonl for the answers, which edgesdk distill takes.",
)
@click.option(
    "--best-of",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Answers to a prompt, until one is right; the best is taken.",
)
@click.option(
    "--verifier",
    help="module:function that scores an answer from 0 to 1, called with the line and the answer"
    ' (default: whether it says the same as "answer").',
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Of an answer.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    help="Of sampling (default: 0, and 0.8 with --best-of).",
)
@click.option(
    "--parallel", type=click.IntRange(min=1), default=8, show_default=True, help="Requests at once."
)
@click.option(
    "--money-per-day",
    type=click.FloatRange(min=0),
    help="Most to spend in 24 hours, in the currency of the endpoint's prices.",
)
@click.option("--tokens-per-day", type=click.IntRange(min=0), help="Likewise, of tokens.")
@click.option(
    "--with-reasoning", is_flag=True, help="Put the endpoint's reasoning into the answers."
)
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as JSON.")
def command(
    prompts: tuple[Path, ...],
    cloud: str | None,
    cloud_model: str | None,
    cloud_key_env: str | None,
    output: Path,
    best_of: int,
    verifier: str | None,
    max_tokens: int,
    temperature: float | None,
    parallel: int,
    money_per_day: float | None,
    tokens_per_day: int | None,
    with_reasoning: bool,
    as_json: bool,
) -> None:
    """Have a cloud model write answers to PROMPTS."""
    with requires_extra("distill", needed_for="Generating"):
        from edgesdk_export.distill.generation import GenerationJob, generate
        from edgesdk_export.distill.verifiers import verifier_named
    clouds = clouds_of(cloud, cloud_model, cloud_key_env)
    if not clouds:
        raise click.UsageError("--cloud names who is asked.")
    limits = None
    if money_per_day is not None or tokens_per_day is not None:
        limits = SpendingLimits(money_per_day=money_per_day, tokens_per_day=tokens_per_day)
    if temperature is None:
        temperature = 0.8 if best_of > 1 else 0.0
    job = GenerationJob(
        prompts,
        output,
        clouds,
        answers=best_of,
        verifier=None if verifier is None else verifier_named(verifier),
        max_tokens=max_tokens,
        temperature=temperature,
        parallel=parallel,
        limits=limits,
        with_reasoning=with_reasoning,
    )
    try:
        with stage_progress_bar() as progress:
            found = generate(job, progress)
    except KeyboardInterrupt:
        message_console().print("What was answered is kept; the same command goes on from there.")
        raise
    if as_json:
        print_json(asdict(found) | {"path": str(found.path)})
        return
    left_out = {"near duplicates": found.repeated, "wrong": found.wrong, "cut": found.incomplete}
    words = ", ".join(f"{count} {name}" for name, count in left_out.items() if count)
    rest = f"; left out: {words}" if words else ""
    result_console().print(f"{found.path}: {found.samples:,} answers{rest}")
