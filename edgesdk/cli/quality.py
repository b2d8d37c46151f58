"""`edgesdk quality`: measure what quantizing bundles cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgesdk.bundle.opening import Bundle, is_bundle, open_bundle
from edgesdk.cli.output import format_bytes, print_json, result_console, stage_progress_bar
from edgesdk.errors import requires_extra
from edgesdk.store import Store, find_checkpoint

if TYPE_CHECKING:
    from edgesdk_export.quality.report import BundleQuality

_EPILOG = """\b
BUNDLES are names in the store or folders, ONNX and GGUF alike. CHECKPOINT is what `edgesdk export`
takes: a model that was pulled, a folder with safetensors, or a .gguf.

\b
Examples:
  edgesdk quality tiny-int4 --against tiny
  edgesdk quality ./mine --against ./my-finetune --text held-out.txt --json
  edgesdk quality tiny-int4 tiny-int8 tiny-q4_k_m --against tiny --plot tiny.png

All are measured on the same tokens: the KL divergence from the checkpoint in nats per token, the
share of tokens where both rank the same one first, and the perplexity of both with its standard
error. ONNX weights run through the kernels that an app will use. The weights of a GGUF are
dequantized and run in float32, so the further rounding of llama.cpp is not counted.

The plot needs the extra `plot`. It has two parts: KL divergence by layer (the states after it, read
with the checkpoint's final norm and head), and bits per weight against KL divergence.
"""


@click.command("quality", epilog=_EPILOG)
@click.argument("bundles", nargs=-1, required=True)
@click.option("--against", "checkpoint", required=True, help="The checkpoint to compare with.")
@click.option(
    "--text",
    "text_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A UTF-8 text (default: reference prose from Python itself).",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=2),
    default=8192,
    show_default=True,
    help="Tokens to measure on.",
)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw a picture into this .png file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(
    bundles: tuple[str, ...],
    checkpoint: str,
    text_file: Path | None,
    tokens: int,
    plot_file: Path | None,
    as_json: bool,
) -> None:
    """Measure what quantizing BUNDLES cost."""
    if plot_file is not None and plot_file.suffix.lower() != ".png":
        raise click.UsageError(f"--plot draws a .png file, not {plot_file.name}.")
    store = Store()
    opened = [_open(store, name) for name in bundles]
    source, _, _ = find_checkpoint(store, checkpoint)
    with requires_extra("export", needed_for="Measuring quality"):
        from edgesdk_export.quality.evaluation_text import default_text, text_from_file
        from edgesdk_export.quality.plot import draw_quality, require_plotting
        from edgesdk_export.quality.report import measure_bundles
    if plot_file is not None:
        require_plotting()
    text = default_text() if text_file is None else text_from_file(text_file)
    with stage_progress_bar() as stages:
        started = False

        def steps(done: int, total: int) -> None:
            nonlocal started
            if not started:
                stages.stage("Measuring quality", total)
                started = True
            stages.advance(done)

        measured = measure_bundles(opened, source, text, tokens=tokens, progress=steps)
    if plot_file is not None:
        draw_quality(measured, plot_file)
    if as_json:
        print_json([_fields(entry) for entry in measured])
    else:
        _report(measured, plot_file)


def _open(store: Store, name: str) -> Bundle:
    folder = Path(name)
    if is_bundle(folder) or (folder.is_dir() and len(folder.parts) > 1):
        return open_bundle(folder)
    return open_bundle(store.get(name, "bundle").path)


def _fields(entry: BundleQuality) -> dict[str, Any]:
    manifest = entry.bundle.manifest
    return {
        "name": manifest.name,
        "path": str(entry.bundle.path),
        "format": manifest.format,
        "weights": manifest.quantization.weights,
        "bits_per_weight": manifest.quantization.bits_per_weight,
        "size": entry.bundle.size,
        "quality": entry.quality.model_dump(mode="json"),
        "kl_by_layer": list(entry.kl_by_layer),
    }


def _report(measured: list[BundleQuality], plot_file: Path | None) -> None:
    out = result_console()
    for entry in measured:
        manifest = entry.bundle.manifest
        out.print(
            f"{manifest.name}: {manifest.format}, {manifest.quantization.weights},"
            f" {manifest.quantization.bits_per_weight:.2f} bits per weight,"
            f" {format_bytes(entry.bundle.size)}"
        )
        out.print(f"  quality  {entry.quality.line()}")
    if plot_file is not None:
        out.print(f"plot: {plot_file}")
