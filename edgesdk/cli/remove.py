"""`edgesdk remove`: remove models from the store."""

from __future__ import annotations

import click

from edgesdk.cli.output import format_bytes, result_console
from edgesdk.store import Store
from edgesdk.store.layout import Kind

_EPILOG = """\b
Examples:
  edgesdk remove smollm2-135m-instruct
  edgesdk remove smollm2-135m-instruct --kind bundle

The files of an unfinished pull of that name are removed too.
"""


@click.command("remove", epilog=_EPILOG)
@click.argument("names", nargs=-1, required=True)
@click.option(
    "--kind",
    type=click.Choice(["bundle", "checkpoint"]),
    help="Which one, where a bundle and a checkpoint have the name.",
)
def command(names: tuple[str, ...], kind: Kind | None) -> None:
    """Remove models from the store."""
    store = Store()
    for name in names:
        removed = store.remove(name, kind)
        for entry in removed:
            size = format_bytes(entry.size)
            result_console().print(f"Removed {entry.name} ({entry.kind}, {size}).")
        if not removed:
            result_console().print(f"Removed the files of an unfinished pull of {name}.")
