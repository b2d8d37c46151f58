"""`edgesdk ps`: list the models that a server has loaded."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from edgesdk.cli.output import format_bytes, print_json, result_console
from edgesdk.errors import RequestError

_EPILOG = """\b
Examples:
  edgesdk ps
  edgesdk ps --url http://127.0.0.1:9090
"""
_SECONDS = 10.0


@click.command("ps", epilog=_EPILOG)
@click.option(
    "--url", default="http://127.0.0.1:8080", show_default=True, help="The address of the server."
)
@click.option("--api-key", envvar="EDGESDK_API_KEY", help="Its key; better set as EDGESDK_API_KEY.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def command(url: str, api_key: str | None, as_json: bool) -> None:
    """List the models that a server of edgesdk has in memory."""
    loaded = [model for model in _models(url.removesuffix("/v1"), api_key) if model.get("loaded")]
    if as_json:
        print_json(loaded)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NAME", "SIZE", "CONTEXT"):
        table.add_column(heading, justify="left" if heading == "NAME" else "right")
    for model in loaded:
        table.add_row(model["id"], format_bytes(model["size"]), f"{model['context_length']:,}")
    result_console().print(table, soft_wrap=False)


def _models(url: str, api_key: str | None) -> list[dict[str, Any]]:
    import httpx

    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    try:
        response = httpx.get(f"{url}/v1/models", headers=headers, timeout=_SECONDS)
        response.raise_for_status()
        found: list[dict[str, Any]] = response.json()["data"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise RequestError(
            f"{url} does not answer as a server of edgesdk: {error}",
            hint="Start one with edgesdk serve, or say where it is with --url.",
        ) from None
    return found
