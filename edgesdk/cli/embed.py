"""`edgesdk embed`: make vectors of texts."""

from __future__ import annotations

import json
import sys

import click

from edgesdk.embedding.loading import load_embedder

_EPILOG = """\b
Examples:
  edgesdk embed minilm "a text" "another text"
  edgesdk embed minilm --prompt query "what is a checkpoint?"
  edgesdk embed minilm < lines.txt

Each vector is a line of JSON. Without texts, each line of the standard input is one.
"""


@click.command("embed", epilog=_EPILOG)
@click.argument("model")
@click.argument("texts", nargs=-1)
@click.option("--prompt", help="The name of one of the model's prompts, put before each text.")
@click.option("--dimensions", type=click.IntRange(min=1), help="So many of the first numbers.")
@click.option("--truncate", is_flag=True, help="Cut texts that are too long.")
@click.option("--device", default="auto", show_default=True, help="Where to run the model.")
def command(
    model: str,
    texts: tuple[str, ...],
    prompt: str | None,
    dimensions: int | None,
    truncate: bool,
    device: str,
) -> None:
    """Make vectors of texts with a model that is for that."""
    given = list(texts) or sys.stdin.read().splitlines()
    with load_embedder(model, device=device) as embedder:
        vectors = embedder.embed(given, dimensions=dimensions, prompt=prompt, truncate=truncate)
    for vector in vectors:
        # As many digits as a float32 has.
        click.echo(json.dumps([float(f"{number:.9g}") for number in vector]))
