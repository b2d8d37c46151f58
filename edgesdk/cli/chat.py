"""`edgesdk chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console

from edgesdk.chat import Chat
from edgesdk.cli.model_options import (
    adapter_option,
    decoding_options,
    loaded_model,
    loading_options,
    option_kwargs,
    print_cut_note,
    warm_start_option,
)
from edgesdk.cli.output import write_new_file
from edgesdk.cli.terminal import show_answer, terminal_without_echo
from edgesdk.errors import EdgeError
from edgesdk.generation.streaming import iterate_in_thread
from edgesdk.options import OptionsKwargs
from edgesdk.overflow import OverflowPolicy
from edgesdk.reply import ReplyStream

_EPILOG = """\b
Examples:
  edgesdk chat smollm2-135m-instruct
  edgesdk chat ./my-bundle --system "You are terse." --temperature 0.7
  edgesdk chat smollm2-135m-instruct --restore yesterday.chat
"""
_COMMANDS = {
    "/help": "show this",
    "/reset": "forget the conversation",
    "/system TEXT": "set the system message; without TEXT, remove it",
    "/save PATH": "write the conversation: .chat for --restore, .md for reading, else JSON",
    "/exit": "leave, as Ctrl-D does",
}
_HELP = "\n".join(
    [
        *(f"  {name:<13} {meaning}" for name, meaning in _COMMANDS.items()),
        "  Ctrl-C        stop the answer; the turn is then forgotten",
    ]
)


@click.command("chat", epilog=_EPILOG)
@click.argument("model")
@click.option("--system", "-sys", "system", help="The system message.")
@click.option(
    "--restore",
    type=click.Path(path_type=Path),
    help="Continue a conversation that /save wrote to a .chat file.",
)
@click.option(
    "--overflow",
    type=click.Choice(["error", "drop_oldest_turns", "summarize"]),
    default="error",
    show_default=True,
    help="What to do when the context is full.",
)
@decoding_options
@loading_options
@warm_start_option
@adapter_option
def command(
    model: str,
    system: str | None,
    restore: Path | None,
    overflow: OverflowPolicy,
    device: str,
    allow_fallback: bool,
    context: int | None,
    threads: int | None,
    warm_start: bool,
    adapter: Path | None,
    **given: Any,
) -> None:
    """Chat with MODEL: a name in the store, a bundle folder or a .gguf file."""
    if restore is not None and system is not None:
        raise click.UsageError("A restored conversation has its own --system message.")
    console = Console(markup=False, highlight=False, emoji=False)
    # Gives `input` line editing and the history of this session, where the system has it.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    with (
        loaded_model(
            model,
            device=device,
            allow_fallback=allow_fallback,
            context=context,
            threads=threads,
            warm_start=warm_start,
            adapter=adapter,
        ) as opened,
        (
            opened.chat(system, overflow=overflow)
            if restore is None
            else opened.restore(restore, overflow=overflow)
        ) as chat,
    ):
        info = opened.info
        console.print(
            f"{opened.name} on {info.placement} · /help for help, Ctrl-D to leave", style="dim"
        )
        _converse(console, chat, opened.name, option_kwargs(given))


def _converse(console: Console, chat: Chat, model: str, options: OptionsKwargs) -> None:
    while True:
        try:
            line = input("> " if console.is_terminal else "").strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print("\nCtrl-D or /exit leaves.", style="dim")
            continue
        try:
            if re.fullmatch(r"/[a-z]+", line.split(" ", 1)[0]):
                if not _run_command(console, chat, model, line):
                    return
            elif line:
                _answer(console, chat, line, options)
        except EdgeError as error:
            console.print(f"error: {error}", style="red")


def _run_command(console: Console, chat: Chat, model: str, line: str) -> bool:
    """Run a command such as /save; False ends the program."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name in ("/exit", "/quit"):
        return False
    if name == "/help":
        console.print(_HELP)
    elif name == "/reset":
        chat.reset()
        console.print("The conversation is forgotten.", style="dim")
    elif name == "/system":
        chat.system = rest or None
        console.print("Noted." if rest else "The system message is gone.", style="dim")
    elif name == "/save":
        _save(console, chat, model, rest)
    else:
        near = difflib.get_close_matches(name, [known.split()[0] for known in _COMMANDS], n=1)
        hint = f"Did you mean {near[0]}?" if near else "See /help."
        console.print(f"There is no command {name}. {hint}", style="red")
    return True


def _save(console: Console, chat: Chat, model: str, place: str) -> None:
    if not place:
        console.print("Say where: /save PATH", style="red")
        return
    path = Path(place).expanduser()
    if path.suffix.lower() == ".chat":
        chat.save(path)
    else:
        save_transcript(path, chat.messages, model=model)
    console.print(f"Saved to {path}", style="dim")


def _answer(console: Console, chat: Chat, line: str, options: OptionsKwargs) -> None:
    stream = chat.stream(line, **options)
    with (
        stream,
        _interruptible(stream),
        terminal_without_echo(),
        contextlib.closing(iterate_in_thread(stream.parts())) as parts,
    ):
        show_answer(console, parts)
    reply = stream.reply
    if reply.finish_reason == "cancelled":
        console.print("Stopped; this turn is forgotten.", style="dim")
    console.print(reply.receipt.line(), style="dim")
    print_cut_note(console, reply, options)
    console.print()


@contextlib.contextmanager
def _interruptible(stream: ReplyStream) -> Iterator[None]:
    """Let Ctrl-C stop the answer, and nothing else, while the block runs."""

    def stop(number: int, frame: FrameType | None) -> None:
        stream.cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def save_transcript(path: Path, messages: Sequence[Mapping[str, Any]], *, model: str) -> None:
    """Write a conversation: Markdown to a .md file, JSON to any other.

    Raises:
        RequestError: something stands at `path`, or it cannot be written.
    """
    text = _markdown(messages) if path.suffix.lower() == ".md" else _json(messages, model)
    write_new_file(path, [text])


def _json(messages: Sequence[Mapping[str, Any]], model: str) -> str:
    fields = {"model": model, "messages": list(messages)}
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def _markdown(messages: Sequence[Mapping[str, Any]]) -> str:
    parts = [f"## {message['role'].capitalize()}\n\n{message['content']}\n" for message in messages]
    return "\n".join(parts)
