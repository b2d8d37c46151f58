"""The options that name one cloud: --cloud, --cloud-model and --cloud-key-env."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgesdk.cli.hybrid_config import cloud_config

if TYPE_CHECKING:
    from edgesdk.hybrid.cloud.endpoint import Cloud

_Command = TypeVar("_Command", bound=Callable[..., Any])


def cloud_options(command: _Command) -> _Command:
    """Add the options to a command; its parameters are cloud, cloud_model and cloud_key_env."""
    for option in (
        click.option(
            "--cloud-key-env", metavar="VAR", help="The environment variable with its API key."
        ),
        click.option("--cloud-model", metavar="NAME", help="The model at --cloud."),
        click.option(
            "--cloud",
            metavar="BASE_URL",
            help="An OpenAI-compatible endpoint, or a preset and a model there, as"
            " groq:llama-3.3-70b-versatile.",
        ),
    ):
        command = option(command)
    return command


def clouds_of(url: str | None, model: str | None, key_env: str | None) -> tuple[Cloud, ...]:
    """The cloud that the options name; none where there is none.

    Raises:
        click.UsageError: the options do not go together.
        InvalidOption: the URL is none, or the variable of the key is not set.
    """
    if url is None:
        for option, value in (("--cloud-model", model), ("--cloud-key-env", key_env)):
            if value is not None:
                raise click.UsageError(f"{option} goes with --cloud only.")
        return ()
    if model is None and "://" in url:
        raise click.UsageError("--cloud needs --cloud-model, the model's name there.")
    return tuple(table.endpoint() for table in cloud_config(url, model, key_env).cloud)
