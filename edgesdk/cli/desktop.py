"""`edgesdk desktop`: the chat in a window."""

from __future__ import annotations

from pathlib import Path

import click

from edgesdk.errors import requires_extra

_EPILOG = """\b
Examples:
  edgesdk desktop
  edgesdk desktop --data ./my-conversations
"""


@click.command("desktop", epilog=_EPILOG)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where conversations and settings are kept (default: the user's data folder).",
)
def command(data: Path | None) -> int:
    """Open the desktop chat: conversations with the models of the store, in a window."""
    with requires_extra("desktop", needed_for="The desktop chat"):
        from edgesdk_desktop.app import main
    return main(data)
