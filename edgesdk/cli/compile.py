"""`edgesdk compile`: compile a bundle for NPUs ahead of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgesdk.bundle.opening import Bundle
from edgesdk.cli.output import format_bytes, print_json, result_console, stage_progress_bar
from edgesdk.engines.base import LoadSettings
from edgesdk.engines.npu.compile_cache import Compilation, CompileCache
from edgesdk.engines.npu.compiling import compile_bundle, compiling_record, targets_named
from edgesdk.errors import EngineError
from edgesdk.loading import find
from edgesdk.system.resources import thread_count

_EPILOG = """\b
Examples:
  edgesdk compile my-model-npu --device qualcomm --soc 60,57
  edgesdk compile ./bundle --device qualcomm --soc 69 --output ./bundle/compiled
  edgesdk compile my-model-intel --device intel --platform 4000,5010
  edgesdk compile --list
  edgesdk compile --clear

What is compiled is kept on this machine, and the model's next start takes it from there. What lies
in the folder `compiled` of a bundle goes with the bundle to other machines.
"""


@click.command("compile", epilog=_EPILOG)
@click.argument("model", required=False)
@click.option("--device", help="The device whose provider compiles, such as qualcomm.")
@click.option(
    "--platform",
    "--soc",
    "platforms",
    help="The processors to compile for, by the provider's names, separated by commas.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep it in this folder (default: in the cache of this machine).",
)
@click.option("--list", "as_list", is_flag=True, help="List what is compiled.")
@click.option("--clear", is_flag=True, help="Remove what is compiled.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: str | None,
    device: str | None,
    platforms: str | None,
    output: Path | None,
    as_list: bool,
    clear: bool,
    as_json: bool,
) -> None:
    """Compile MODEL, a bundle, for NPUs, so that its first start there is quick."""
    cache = CompileCache(output)
    if as_list or clear:
        if model is not None or (as_list and clear):
            raise click.UsageError("--list and --clear stand alone.")
        if clear:
            _print_cleared(cache, as_json=as_json)
        else:
            _print_all(cache.entries(), as_json=as_json)
        return
    if model is None or device is None or platforms is None:
        raise click.UsageError("Give MODEL, --device and --platform; or --list, or --clear.")
    record = compiling_record(device)
    targets = targets_named(record, [name.strip() for name in platforms.split(",")])
    bundle = find(model)
    if not isinstance(bundle, Bundle):
        raise EngineError(f"{bundle} is not a bundle.", hint="Export the model to a bundle first.")
    settings = LoadSettings(device, thread_count(None))
    places = []
    with stage_progress_bar() as bar:
        for target in targets:
            bar.stage(f"Compiling for {target.line()}", 2)

            def advance(done: int, of: int) -> None:
                bar.advance(done)

            places.append(compile_bundle(bundle, record, target, settings, cache, advance))
    made = [entry for entry in cache.entries() if entry[0] in places]
    _print_all(sorted(made, key=lambda entry: places.index(entry[0])), as_json=as_json)


def _print_all(entries: list[tuple[Path, Compilation]], *, as_json: bool) -> None:
    if as_json:
        print_json([_figures(folder, entry) for folder, entry in entries])
        return
    out = result_console()
    for folder, entry in entries:
        key = entry.key
        out.print(
            f"{key.provider}, {key.platform}: {format_bytes(entry.size)}, model {key.model[:12]},"
            f" {', '.join(key.versions)}"
        )
        out.print(f"  path     {folder}")
    if not entries:
        out.print("Nothing is compiled.")


def _figures(folder: Path, entry: Compilation) -> dict[str, Any]:
    return {"path": str(folder), "size": entry.size, **entry.model_dump(mode="json")}


def _print_cleared(cache: CompileCache, *, as_json: bool) -> None:
    freed = cache.clear()
    if as_json:
        print_json({"freed": freed})
    else:
        result_console().print(f"{format_bytes(freed)} removed from {cache.folder}")
