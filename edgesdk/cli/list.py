"""`edgesdk list`: list the models in the store, or those that can be pulled."""

from __future__ import annotations

import click
from rich.table import Table

from edgesdk.cli.output import entry_fields, format_bytes, print_json, result_console
from edgesdk.store import Store
from edgesdk.store.download_plan import catalog

_EPILOG = """\b
Examples:
  edgesdk list
  edgesdk list --available
  edgesdk list --json
"""


@click.command("list", epilog=_EPILOG)
@click.option("--available", is_flag=True, help="List the known models that can be pulled.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def command(available: bool, as_json: bool) -> None:
    """List the models in the store."""
    if available:
        _list_catalog(as_json)
        return
    store = Store()
    entries = store.list()
    if as_json:
        print_json([entry_fields(entry) for entry in entries])
        return
    if not entries:
        result_console().print(f"The store at {store.root} is empty. See: edgesdk list --available")
        return
    table = _table("NAME", "KIND", "SIZE", "LICENCE", "SOURCE")
    for entry in entries:
        last = entry.source or "-" if entry.problem is None else f"damaged: {entry.problem}"
        size = format_bytes(entry.size)
        table.add_row(entry.name, entry.kind, size, entry.licence or "-", last)
    result_console().print(table, soft_wrap=False)


def _list_catalog(as_json: bool) -> None:
    models = catalog().values()
    if as_json:
        fields = [
            {"name": m.name, "summary": m.summary, "licence": m.licence, "size": m.size}
            | {"source": m.plan.source}
            for m in models
        ]
        print_json(fields)
        return
    table = _table("NAME", "SIZE", "LICENCE", "WHAT")
    for model in models:
        table.add_row(model.name, format_bytes(model.size), model.licence, model.summary)
    result_console().print(table, soft_wrap=False)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading == "SIZE" else "left",
            overflow="fold",
            no_wrap=heading != headings[-1],
        )
    return table
