"""`edgesdk serve`: serve models over OpenAI's HTTP API."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

import click

from edgesdk.cli.cloud_options import cloud_options
from edgesdk.cli.clouds import CloudChoices
from edgesdk.cli.model_options import loading_options
from edgesdk.cli.output import message_console
from edgesdk.errors import MissingExtra

_EPILOG = """\b
Examples:
  edgesdk serve
  edgesdk serve ./my-bundle model.gguf --port 0
  EDGESDK_API_KEY=... edgesdk serve --host 0.0.0.0
  curl http://127.0.0.1:8080/v1/models
  edgesdk serve --cloud https://api.openai.com/v1 --cloud-model gpt-5-mini \\
      --cloud-key-env OPENAI_API_KEY --cloud-price 0.25,2 --budget money_per_day=1
"""


_WITH_MEDIA = 32 * 2**20


@click.command("serve", epilog=_EPILOG)
@click.argument("models", nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8080, show_default=True, help="0 for any that is free.")
@click.option(
    "--api-key",
    envvar="EDGESDK_API_KEY",
    help="What clients must present; better given as EDGESDK_API_KEY.",
)
@click.option("--origin", "origins", multiple=True, help="Web origin that may use the server.")
@click.option("--max-models", default=2, show_default=True, help="Most models loaded at once.")
@click.option("--memory", type=click.FloatRange(min=0), help="Most GB that models may take.")
@click.option("--idle", default=300.0, show_default=True, help="Seconds until a model is unloaded.")
@click.option("--parallel", default=4, show_default=True, help="Answers at once, by model.")
@click.option("--queue", default=32, show_default=True, help="Most requests that wait.")
@click.option("--deadline", default=600.0, show_default=True, help="Seconds for a request.")
@click.option("--grace", default=30.0, show_default=True, help="Seconds for answers at the end.")
@loading_options
@cloud_options
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    api_key: str | None,
    origins: tuple[str, ...],
    max_models: int,
    memory: float | None,
    idle: float,
    parallel: int,
    queue: int,
    deadline: float,
    grace: float,
    device: str,
    context: int | None,
    threads: int | None,
    **cloud_given: Any,
) -> None:
    """Serve models over OpenAI's HTTP API.

    The store's models are served, and MODELS: bundle folders or .gguf files. The server's address
    is the line on standard output.

    With --cloud, chat requests that the device is not sure of are answered there. Who answered, and
    why, is in the headers X-Edgesdk-Route and X-Edgesdk-Reason and in the answer's field edgesdk,
    in a stream that of its last chunks. The headers X-Edgesdk-Upload and X-Edgesdk-Prefer of a
    request, or its field edgesdk, choose for that request.
    """
    try:
        from edgesdk.server.model_sources import StoreModels
        from edgesdk.server.serving import keep_memory_flat, serve
        from edgesdk.server.settings import ServerSettings
    except ModuleNotFoundError as error:
        raise MissingExtra(
            str(error.name).partition(".")[0], extra="server", needed_for="edgesdk serve"
        ) from None
    settings = ServerSettings(
        host=host,
        port=port,
        api_key=api_key,
        origins=origins,
        max_models=max_models,
        memory_limit=None if memory is None else int(memory * 1e9),
        idle_seconds=idle,
        parallel=parallel,
        queue=queue,
        deadline=deadline,
        grace=grace,
        # Pictures and files are for the cloud.
        body_limit=_WITH_MEDIA if cloud_given["clouds"] else ServerSettings.body_limit,
    )
    source = StoreModels(models, device=device, context=context, threads=threads)

    def on_start(url: str) -> None:
        click.echo(f"{url}/v1")
        sys.stdout.flush()
        message_console().print("Serving; stop with Ctrl-C.", style="dim")

    keep_memory_flat()
    with ExitStack() as opened:
        hybrid = CloudChoices(**cloud_given).setup(opened)
        serve(source, settings, on_start=on_start, hybrid=hybrid)
