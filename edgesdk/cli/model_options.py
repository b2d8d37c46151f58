"""Define the options that load a model and shape its answers, for `run` and `chat`.

An answer on the command line ends after `MAX_TOKENS` tokens, unless --max-tokens says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from rich.console import Console

from edgesdk.cli.output import message_console
from edgesdk.engines.registry import device_names
from edgesdk.engines.selection import AUTO
from edgesdk.loading import load
from edgesdk.model import Model
from edgesdk.options import OptionsKwargs, Reasoning, Speculation
from edgesdk.reply import Reply

# Some pages: long answers fit, and one that never ends costs seconds or a minute, no hours.
MAX_TOKENS = 1024

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
        help="The device to run it on: one by name, hardware of a kind (npu, gpu, cpu), or any"
        " hardware (auto).",
    ),
    click.option(
        "--allow-fallback",
        is_flag=True,
        help="Let another device run it where that one cannot, and say so.",
    ),
    # The second names are llama.cpp's.
    click.option(
        "--context",
        "-c",
        "--ctx-size",
        "context",
        type=int,
        help="Maximum number of tokens in the conversation.",
    ),
    click.option(
        "--threads",
        "-t",
        "threads",
        type=int,
        help="CPU threads (default: one per physical core).",
    ),
)
_WARM_START = click.option(
    "--warm-start",
    is_flag=True,
    help="Where the device has to compile the model first, answer on the CPU meanwhile.",
)
_DECODING = (
    click.option(
        "--max-tokens",
        "-n",
        "--n-predict",
        "max_tokens",
        type=click.IntRange(min=-1),
        default=MAX_TOKENS,
        show_default=True,
        help="Maximum number of tokens in an answer; 0 or -1 for as many as the context holds.",
    ),
    click.option(
        "--temperature",
        "--temp",
        "temperature",
        type=float,
        help="0 always takes the most likely token (default: what the model recommends, or 0).",
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
    click.option("--seed", "-s", "seed", type=int, help="Make sampling repeatable."),
    click.option(
        "--repetition-penalty",
        "--repeat-penalty",
        "repetition_penalty",
        type=float,
        help="Above 1, make words less likely that the prompt or the answer has.",
    ),
    click.option(
        "--presence-penalty",
        type=float,
        help="Make words less likely that the answer has; from -2 to 2.",
    ),
    click.option(
        "--frequency-penalty",
        type=float,
        help="Make words less likely for each time that the answer has them; from -2 to 2.",
    ),
    click.option(
        "--dry-multiplier",
        type=float,
        help="Above 0, make words less likely that would go on with a repetition; 0.8 is usual.",
    ),
    click.option(
        "--stop-on-repetition/--no-stop-on-repetition",
        default=True,
        show_default=True,
        help="End an answer that goes in a cycle.",
    ),
    click.option(
        "--speculate",
        type=click.Choice(get_args(Speculation)),
        help="Draft tokens and verify them together. auto (the default): only where the answer"
        " stays the same. lookup: also where a near tie may go the other way.",
    ),
    click.option(
        "--reasoning",
        type=click.Choice(get_args(Reasoning)),
        help="Whether the model reasons before it answers, and how much (default: as it does by"
        " itself).",
    ),
    click.option(
        "--max-reasoning-tokens",
        type=click.IntRange(min=1),
        help="Close the reasoning after so many tokens.",
    ),
    click.option("--stop", multiple=True, help="End before this text; can be given several times."),
)


def loading_options(command: _Command) -> _Command:
    """Add --device, --allow-fallback, --context and --threads."""
    for option in reversed(_LOADING):
        command = option(command)
    return command


def warm_start_option(command: _Command) -> _Command:
    """Add --warm-start, for commands that last longer than one answer: the end of the process ends
    the compiling."""
    return _WARM_START(command)


def adapter_option(command: _Command) -> _Command:
    """Add --adapter."""
    return click.option(
        "--adapter",
        type=click.Path(path_type=Path),
        help="A folder of edgesdk export --adapter, which changes the model's answers.",
    )(command)


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
    # 0 and -1 stand for no limit.
    changes["max_tokens"] = given["max_tokens"] if given["max_tokens"] > 0 else None
    return changes


def print_cut_note(console: Console, reply: Reply, options: OptionsKwargs) -> None:
    """Tell the user where an answer was ended before its end, and how to get more."""
    no_answer = reply.receipt.ended_in_reasoning
    if reply.finish_reason == "repetition":
        note = (
            "The answer went in a cycle and was ended. Ask otherwise, use a larger model, or see"
            " --dry-multiplier, --repetition-penalty and --no-stop-on-repetition."
        )
    elif reply.finish_reason != "length":
        if not no_answer:
            return
        note = "The model ended the answer."
    elif len(reply.tokens) == options["max_tokens"]:
        note = (
            f"The answer was cut after {len(reply.tokens):,} tokens; --max-tokens allows more"
            " (0: as many as the context holds)."
        )
    else:
        note = "The answer was cut because the context is full; --context may allow more."
    if no_answer:
        note += (
            " It ended in its reasoning: --max-reasoning-tokens closes that, --reasoning off leaves"
            " it out, where the model can."
        )
    console.print(note, style="yellow")


@contextmanager
def loaded_model(
    what: str,
    *,
    device: str,
    allow_fallback: bool,
    context: int | None,
    threads: int | None,
    warm_start: bool = False,
    adapter: Path | None = None,
) -> Iterator[Model]:
    """Open a model; a terminal shows that it is loading. Who asked for a device and got another is
    told so."""
    console = message_console()
    loading = console.status(f"Loading {what} ...") if console.is_terminal else nullcontext()
    with loading:
        model = load(
            what,
            device=device,
            allow_fallback=allow_fallback,
            context=context,
            threads=threads,
            warm_start=warm_start,
            adapter=adapter,
        )
    with model:
        if device != AUTO and model.device.passed_over:
            console.print(f"Runs on {model.device}", style="yellow")
        yield model
