"""`edgesdk show`: show the manifest of a bundle or the record of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from edgesdk.bundle.manifest import Manifest, TokenizerEntry
from edgesdk.bundle.opening import is_bundle, open_bundle
from edgesdk.cli.output import format_bytes, print_json, result_console
from edgesdk.engines.device_choice import kept_choice
from edgesdk.store import CheckpointRecord, Store
from edgesdk.store.layout import Kind

_EPILOG = """\b
Examples:
  edgesdk show smollm2-135m-instruct
  edgesdk show ./my-bundle --json
"""


@click.command("show", epilog=_EPILOG)
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["bundle", "checkpoint"]),
    help="Which one, where a bundle and a checkpoint have the name.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest or record as JSON.")
def command(name: str, kind: Kind | None, as_json: bool) -> None:
    """Show the details of a model. NAME is a name in the store, or the folder of a bundle."""
    if is_bundle(Path(name)):
        _show_bundle(Path(name), as_json)
        return
    store = Store()
    entry = store.get(name, kind)
    if entry.kind == "bundle":
        _show_bundle(store.folder(name, "bundle"), as_json)
    else:
        _show_checkpoint(store.folder(name, "checkpoint"), store.record(name), as_json)


def _show_bundle(folder: Path, as_json: bool) -> None:
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    if as_json:
        fields = {"kind": "bundle", "path": str(folder), "sha256": bundle.sha256}
        print_json(fields | {"manifest": manifest.model_dump(mode="json")})
        return
    rows = [*_bundle_rows(manifest), ("size", format_bytes(bundle.size))]
    choice = kept_choice(bundle)
    if choice is not None:
        speeds = "; ".join(speed.line() for speed in choice.speeds)
        rows.append(("auto", f"{choice.speeds[0].device}: {speeds}"))
    _print_rows(manifest.name, rows)
    _print_rows("", [("path", str(folder)), ("sha256", bundle.sha256)])


def _bundle_rows(manifest: Manifest) -> list[tuple[str, str]]:
    shape, stored, source = manifest.shape, manifest.quantization, manifest.source
    window = f", window {shape.sliding_window:,}" if shape.sliding_window else ""
    encodes = "encoder" in manifest.roles
    cache = format_bytes(shape.kv_bytes_per_token())
    return [
        ("kind", f"bundle, {manifest.format} for {manifest.target}"),
        ("model", f"{shape.architecture}, {shape.parameters / 1e6:,.1f} M parameters"),
        (
            "shape",
            f"{shape.layers} layers, hidden {shape.hidden_size}, {shape.heads} heads"
            f" ({shape.kv_heads} KV) of {shape.head_size}, vocabulary {shape.vocab_size:,}",
        ),
        (
            "context",
            f"{shape.context_length:,} tokens{window}"
            + ("" if encodes else f", {cache} of KV cache each"),
        ),
        *_purpose_rows(manifest),
        *(() if manifest.static is None else (("graphs", manifest.static.line()),)),
        (
            "weights",
            f"{stored.weights}, head {stored.head}, {stored.bits_per_weight:.2f} bits per weight"
            f" ({stored.method})",
        ),
        *(("blocks", entry.line()) for entry in stored.source_blocks),
        ("quality", manifest.quality.line() if manifest.quality else "not measured"),
        *(() if encodes else (("sampling", _sampling_line(manifest)),)),
        *(() if encodes else (("template", _template_line(manifest.tokenizer)),)),
        ("licence", manifest.licence or "not stated"),
        ("source", f"{source.name} ({source.container}, {', '.join(source.dtypes)})"),
        ("exporter", manifest.exporter),
        *(("note", note) for note in manifest.notes),
    ]


def _purpose_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """What a model is for that makes vectors or scores."""
    if manifest.reranking is not None:
        return [("scores", f"a query and a document, {manifest.reranking.max_tokens:,} tokens")]
    entry = manifest.embedding
    if entry is None:
        return []
    which = {"mean": "the mean", "cls": "the first", "last": "the last"}[entry.pooling]
    prompts = f", prompts: {', '.join(entry.prompts)}" if entry.prompts else ""
    return [
        ("vectors", f"{which} hidden state, of texts up to {entry.max_tokens:,} tokens{prompts}")
    ]


def _sampling_line(manifest: Manifest) -> str:
    if manifest.sampling is None:
        return "the likeliest token"
    return ", ".join(f"{name} {value:g}" for name, value in manifest.sampling.options().items())


def _template_line(entry: TokenizerEntry) -> str:
    if entry.chat_template is not None:
        return entry.chat_template
    return "none" if entry.template_problem is None else f"none: {entry.template_problem}"


def _show_checkpoint(folder: Path, record: CheckpointRecord, as_json: bool) -> None:
    if as_json:
        fields = {"kind": "checkpoint", "path": str(folder), "sha256": record.sha256}
        print_json(fields | {"record": record.model_dump(mode="json")})
        return
    rows = [
        ("kind", "checkpoint"),
        ("reference", record.reference),
        ("source", record.source),
        ("licence", record.licence or "not stated"),
        ("size", format_bytes(record.size)),
        ("path", str(folder)),
    ]
    for file in record.files:
        origin = "promised by the source" if file.name in record.promised else "as it arrived"
        rows.append(("file", f"{file.name}, {file.size:,} bytes"))
        rows.append(("", f"sha256 {file.sha256} ({origin})"))
    _print_rows(record.name, rows)


def _print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    out = result_console()
    if title:
        out.print(title, style="bold")
    for key, value in rows:
        out.print(f"  {key:<9} {value}")
