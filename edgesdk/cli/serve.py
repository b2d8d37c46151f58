"""`edgesdk serve`: serve models over OpenAI's HTTP API, with a cloud behind them or not."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import click

from edgesdk.cli.hybrid_config import (
    EXAMPLE,
    HybridConfig,
    cloud_config,
    hybrid_clients,
    read_hybrid_config,
)
from edgesdk.cli.model_options import loading_options, warm_start_option
from edgesdk.cli.output import message_console
from edgesdk.errors import requires_extra

_EPILOG = (
    """\b
Examples:
  edgesdk serve
  edgesdk serve ./my-bundle model.gguf --port 0
  EDGESDK_API_KEY=... edgesdk serve --host 0.0.0.0
  curl http://127.0.0.1:8080/v1/models
  edgesdk serve --cloud https://api.openai.com/v1 --cloud-model gpt-5-mini \\
      --cloud-key-env OPENAI_API_KEY
  edgesdk serve --config hybrid.toml

\b
An example of hybrid.toml; only [[cloud]] with url or preset, and model, is required:

\b
"""
    + "".join(f"  {line}\n" if line else "\n\b\n" for line in EXAMPLE.splitlines())
    + """
API keys are never in the file: api_key_env names an environment variable. Paths in the file are
relative to its folder.
"""
)
_BODY_LIMIT_WITH_MEDIA = 32 * 2**20


@click.command("serve", epilog=_EPILOG)
@click.argument("models", nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8080, show_default=True, help="The port; 0 takes any free one.")
@click.option(
    "--api-key",
    envvar="EDGESDK_API_KEY",
    help="The key that clients must send; better set as EDGESDK_API_KEY.",
)
@click.option(
    "--origin",
    "origins",
    multiple=True,
    help="A web origin whose pages may use the server, or '*' for all; can be given several times.",
)
@click.option("--max-models", default=2, show_default=True, help="Maximum of loaded models.")
@click.option(
    "--memory",
    type=click.FloatRange(min=0),
    help="Maximum of GB for all models, with the conversations of each full.",
)
@click.option(
    "--idle", default=300.0, show_default=True, help="Seconds until an unused model is unloaded."
)
@click.option("--parallel", default=4, show_default=True, help="Answers at once per model.")
@click.option(
    "--batch-invariant/--no-batch-invariant",
    default=True,
    show_default=True,
    help="A greedy answer never depends on the answers beside it. Without that, several at once are"
    " somewhat faster on llama.cpp. Always so with --parallel 1.",
)
@click.option("--queue", default=32, show_default=True, help="Maximum of waiting requests.")
@click.option("--deadline", default=600.0, show_default=True, help="Seconds for one request.")
@click.option(
    "--grace", default=30.0, show_default=True, help="Seconds to finish answers at shutdown."
)
@click.option(
    "--adapter",
    "adapters",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A folder of edgesdk export --adapter, served as MODEL:ADAPTER; can be given several"
    " times.",
)
@loading_options
@warm_start_option
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="A TOML file with clouds, privacy rules, budget and confidence; see below.",
)
@click.option(
    "--cloud",
    metavar="BASE_URL",
    help="An OpenAI-compatible endpoint that answers where the device is not sure, or a preset and"
    " a model there, as groq:llama-3.3-70b-versatile; the short way for a --config with one cloud.",
)
@click.option("--cloud-model", metavar="NAME", help="The model at --cloud.")
@click.option("--cloud-key-env", metavar="VAR", help="The environment variable with its API key.")
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
    batch_invariant: bool,
    queue: int,
    deadline: float,
    grace: float,
    adapters: tuple[Path, ...],
    device: str,
    allow_fallback: bool,
    context: int | None,
    threads: int | None,
    warm_start: bool,
    config_file: Path | None,
    cloud: str | None,
    cloud_model: str | None,
    cloud_key_env: str | None,
) -> None:
    """Serve models over OpenAI's HTTP API.

    The server has the models of the store, and MODELS: bundle folders or .gguf files. It prints its
    address as one line on standard output.

    With --config or --cloud, a cloud model answers the chat requests that the device is not sure
    of. The headers X-Edgesdk-Route and X-Edgesdk-Reason of an answer, and its field edgesdk, say
    who answered and why; in a stream the field is in one of the last chunks. A request can choose
    with the headers X-Edgesdk-Upload and X-Edgesdk-Prefer, or with its field edgesdk.
    """
    with requires_extra("server", needed_for="edgesdk serve"):
        from edgesdk.server.adapted_models import AdaptedModels
        from edgesdk.server.model_pool import StoreModels
        from edgesdk.server.serving import keep_memory_flat, serve
        from edgesdk.server.settings import ServerSettings
    config = _hybrid_config(config_file, cloud, cloud_model, cloud_key_env)
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
        body_limit=ServerSettings.body_limit if config is None else _BODY_LIMIT_WITH_MEDIA,
    )
    stored = StoreModels(
        models,
        device=device,
        allow_fallback=allow_fallback,
        context=context,
        threads=threads,
        warm_start=warm_start,
        batch_invariant=batch_invariant or parallel == 1,
        conversations=settings.parallel + settings.max_idle_states,
    )
    source = AdaptedModels(stored, adapters) if adapters else stored

    def on_start(url: str) -> None:
        click.echo(f"{url}/v1")
        sys.stdout.flush()
        message_console().print("Serving; stop with Ctrl-C.", style="dim")

    keep_memory_flat()
    with ExitStack() as opened:
        hybrid = None if config is None else hybrid_clients(config, opened)
        serve(source, settings, on_start=on_start, hybrid=hybrid)


def _hybrid_config(
    file: Path | None, cloud: str | None, model: str | None, key_env: str | None
) -> HybridConfig | None:
    if cloud is None:
        for option, value in (("--cloud-model", model), ("--cloud-key-env", key_env)):
            if value is not None:
                raise click.UsageError(f"{option} goes with --cloud only.")
        return None if file is None else read_hybrid_config(file)
    if file is not None:
        raise click.UsageError("--config has the clouds; leave --cloud out.")
    if model is None and "://" in cloud:
        raise click.UsageError("--cloud needs --cloud-model, the model's name there.")
    return cloud_config(cloud, model, key_env)
