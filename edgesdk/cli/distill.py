"""`edgesdk distill`: train a small model on what a big one says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgesdk.bundle.manifest import BundleFormat
from edgesdk.bundle.opening import Bundle
from edgesdk.cli.cloud_options import cloud_options, clouds_of
from edgesdk.cli.export import (
    bundle_name_for,
    report_bundle,
    scheme_of,
)
from edgesdk.cli.output import print_json, result_console, stage_progress_bar
from edgesdk.engines.devices import DEFAULT_TARGET
from edgesdk.errors import requires_extra
from edgesdk.store import Store, find_checkpoint

if TYPE_CHECKING:
    from edgesdk_export.distill.run import Distilled

_EPILOG = """\b
CHECKPOINT is what the student is, or is cut from: a model that was pulled, a folder with
safetensors, or a .gguf. DATA are .txt files, one document each, and .jsonl files whose lines are
{"text": ...}, {"prompt": ..., "answer": ...} or {"messages": [...]}.

\b
Examples:
  edgesdk distill smollm2-135m-instruct notes.txt --layers 20 --output student
  edgesdk distill ./small chats.jsonl --teacher ./big-bundle --recipe mine.toml --output student
  edgesdk distill ./small notes.txt --cloud http://127.0.0.1:8000/v1 --cloud-model big \
      --output student
  edgesdk distill ./small notes.txt --output student --export onnx --export gguf --bits 4

The teacher is the checkpoint itself unless --teacher names another one: a checkpoint, a bundle or a
.gguf with the same vocabulary. --cloud names an endpoint that gives the log-probabilities of a text
(vLLM, llama-cpp-python's server); the texts are sent there as they are. The teacher's answers are
kept, so that it reads each text once. The result is an ordinary checkpoint, with a report:
distillation.html, and distillation.json for programs. A run that was stopped goes on from its last
checkpoint when the same command is given again.

\b
A recipe is a TOML file. Its keys and what they are by default:
  [student]   layers, heads, kv_heads, channels (all), vocabulary = "whole",
              measured_sequences = 8
  [data]      max_length = 512, held_out = 0.05
  [training]  loss = "forward_kl" (or reverse_kl, jensen_shannon, skewed_kl, skewed_reverse_kl),
              teacher_tokens = 64, cross_entropy = 0.0, on_policy = 0.0, sampled_tokens = 64,
              cross_entropy_end, on_policy_end (as at the start), hidden_states = 0.0,
              steps = 500, batch = 8, micro_batch = 4, learning_rate = 2e-4, warmup = 0.05,
              lora_rank = 0, save_every = 100, seed = 0, bfloat16 (where that is faster)
  [quantize]  weights (none; "int4-128", "q4_0", ...), scales = "float32", embedding = "auto",
              train = "weights" (or "scales"), start = "nearest" (or "calibrated")
"""


@click.command("distill", epilog=_EPILOG)
@click.argument("checkpoint")
@click.argument(
    "data", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="A folder for the student."
)
@click.option(
    "--teacher", type=click.Path(path_type=Path, exists=True), help="Who teaches, if another model."
)
@cloud_options
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A .toml file that says how.",
)
@click.option("--layers", type=click.IntRange(min=1), help="Layers that the student keeps.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of training.")
@click.option(
    "--export",
    "bundle_formats",
    type=click.Choice(["onnx", "gguf"]),
    multiple=True,
    help="Make a bundle of the student too, in the store; may be given twice.",
)
@click.option("--bits", help="Bits per weight of these bundles, as of edgesdk export.")
@click.option("--force", is_flag=True, help="Replace a folder that is there already.")
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON.")
def command(
    checkpoint: str,
    data: tuple[Path, ...],
    output: Path,
    teacher: Path | None,
    cloud: str | None,
    cloud_model: str | None,
    cloud_key_env: str | None,
    recipe_file: Path | None,
    layers: int | None,
    steps: int | None,
    bundle_formats: tuple[BundleFormat, ...],
    bits: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Train a student on what a teacher says about DATA."""
    # Read when the libraries are imported; their bars would be drawn into ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with requires_extra("distill", needed_for="Distilling"):
        from edgesdk_export.distill.recipe import DistillRecipe, read_training_recipe
        from edgesdk_export.distill.report import add_bundles, measure_bundle
        from edgesdk_export.distill.run import DistillJob, distill
    recipe = DistillRecipe()
    if recipe_file is not None:
        recipe = read_training_recipe(recipe_file, DistillRecipe)
    if layers is not None:
        student = recipe.student.model_copy(update={"layers": layers})
        recipe = recipe.model_copy(update={"student": student})
    if steps is not None:
        training = recipe.training.model_copy(update={"steps": steps})
        recipe = recipe.model_copy(update={"training": training})
    clouds = clouds_of(cloud, cloud_model, cloud_key_env)
    if clouds and teacher is not None:
        raise click.UsageError("--teacher and --cloud name a teacher each; give one of them.")
    if bits is not None and not bundle_formats:
        raise click.UsageError("--bits goes with --export only.")
    source, _, _ = find_checkpoint(Store(), checkpoint)
    job = DistillJob(source, data, output, recipe, clouds[0] if clouds else teacher, replace=force)
    try:
        with stage_progress_bar() as progress:
            result = distill(job, progress)
    except KeyboardInterrupt:
        click.echo("The same command goes on from the last checkpoint.", err=True)
        raise
    # Of several processes one says it.
    if os.environ.get("RANK", "0") != "0":
        return
    _report(result, as_json=as_json)
    if bundle_formats:
        bundles = [_export(output, form, bits, force=force) for form in bundle_formats]
        add_bundles(output, [measure_bundle(bundle) for bundle in bundles])
        for bundle in bundles:
            report_bundle(bundle, as_json=as_json)


def _export(student: Path, bundle_format: BundleFormat, bits: str | None, *, force: bool) -> Bundle:
    """Make a bundle of a student, in the store."""
    with requires_extra("export", needed_for="Exporting"):
        from edgesdk_export.distill.quantization_aware import EXPORT_RECIPE_FILE
        from edgesdk_export.pipeline import ExportJob, export
        from edgesdk_export.recipes import load_recipe
    # What was trained through a number format is stored in that one.
    trained = student / EXPORT_RECIPE_FILE
    recipe = str(trained) if trained.is_file() else "fast"
    scheme = scheme_of(bundle_format, recipe, bits, None)
    _, base, _ = find_checkpoint(Store(), str(student))
    name = bundle_name_for(base, bundle_format, DEFAULT_TARGET, recipe, scheme, None)
    job = ExportJob(
        student,
        Store().bundle_path(name),
        name,
        bundle_format,
        recipe=load_recipe(recipe),
        scheme=scheme,
        replace=force,
    )
    with stage_progress_bar() as progress:
        return export(job, progress)


def _report(result: Distilled, *, as_json: bool) -> None:
    if as_json:
        print_json(result.to_json())
        return
    out = result_console()
    out.print(f"{result.path}: {len(result.layers)} layers")
    for title, found in (("before", result.before), ("after", result.after)):
        out.print(
            f"  {title:<7} KL {found.kl:.4f} · top-1 agreement {found.top1:.1%} · perplexity"
            f" {found.perplexity:.2f} against {found.teacher_perplexity:.2f} · {found.tokens:,}"
            " held-out tokens"
        )
    out.print(f"Next: edgesdk export {result.path}")
