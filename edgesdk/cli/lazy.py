"""A click group whose subcommands are imported only when one of them is invoked."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class Subcommand:
    """Where a subcommand is ('module:attribute'), and the line that the group's help has of it."""

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

    def __init__(self, *args: Any, subcommands: Mapping[str, Subcommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._subcommands = subcommands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order in which a newcomer meets them."""
        return list(self._subcommands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand of that name."""
        found = self._subcommands.get(cmd_name)
        return None if found is None else found.load()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; an unknown name gets the nearest ones."""
        name = args[0]
        if name not in self._subcommands and not name.startswith("-"):
            from edgesdk.store.names import suggestion

            hint = suggestion(name, self._subcommands)
            raise click.UsageError(f"No such command {name!r}.{f' {hint}' if hint else ''}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help lines from the map: nothing is imported for them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.help) for name, found in self._subcommands.items()])
