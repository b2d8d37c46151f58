"""The command group `edgesdk`: its subcommands, loaded when invoked, and its exit codes."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from edgesdk import __version__
from edgesdk.errors import EdgeError, InvalidOption


@dataclass(frozen=True)
class Subcommand:
    """A subcommand: where it is ('module:attribute'), and its line in the help of the group."""

    target: str
    help: str

    def load(self) -> click.Command:
        """Import it."""
        module, _, attribute = self.target.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if not isinstance(found, click.Command):
            raise TypeError(f"{self.target} is not a click command")
        return found


class LazyGroup(click.Group):
    """A group that knows its subcommands' names and help lines without importing them."""

    def __init__(
        self,
        *args: Any,
        subcommands: Mapping[str, Subcommand],
        aliases: Mapping[str, str],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._subcommands = subcommands
        self._aliases = aliases

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order in which a newcomer meets them."""
        return list(self._subcommands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand of that name."""
        found = self._subcommands.get(self._aliases.get(cmd_name, cmd_name))
        return None if found is None else found.load()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; an unknown name gets the nearest ones."""
        name = self._aliases.get(args[0], args[0])
        args = [name, *args[1:]]
        if name not in self._subcommands and not name.startswith("-"):
            from edgesdk.system.checks import suggestion

            hint = suggestion(name, self._subcommands)
            raise click.UsageError(f"No such command {name!r}.{f' {hint}' if hint else ''}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help lines from the map: nothing is imported for them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.help) for name, found in self._subcommands.items()])


_SUBCOMMANDS = {
    "pull": Subcommand("edgesdk.cli.pull:command", "Fetch a model into the store."),
    "list": Subcommand("edgesdk.cli.list:command", "List the models in the store."),
    "show": Subcommand("edgesdk.cli.show:command", "Show the details of a model."),
    "verify": Subcommand("edgesdk.cli.verify:command", "Check models against their hashes."),
    "remove": Subcommand("edgesdk.cli.remove:command", "Remove models from the store."),
    "export": Subcommand("edgesdk.cli.export:command", "Turn a checkpoint into a bundle."),
    "distill": Subcommand("edgesdk.cli.distill:command", "Train a small model on a big one."),
    "generate": Subcommand("edgesdk.cli.generate:command", "Have a cloud model write answers."),
    "flywheel": Subcommand("edgesdk.cli.flywheel:command", "Train on what was escalated."),
    "compile": Subcommand("edgesdk.cli.compile:command", "Compile a bundle for NPUs."),
    "package": Subcommand("edgesdk.cli.package:command", "Pack a bundle for an app on a phone."),
    "quality": Subcommand("edgesdk.cli.quality:command", "Measure the quality of bundles."),
    "bench": Subcommand("edgesdk.cli.bench:command", "Measure how fast a model is."),
    "eval": Subcommand("edgesdk.cli.eval:command", "Run benchmarks' tasks on a model."),
    "run": Subcommand("edgesdk.cli.run:command", "Answer one prompt."),
    "embed": Subcommand("edgesdk.cli.embed:command", "Make vectors of texts."),
    "chat": Subcommand("edgesdk.cli.chat:command", "Chat with a model."),
    "desktop": Subcommand("edgesdk.cli.desktop:command", "Chat in a window."),
    "fit": Subcommand("edgesdk.cli.fit:command", "Check whether a model fits this device."),
    "serve": Subcommand("edgesdk.cli.serve:command", "Serve models over OpenAI's HTTP API."),
    "ps": Subcommand("edgesdk.cli.ps:command", "List the models that a server has loaded."),
    "journal": Subcommand("edgesdk.cli.journal:command", "Show the decisions of a hybrid client."),
    "doctor": Subcommand("edgesdk.cli.doctor:command", "Check what works on this machine."),
}
# What users of ollama type by habit.
_ALIASES = {"ls": "list", "rm": "remove"}
_EXAMPLES = """\b
Examples:
  edgesdk pull smollm2-135m-instruct
  edgesdk export smollm2-135m-instruct
  edgesdk run smollm2-135m-instruct "Name three rivers."
  edgesdk chat smollm2-135m-instruct
"""


@click.command(
    cls=LazyGroup,
    subcommands=_SUBCOMMANDS,
    aliases=_ALIASES,
    epilog=_EXAMPLES,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="edgesdk")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def group(ctx: click.Context, debug: bool) -> None:
    """Run small language models on this device."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 the job failed, 2 wrong use, 130 interrupted."""
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    # Asked of the arguments, because an error may come before they are parsed.
    debug = "--debug" in arguments[: _first_word(arguments)]
    try:
        status = group.main(arguments, prog_name="edgesdk", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.UsageError as error:
        helper = f" See: {error.ctx.command_path} --help" if error.ctx is not None else ""
        message = error.format_message()
        stop = "" if message.endswith((".", "?")) else "."
        return _fail(f"{message}{stop}{helper}", 2, debug=debug)
    except click.ClickException as error:
        return _fail(error.format_message(), 1, debug=debug)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted.", 130, debug=debug)
    except InvalidOption as error:
        return _fail(str(error), 2, debug=debug)
    except EdgeError as error:
        return _fail(str(error), 1, debug=debug)
    except Exception as error:
        place = "" if debug else " Run it with 'edgesdk --debug' for the traceback."
        return _fail(f"{type(error).__name__}: {error}.{place}", 1, debug=debug)


def _first_word(arguments: list[str]) -> int:
    words = (i for i, argument in enumerate(arguments) if not argument.startswith("-"))
    return next(words, len(arguments))


def _fail(message: str, status: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"edgesdk: error: {' '.join(message.split())}", err=True)
    return status
