"""`edgesdk fit`: compare what a model needs with the memory that is there."""

from __future__ import annotations

from dataclasses import asdict

import click

from edgesdk.cli.model_options import DeviceName
from edgesdk.cli.output import format_bytes, print_json, result_console
from edgesdk.engines.selection import AUTO
from edgesdk.loading import plan
from edgesdk.system.plan import Plan

_EPILOG = """\b
Examples:
  edgesdk fit smollm2-135m-instruct
  edgesdk fit ./my-bundle --context 8192
  edgesdk fit model.gguf --json

The exit code is 1 when the model does not fit with that context.
"""


@click.command("fit", epilog=_EPILOG)
@click.argument("model")
@click.option(
    "--context", type=int, help="Tokens of the conversation (default: the model's limit)."
)
@click.option(
    "--device",
    type=DeviceName(),
    default=AUTO,
    show_default=True,
    help="The device to run it on.",
)
@click.option("--threads", type=int, help="CPU threads (default: one per physical core).")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def command(
    model: str, context: int | None, device: str, threads: int | None, as_json: bool
) -> int:
    """Say whether MODEL fits into this device's memory, and the highest speed that is possible.

    MODEL is a name in the store, a bundle folder or a .gguf file. It is not loaded.
    """
    found = plan(model, context=context, device=device, threads=threads)
    if as_json:
        print_json(asdict(found) | {"need": asdict(found.need) | {"total": found.need.total}})
    else:
        _print(found)
    return 0 if found.fits else 1


def _print(found: Plan) -> None:
    out, need = result_console(), found.need
    rows = [
        ("context", f"{found.context:,} of {found.model_context:,} tokens"),
        ("weights", format_bytes(need.weights)),
        (
            "KV cache",
            f"{format_bytes(need.kv_cache)} ({format_bytes(found.kv_bytes_per_1000_tokens)}"
            " per 1,000 tokens)",
        ),
        ("scratch", format_bytes(need.scratch)),
        ("runtime", format_bytes(need.process + need.runtime)),
        ("in all", f"{format_bytes(need.total)}; {format_bytes(found.available)} available"),
        (
            "longest",
            f"{found.longest_context:,} tokens fit" if found.longest_context else "nothing fits",
        ),
        (
            "speed",
            f"at most {found.tokens_per_second:,.1f} tokens/s,"
            f" {found.tokens_per_second_full:,.1f} when the context is full (memory moves"
            f" {format_bytes(found.bandwidth)}/s)",
        ),
    ]
    verdict, style = ("it fits", "green") if found.fits else ("it does not fit", "red")
    out.print(verdict, style=style)
    for key, value in rows:
        out.print(f"  {key:<9} {value}")
