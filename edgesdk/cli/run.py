"""`edgesdk run`: answer one prompt."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from edgesdk.cli.model_options import (
    adapter_option,
    decoding_options,
    loaded_model,
    loading_options,
    option_kwargs,
    print_cut_note,
)
from edgesdk.cli.output import message_console, print_json
from edgesdk.cli.terminal import printable
from edgesdk.errors import InvalidOption, InvalidText
from edgesdk.generation.streaming import iterate_in_thread
from edgesdk.model import Model
from edgesdk.options import OptionsKwargs
from edgesdk.reply import ReplyPart, ReplyStream

_EPILOG = """\b
Examples:
  edgesdk run smollm2-135m-instruct "Name three rivers."
  edgesdk run ./my-bundle --temperature 0.7 --seed 1 "A poem about rain."
  git diff | edgesdk run model.gguf --system "Write a commit message." -
  edgesdk run smollm2-135m-instruct "Name a river." --json | jq -r .text
  edgesdk run ./my-bundle --adapter ./my-adapter "Name a river."
"""


@click.command("run", epilog=_EPILOG)
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", "-sys", "system", help="The system message.")
@decoding_options
@loading_options
@adapter_option
@click.option("--json", "as_json", is_flag=True, help="Print text and receipt as one JSON object.")
@click.option("--no-receipt", is_flag=True, help="Do not print the receipt on stderr.")
def command(
    model: str,
    prompt: str | None,
    system: str | None,
    device: str,
    allow_fallback: bool,
    context: int | None,
    threads: int | None,
    adapter: Path | None,
    as_json: bool,
    no_receipt: bool,
    **given: Any,
) -> None:
    """Answer one PROMPT with MODEL.

    MODEL is a name in the store, a bundle folder or a .gguf file. Without PROMPT, or with '-', the
    prompt is read from standard input. A model without a chat template goes on with the prompt as
    plain text.
    """
    text = _prompt(prompt)
    options = option_kwargs(given)
    with (
        loaded_model(
            model,
            device=device,
            allow_fallback=allow_fallback,
            context=context,
            threads=threads,
            adapter=adapter,
        ) as opened,
        _started(opened, text, system, options) as stream,
        contextlib.closing(iterate_in_thread(stream.parts())) as parts,
    ):
        if as_json:
            for _ in parts:
                pass
        else:
            _print(parts)
    reply = stream.reply
    if as_json:
        thought = {"reasoning": reply.reasoning} if reply.reasoning else {}
        print_json({"text": reply.text, **thought, "receipt": reply.receipt.figures()})
    elif not no_receipt:
        message_console().print(reply.receipt.line(), style="dim")
        print_cut_note(message_console(), reply, options)


def _started(model: Model, prompt: str, system: str | None, options: OptionsKwargs) -> ReplyStream:
    """Begin the answer; or the completion, where the model cannot chat."""
    encoder = model.runtime.encoder
    if encoder.template is not None:
        messages = [] if system is None else [{"role": "system", "content": system}]
        return model.stream([*messages, {"role": "user", "content": prompt}], **options)
    why = encoder.template_problem or "it has no chat template"
    if system is not None:
        raise InvalidOption(
            f"This model cannot chat: {why}.", hint="Put what --system says into the prompt."
        )
    message_console().print(
        f"This model cannot chat ({why}): it goes on with the prompt as plain text.", style="dim"
    )
    return model.stream_completion(prompt, **options)


def _prompt(given: str | None) -> str:
    if given not in (None, "-"):
        return str(given)
    if given is None and sys.stdin.isatty():
        raise click.UsageError("There is no prompt: give one, or pipe it in.")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidText(
            f"Standard input is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}.",
            hint="Convert it first, for example with iconv.",
        ) from None


def _print(parts: Iterable[ReplyPart]) -> None:
    """Print the answer; on a terminal its reasoning too, dimmed, as a remark."""
    shown = sys.stdout.isatty()
    show = printable if shown else str
    remarks = message_console()
    thinks = False
    try:
        for part in parts:
            if isinstance(part, str):
                if thinks:
                    remarks.print()
                    thinks = False
                sys.stdout.write(show(part))
                sys.stdout.flush()
            elif shown:
                remarks.print(printable(part.text), style="dim", end="")
                thinks = True
        sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has had enough, as `head` has. Python would complain at exit otherwise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
