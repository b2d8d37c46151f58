"""The command line `edgesdk`: a lazy group of subcommands, one file each.

The group is not in this file: importing `edgesdk.cli.list` would replace the name `list` here.
"""

from __future__ import annotations

from edgesdk.cli.command_group import main

__all__ = ["main"]
