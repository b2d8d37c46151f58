"""Define the options that load a model and shape its answers, for `run` and `chat`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, get_args

import click

from edgesdk.cli.output import message_console
from edgesdk.engines.registry import AUTO, device_names
from edgesdk.loading import load
from edgesdk.model import Model
from edgesdk.options import OptionsKwargs, Speculation

_Command = TypeVar("_Command", bound=Callable[..., Any])


class DeviceName(click.types.StringParamType):
    """A device by the name in its record; the records are read when the command runs."""

    name = "device"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join([AUTO, *device_names()])}]"


_LOADING = (
    click.option(
        "--device",
        type=DeviceName(),
        default=AUTO,
        show_default=True,
        help="The device to run it on.",
    ),
    click.option("--context", type=int, help="Maximum number of tokens in the conversation."),
    click.option("--threads", type=int, help="CPU threads (default: one per physical core)."),
)
_DECODING = (
    click.option("--max-tokens", type=int, help="Maximum number of tokens in an answer."),
    click.option(
        "--temperature", type=float, help="0 (the default) always takes the most likely token."
    ),
    click.option(
        "--top-p",
        type=float,
        help="Sample among the most likely tokens that reach this probability together.",
    ),
    click.option("--top-k", type=int, help="Sample among this many of the most likely tokens."),
    click.option(
        "--min-p",
        type=float,
        help="Sample among tokens at least this likely, relative to the most likely one.",
    ),
    click.option("--seed", type=int, help="Make sampling repeatable."),
    click.option(
        "--speculate",
        type=click.Choice(get_args(Speculation)),
        help="Draft tokens and verify them together. auto (the default): only where the answer"
        " stays the same. lookup: also where a near tie may go the other way.",
    ),
    click.option("--stop", multiple=True, help="End before this text; can be given several times."),
)


def loading_options(command: _Command) -> _Command:
    """Add --device, --context and --threads."""
    for option in reversed(_LOADING):
        command = option(command)
    return command


def decoding_options(command: _Command) -> _Command:
    """Add the options that become `edgesdk.Options`; `option_kwargs` collects them."""
    for option in reversed(_DECODING):
        command = option(command)
    return command


def option_kwargs(given: dict[str, Any]) -> OptionsKwargs:
    """Collect the decoding options that were given; the others keep their defaults."""
    changes: OptionsKwargs = {}
    for name, value in given.items():
        if value not in (None, ()):
            changes[name] = value  # type: ignore[literal-required]  # click has the same names
    return changes


@contextmanager
def loaded_model(
    what: str, *, device: str, context: int | None, threads: int | None
) -> Iterator[Model]:
    """Open a model; a terminal shows that it is loading."""
    console = message_console()
    if console.is_terminal:
        with console.status(f"Loading {what} ..."):
            model = load(what, device=device, context=context, threads=threads)
    else:
        model = load(what, device=device, context=context, threads=threads)
    with model:
        yield model
