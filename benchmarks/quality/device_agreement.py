"""Compare a bundle of fixed shapes on a device with the same graphs on the CPU, token by token.

    python -m benchmarks.quality.device_agreement BUNDLE --device qualcomm

The text is the Python language reference, cut into windows that the KV window holds. What comes
before each place is given (teacher forcing), so that a place where both differ does not change the
next ones. Of each window the first tokens go through the prefill graph, which is drawn again so
that it gives logits of all its tokens, and the last ones through the decode graph. Then a chat is
held with the bundle as it is on each, through `edgesdk.load`.

The CPU computes in float32 with the very weights that are stored. Every window is printed as it
ends, so a run that is stopped has said what it found: a simulator takes minutes for a window.

SmolLM2-135M-Instruct of `--target qualcomm --bits 4 --window 128 --prefill 64`, on the simulator of
onnxruntime-qnn 2.7.0, window 1:

    prefill  118 of 120 places, cosine >= 0.99983; the CPU's lead at the two others: 0.016, 0.016
    decode     8 of   8 places, cosine >= 0.99955

Its chat of 16 tokens (`--prefill 8`) had the CPU's text.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import onnx_ir as ir
from edgesdk_export.npu.build import DATA_FILE, GRAPH_FILES, write_graphs
from edgesdk_export.quality.evaluation_text import cut_windows, default_text

import edgesdk
from edgesdk.bundle.opening import Bundle, open_bundle
from edgesdk.engines.base import Engine, Logits
from edgesdk.engines.registry import open_engine

PROMPT = "Name three things that float on water."


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--device", default="qualcomm", show_default=True)
@click.option("--windows", "count", default=4, show_default=True, help="Windows of the text.")
@click.option(
    "--length", type=int, help="Tokens of each [default: as many as the KV window holds]."
)
@click.option("--decoded", default=8, show_default=True, help="Tokens of each that are decoded.")
@click.option("--chat-tokens", default=16, show_default=True, help="0: hold no chat.")
def main(
    bundle: Path, device: str, count: int, length: int | None, decoded: int, chat_tokens: int
) -> None:
    """See the module's text."""
    if count:
        compare(open_bundle(bundle), device, count, length, decoded)
    for each in (device, "cpu") if chat_tokens else ():
        with edgesdk.load(bundle, device=each) as model:
            reply = model.chat().respond(PROMPT, max_tokens=chat_tokens, temperature=0)
            click.echo(f"{model.device.line()}\n{len(reply.tokens)} tokens: {reply.text!r}")


def compare(bundle: Bundle, device: str, count: int, length: int | None, decoded: int) -> None:
    """Print how often both have the same likeliest token, graph by graph."""
    with tempfile.TemporaryDirectory() as folder:
        wide = with_all_logits(bundle, Path(folder))
        ours, cpu = open_engine(wide, device), open_engine(wide, "cpu")
        click.echo(f"{bundle.path.name}: {ours.info.placement.line()}")
        same: dict[str, list[bool]] = {"prefill": [], "decode": []}
        for ids in text_windows(bundle, count):
            found, expected = (logits(engine, ids[:length], decoded) for engine in (ours, cpu))
            for graph, rows in found.items():
                wanted = expected[graph]
                equal = rows.argmax(-1) == wanted.argmax(-1)
                same[graph] += equal.tolist()
                click.echo(
                    f"{graph:<8} top-1 {np.mean(same[graph]):.4f} of {len(same[graph])} places,"
                    f" cosine >= {cosines(rows, wanted).min():.5f},"
                    f" CPU's margins where it differs {np.round(margins(wanted)[~equal], 3)}"
                )
        both = same["prefill"] + same["decode"]
        click.echo(f"all      top-1 {np.mean(both):.4f} of {len(both)} places")


def with_all_logits(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle with a prefill graph that gives logits of all its tokens, over the same stored
    weights; written to `folder`."""
    static, spec = bundle.manifest.static, bundle.decoder_spec()
    assert static is not None
    assert spec is not None
    shape = static.model_copy(update={"logits_rows": static.prefill_tokens})
    # Links are refused as files of weights.
    for name in (DATA_FILE, GRAPH_FILES["prefill"]):
        shutil.copy(bundle.path / name, folder / name)
    graph = ir.load(folder / GRAPH_FILES["prefill"]).graph
    stored = {
        name: value.const_value
        for name, value in graph.initializers.items()
        if value.const_value is not None
    }
    write_graphs(spec, stored, shape, folder)
    return Bundle(folder, bundle.manifest.model_copy(update={"static": shape}), bundle.sha256)


def text_windows(bundle: Bundle, count: int) -> Iterator[list[int]]:
    """The first windows of the text, as token ids."""
    entry, static = bundle.manifest.tokenizer, bundle.manifest.static
    assert static is not None
    windows = cut_windows(
        default_text(),
        bundle.file(entry.file).read_bytes(),
        tokens=count * static.window,
        bos=entry.bos_token_id if entry.add_bos else None,
        context=static.window,
    )
    yield from windows.ids[:count].tolist()


def logits(engine: Engine, ids: list[int], decoded: int) -> dict[str, Logits]:
    """Logits after each token, by the graph that computed them."""
    state, split = engine.new_state(), max(0, len(ids) - decoded)
    found = {"prefill": state.extend(ids[:split], logits="all").copy()} if split else {}
    steps = [state.extend([token]).copy() for token in ids[split:]]
    state.close()
    return found | {"decode": np.concatenate(steps)}


def margins(rows: Logits) -> Logits:
    """By how much the likeliest token of each row leads the next one."""
    best = np.partition(rows, -2, axis=-1)
    return best[:, -1] - best[:, -2]


def cosines(rows: Logits, others: Logits) -> Logits:
    lengths = np.linalg.norm(rows, axis=-1) * np.linalg.norm(others, axis=-1)
    return (rows * others).sum(axis=-1) / lengths


if __name__ == "__main__":
    main()
