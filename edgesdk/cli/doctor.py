"""`edgesdk doctor`."""

from __future__ import annotations

from dataclasses import asdict

import click

from edgesdk.cli.checks import run_checks
from edgesdk.cli.output import print_json, results
from edgesdk.store import Store

_EPILOG = """\b
Examples:
  edgesdk doctor
  edgesdk doctor --json

The exit code is 1 when something that every model needs is broken.
"""
_STYLES = {"ok": "green", "warn": "yellow", "missing": "red"}


@click.command("doctor", epilog=_EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(as_json: bool) -> int:
    """Say what works on this machine, what does not, and what to do about it."""
    checks = list(run_checks(Store()))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        out = results()
        for check in checks:
            out.print(f"{check.status:<8}", style=_STYLES[check.status], end="")
            out.print(f"{check.name:<17} {check.found}")
            if check.advice is not None:
                out.print(f"{'':<25} -> {check.advice}")
    return 1 if any(check.needed and check.status == "missing" for check in checks) else 0
