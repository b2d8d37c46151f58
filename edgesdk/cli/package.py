"""`edgesdk package`: pack a bundle into the one file that an app on a phone opens."""

from __future__ import annotations

from pathlib import Path

import click

from edgesdk.cli.output import format_bytes, result_console
from edgesdk.errors import RequestError, requires_extra
from edgesdk.loading import find

_EPILOG = """\b
Example:
  edgesdk export smollm2-135m-instruct --target litert
  edgesdk package smollm2-135m-instruct-litert --output smollm2.litertlm
"""


@click.command("package", epilog=_EPILOG)
@click.argument("model")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The file to write; its name ends in .litertlm.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there already.")
def command(model: str, output: Path, force: bool) -> None:
    """Pack MODEL, a bundle that was exported for LiteRT, into a .litertlm for LiteRT-LM."""
    if output.suffix != ".litertlm":
        raise RequestError(f"{output} does not end in .litertlm.", hint="Name another file.")
    if output.exists() and not force:
        raise RequestError(f"{output} exists already.", hint="Pass --force to replace it.")
    bundle = find(model)
    if isinstance(bundle, Path):
        raise RequestError(f"{bundle} is not a bundle.", hint="Export it with --target litert.")
    with requires_extra("litert", needed_for="Packaging for LiteRT-LM"):
        from edgesdk_export.litert.package import write_litertlm
    write_litertlm(bundle, output)
    result_console().print(f"{output}  {format_bytes(output.stat().st_size)}")
