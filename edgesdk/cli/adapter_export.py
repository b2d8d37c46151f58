"""`edgesdk export --adapter`: turn a LoRA that PEFT saved into an adapter for a bundle."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from edgesdk.bundle.opening import Bundle
from edgesdk.cli.output import format_bytes, print_json, result_console
from edgesdk.errors import BundleError, requires_extra
from edgesdk.loading import find
from edgesdk.store.reference import derive_name

_FITTING = {"checkpoint", "peft_folder", "name", "output", "force", "as_json"}
# What training programs call the folder of an adapter, which says nothing.
_PLAIN_NAMES = ("adapter", "lora", "peft", "checkpoint", "output")


def adapter_stem(peft_folder: Path) -> str:
    """The name of a PEFT folder, or of the one above where its own says nothing."""
    folder = peft_folder.resolve()
    return folder.parent.name if folder.name in _PLAIN_NAMES else folder.name


def refuse_bundle_options(context: click.Context) -> None:
    """Refuse options that say how a bundle is made.

    Raises:
        click.UsageError: one was given.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) == ParameterSource.COMMANDLINE
        if given and name not in _FITTING:
            raise click.UsageError(
                f"{parameter.opts[0]} is of bundles; --adapter writes an adapter for one."
            )


def export_adapter_for(
    bundle: str,
    peft_folder: Path,
    *,
    name: str | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write the adapter and report it.

    Args:
        bundle: a name in the store, or a folder.
        name: what the adapter is called; None for the PEFT folder's name.
        output: its folder; None for one in the current folder.

    Raises:
        BundleError: `bundle` is no bundle.
    """
    base = find(bundle)
    if not isinstance(base, Bundle):
        raise BundleError(
            f"{bundle} is a bare file, and adapters are for bundles.",
            hint=f"Export it first: edgesdk export {bundle} --format gguf.",
        )
    with requires_extra("export", needed_for="Exporting"):
        from edgesdk_export.adapters.export import AdapterJob, export_adapter
    chosen = derive_name(name or adapter_stem(peft_folder))
    destination = output or Path(f"{chosen}-for-{base.manifest.name}")
    adapter = export_adapter(AdapterJob(peft_folder, base.path, destination, chosen, replace=force))
    manifest = adapter.manifest
    if as_json:
        print_json({"path": str(adapter.path), **manifest.model_dump(mode="json")})
        return
    out = result_console()
    share = adapter.size / base.size
    out.print(
        f"{manifest.name}: an adapter of rank {manifest.rank} for {manifest.base.name},"
        f" {format_bytes(adapter.size)}, {share:.1%} of the bundle"
    )
    out.print(f"  path     {adapter.path}")
    out.print(f"  changes  {', '.join(manifest.targets)}")
