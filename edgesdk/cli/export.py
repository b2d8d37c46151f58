"""`edgesdk export`: turn a checkpoint into a bundle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import click

from edgesdk.bundle.manifest import BundleFormat
from edgesdk.bundle.opening import Bundle, is_bundle, open_bundle
from edgesdk.cli.adapter_export import adapter_stem, export_adapter_for, refuse_bundle_options
from edgesdk.cli.output import (
    format_bytes,
    message_console,
    print_json,
    result_console,
    stage_progress_bar,
)
from edgesdk.engines.devices import DEFAULT_TARGET, first_format, graph_for
from edgesdk.engines.registry import target_names
from edgesdk.errors import requires_extra
from edgesdk.store import Store, find_checkpoint
from edgesdk.store.reference import derive_name, is_model_name

_EPILOG = """\b
CHECKPOINT is a model that was pulled (see: edgesdk list), a folder with safetensors, or a .gguf.

\b
Examples:
  edgesdk export smollm2-135m-instruct
  edgesdk export smollm2-135m-instruct --bits 4
  edgesdk export ./my-finetune --name mine --text held-out.txt
  edgesdk export ./my-finetune --format gguf --type q4_k_m
  edgesdk export ./my-finetune --recipe my-recipe.toml
  edgesdk export ./some-falcon --via optimum
  edgesdk export smollm2-135m-instruct --target litert
  edgesdk export ./my-finetune --target npu --window 2048
  edgesdk export smollm2-135m-instruct --merge-adapter ./my-lora
  edgesdk export --adapter ./my-lora ./my-bundle

With --adapter, the argument is a bundle, and what is written is an adapter of some megabytes for it
(default: the folder ADAPTER-for-BUNDLE here). Load it with edgesdk run BUNDLE --adapter FOLDER.

Without --bits, models under 300 million parameters get 8 bits and larger ones 4. The quality is
measured against the checkpoint that came in, on the same tokens, and stored in the bundle.

An export that is stopped or killed can be resumed: the same command goes on from the last finished
layer. Any other export to the same place removes what was done.

A recipe is a TOML file that says how weights are stored. The bundle holds the recipe that was used,
as recipe.toml. --bits and --type overrule it.
"""


@click.command("export", epilog=_EPILOG)
@click.argument("checkpoint")
@click.option(
    "--format",
    "bundle_format",
    type=click.Choice(["onnx", "gguf", "coreml", "litert"]),
    help="What runs the bundle: onnxruntime, llama.cpp, Core ML, LiteRT (default: by the target).",
)
@click.option(
    "--target",
    type=click.Choice(target_names()),
    default=DEFAULT_TARGET,
    show_default=True,
    help="Where the bundle will run: a device, or a kind of them.",
)
@click.option(
    "--recipe",
    default="fast",
    show_default=True,
    help="How weights are stored: a recipe's name, or a .toml file.",
)
@click.option(
    "--bits",
    help="Bits per weight: 4, 8, 16 or 32; or, in ONNX with a recipe that calibrates, a budget for"
    " the whole model such as 5.5.",
)
@click.option(
    "--type",
    "gguf_type",
    help="A GGUF's type by llama-quantize's name, such as q4_k_m (instead of --bits).",
)
@click.option("--name", help="The bundle's name (default: the checkpoint's name and the bits).")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="A folder for the bundle (default: in the store, under its name).",
)
@click.option(
    "--via",
    type=click.Choice(["edgesdk", "optimum"]),
    default="edgesdk",
    show_default=True,
    help="Which exporter makes the graph; optimum knows more architectures.",
)
@click.option(
    "--calibration",
    "calibration_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A UTF-8 text for recipes that calibrate (default: text that the model generates).",
)
@click.option(
    "--window",
    type=click.IntRange(min=2),
    help="Targets with an NPU: tokens that a conversation may have (default: 1024).",
)
@click.option(
    "--prefill",
    type=click.IntRange(min=2),
    help="Targets with an NPU: tokens of a prompt that are computed at a time (default: 128).",
)
@click.option(
    "--text",
    "text_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A UTF-8 text to measure the quality on (default: reference prose from Python itself).",
)
@click.option(
    "--quality-tokens",
    type=click.IntRange(min=0),
    help="Tokens to measure on (0: do not measure; default: 8192, or 2048 for large models).",
)
@click.option(
    "--adapter",
    "peft_folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A LoRA that PEFT saved, to turn into an adapter for the bundle CHECKPOINT.",
)
@click.option(
    "--merge-adapter",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A LoRA that PEFT saved, to add to the checkpoint's weights before they are quantized.",
)
@click.option("--skip-existing", is_flag=True, help="Keep a bundle that is there already.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there already.")
@click.option("--json", "as_json", is_flag=True, help="Print the bundle's manifest as JSON.")
def command(
    checkpoint: str,
    bundle_format: BundleFormat | None,
    target: str,
    recipe: str,
    bits: str | None,
    gguf_type: str | None,
    name: str | None,
    output: Path | None,
    via: Literal["edgesdk", "optimum"],
    calibration_file: Path | None,
    window: int | None,
    prefill: int | None,
    text_file: Path | None,
    quality_tokens: int | None,
    peft_folder: Path | None,
    merge_adapter: Path | None,
    skip_existing: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Turn a checkpoint into a quantized bundle, and measure what that cost."""
    if peft_folder is not None:
        refuse_bundle_options(click.get_current_context())
        export_adapter_for(
            checkpoint, peft_folder, name=name, output=output, force=force, as_json=as_json
        )
        return
    store = Store()
    source, base, licence = find_checkpoint(store, checkpoint)
    bundle_format = bundle_format or first_format(target)
    scheme = scheme_of(bundle_format, recipe, bits, gguf_type)
    bundle_name = name or bundle_name_for(
        base, bundle_format, target, recipe, scheme, merge_adapter
    )
    destination = output or store.bundle_path(bundle_name)
    if skip_existing and is_bundle(destination):
        bundle = open_bundle(destination)
        message_console().print(f"{bundle.manifest.name} is here already: {destination}")
    else:
        with requires_extra("export", needed_for="Exporting"):
            from edgesdk_export.pipeline import ExportJob, export
            from edgesdk_export.quality.evaluation_text import text_from_file
            from edgesdk_export.recipes import load_recipe
        job = ExportJob(
            checkpoint=source,
            destination=destination,
            name=bundle_name if is_model_name(bundle_name) else derive_name(bundle_name),
            format=bundle_format,
            target=target,
            recipe=load_recipe(recipe),
            scheme=scheme,
            via=via,
            calibration_text=(
                None if calibration_file is None else text_from_file(calibration_file)
            ),
            text=None if text_file is None else text_from_file(text_file),
            quality_tokens=quality_tokens,
            window=window,
            prefill=prefill,
            licence=licence,
            merge_adapter=merge_adapter,
            replace=force,
        )
        try:
            with stage_progress_bar() as progress:
                bundle = export(job, progress)
        except KeyboardInterrupt:
            if via == "edgesdk":
                message_console().print("The same command goes on from the last finished layer.")
            raise
    report_bundle(bundle, as_json=as_json)


def scheme_of(
    bundle_format: BundleFormat, recipe: str, bits: str | None, gguf_type: str | None
) -> str | None:
    """The weights that take the place of the recipe's, if any."""
    if gguf_type is None:
        return None if bits is None else _weights_of(bundle_format, recipe, bits)
    if bundle_format != "gguf":
        raise click.UsageError("--type belongs to --format gguf.")
    if bits is not None:
        raise click.UsageError("--type says what --bits would; give one of them.")
    return gguf_type.lower()


def _weights_of(bundle_format: BundleFormat, recipe: str, bits: str) -> str:
    with requires_extra("export", needed_for="Exporting"):
        from edgesdk_export.recipes import weights_by_bits
    known = weights_by_bits(bundle_format)
    if bits in known:
        return known[bits]
    if bundle_format == "onnx" and recipe != "fast" and re.fullmatch(r"\d+(\.\d+)?", bits):
        return bits
    raise click.UsageError(
        f"--bits {bits} is none of {', '.join(known)}; a budget such as 5.5 needs --format onnx"
        " and a recipe that calibrates, such as --recipe best."
    )


def bundle_name_for(
    base: str,
    bundle_format: BundleFormat,
    target: str,
    recipe: str,
    scheme: str | None,
    merged: Path | None,
) -> str:
    """The bundle's name: the checkpoint's, then the adapter, the recipe, what runs it, and the
    weights."""
    endings = [] if merged is None else [derive_name(adapter_stem(merged))]
    endings += [] if recipe == "fast" else [derive_name(Path(recipe).stem)]
    # The types of a GGUF have names of their own; others share "int8" and "int4".
    if bundle_format not in ("onnx", "gguf") or (bundle_format == "gguf" and scheme is None):
        endings.append(bundle_format)
    if graph_for(target, bundle_format) != graph_for(DEFAULT_TARGET, bundle_format):
        endings += [target] if target not in endings else []
    if scheme is not None:
        endings.append(scheme)
    ending = "".join(f"-{part}" for part in endings)
    return base[: 96 - len(ending)] + ending


def report_bundle(bundle: Bundle, *, as_json: bool) -> None:
    manifest = bundle.manifest
    if as_json:
        print_json({"path": str(bundle.path), **manifest.model_dump(mode="json")})
        return
    stored = manifest.quantization
    out = result_console()
    out.print(
        f"{manifest.name}: {stored.weights}, {stored.bits_per_weight:.2f} bits per weight,"
        f" {format_bytes(bundle.size)}"
    )
    out.print(f"  path     {bundle.path}")
    for entry in stored.source_blocks:
        out.print(f"  blocks   {entry.line()}")
    quality = "not measured" if manifest.quality is None else manifest.quality.line()
    out.print(f"  quality  {quality}")
    for note in manifest.notes:
        out.print(f"  note     {note}")
