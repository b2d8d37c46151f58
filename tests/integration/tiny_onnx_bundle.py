"""A two-layer decoder with random weights in a bundle, and its plain numpy reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgesdk.bundle import graph_io
from edgesdk.bundle.manifest import (
    FileEntry,
    Manifest,
    ModelShape,
    Quantization,
    SourceCheckpoint,
    TokenizerEntry,
)
from edgesdk.bundle.opening import Bundle, open_bundle
from edgesdk.bundle.writing import staged_folder, write_manifest

Floats = npt.NDArray[np.float32]

LAYERS, HEADS, KV_HEADS, HEAD, VOCAB, CONTEXT = 2, 4, 2, 16, 64, 700
HIDDEN = HEADS * HEAD


@dataclass(frozen=True)
class TinyWeights:
    """embedding [vocab, hidden]; per layer q, k, v and output projections [in, out]; head."""

    embedding: Floats
    layers: tuple[tuple[Floats, Floats, Floats, Floats], ...]
    head: Floats


def tiny_weights(seed: int = 0) -> TinyWeights:
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> Floats:
        return (rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)

    return TinyWeights(
        embedding=rng.standard_normal((VOCAB, HIDDEN)).astype(np.float32),
        layers=tuple(
            (
                3 * matrix(HIDDEN, HIDDEN),
                3 * matrix(HIDDEN, KV_HEADS * HEAD),
                matrix(HIDDEN, KV_HEADS * HEAD),
                matrix(HIDDEN, HIDDEN),
            )
            for _ in range(LAYERS)
        ),
        head=3 * matrix(HIDDEN, VOCAB),
    )


def reference_logits(weights: TinyWeights, ids: list[int]) -> Floats:
    """Logits of every position, [len(ids), vocab], without any cache."""
    length = len(ids)
    cos, sin = _rotary(length)
    hidden = weights.embedding[ids].astype(np.float64)
    future = np.triu(np.ones((length, length), bool), 1)
    for q, k, v, output in weights.layers:
        queries = _rotate((hidden @ q).reshape(length, HEADS, HEAD), cos, sin)
        keys = _rotate((hidden @ k).reshape(length, KV_HEADS, HEAD), cos, sin)
        values = (hidden @ v).reshape(length, KV_HEADS, HEAD)
        mixed = np.empty((length, HEADS, HEAD))
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            scores = queries[:, head] @ keys[:, group].T / np.sqrt(HEAD)
            scores[future] = -np.inf
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed[:, head] = shares / shares.sum(axis=1, keepdims=True) @ values[:, group]
        hidden = hidden + mixed.reshape(length, HIDDEN) @ output
    return (hidden @ weights.head).astype(np.float32)


def write_tiny_bundle(destination: Path, *, seed: int = 0, vocab_said: int = VOCAB) -> Bundle:
    """A bundle of the decoder; `vocab_said` lets the manifest contradict the graph."""
    with staged_folder(destination) as stage:
        onnx.save(tiny_graph(tiny_weights(seed)), stage / "model.onnx")
        (stage / "tokenizer.json").write_text("{}")
        write_manifest(stage, _manifest(vocab_said))
    return open_bundle(destination)


def tiny_graph(weights: TinyWeights) -> onnx.ModelProto:
    cos, sin = _rotary(CONTEXT)
    constants = {
        "embedding": weights.embedding,
        "head": weights.head,
        "cos": cos,
        "sin": sin,
        "far": np.array([2**62], np.int64),
        "axis": np.array([1], np.int64),
    }
    ports_in = [
        _port(graph_io.INPUT_IDS, TensorProto.INT64, ["batch", "sequence"]),
        _port(graph_io.LOGITS_FROM, TensorProto.INT64, [1]),
        _port(graph_io.SEQLENS_K, TensorProto.INT32, ["batch"]),
        _port(graph_io.TOTAL_SEQUENCE_LENGTH, TensorProto.INT32, []),
    ]
    ports_out = [_port(graph_io.LOGITS, TensorProto.FLOAT, ["batch", "rows", VOCAB])]
    nodes = [helper.make_node("Gather", ["embedding", graph_io.INPUT_IDS], ["hidden_0"])]
    for layer, (q, k, v, output) in enumerate(weights.layers):
        constants |= {f"q{layer}": q, f"k{layer}": k, f"v{layer}": v, f"o{layer}": output}
        past, present = graph_io.past_names(layer), graph_io.present_names(layer)
        for name_in, name_out in zip(past, present, strict=True):
            dims = ["batch", KV_HEADS, "capacity", HEAD]
            ports_in.append(_port(name_in, TensorProto.FLOAT, dims))
            ports_out.append(_port(name_out, TensorProto.FLOAT, dims))
        nodes += [
            helper.make_node("MatMul", [f"hidden_{layer}", f"{part}{layer}"], [f"{part}_{layer}"])
            for part in "qkv"
        ]
        nodes += [
            helper.make_node(
                "GroupQueryAttention",
                [
                    *(f"{part}_{layer}" for part in "qkv"),
                    *past,
                    graph_io.SEQLENS_K,
                    graph_io.TOTAL_SEQUENCE_LENGTH,
                    "cos",
                    "sin",
                ],
                [f"mixed_{layer}", *present],
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=KV_HEADS,
                do_rotary=1,
            ),
            helper.make_node("MatMul", [f"mixed_{layer}", f"o{layer}"], [f"out_{layer}"]),
            helper.make_node("Add", [f"hidden_{layer}", f"out_{layer}"], [f"hidden_{layer + 1}"]),
        ]
    nodes += [
        helper.make_node(
            "Slice", [f"hidden_{LAYERS}", graph_io.LOGITS_FROM, "far", "axis"], ["cut"]
        ),
        helper.make_node("MatMul", ["cut", "head"], [graph_io.LOGITS]),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "tiny", ports_in, ports_out, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _port(name: str, element: int, dims: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, dims)


def _rotary(length: int) -> tuple[Floats, Floats]:
    inverse = 10_000.0 ** -(np.arange(0, HEAD, 2) / HEAD)
    angles = np.arange(length)[:, None] * inverse
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _rotate(x: npt.NDArray[np.float64], cos: Floats, sin: Floats) -> npt.NDArray[np.float64]:
    first, second = x[..., : HEAD // 2], x[..., HEAD // 2 :]
    c, s = cos[:, None], sin[:, None]
    return np.concatenate([first * c - second * s, second * c + first * s], axis=-1)


def _manifest(vocab_said: int) -> Manifest:
    return Manifest(
        name="tiny",
        format="onnx",
        target="cpu",
        roles={"decoder": "model.onnx"},
        shape=ModelShape(
            architecture="tiny",
            layers=LAYERS,
            hidden_size=HIDDEN,
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_size=HEAD,
            vocab_size=vocab_said,
            context_length=CONTEXT,
            parameters=1,
        ),
        spec=None,
        tokenizer=TokenizerEntry(),
        source=SourceCheckpoint(
            name="tiny", container="safetensors", sha256="0" * 64, dtypes=("float32",)
        ),
        quantization=Quantization(
            weights="float32", head="float32", method="none", bits_per_weight=32
        ),
        exporter="test",
        versions={},
        files=tuple(
            FileEntry(name=name, size=0, sha256="0" * 64)
            for name in ("model.onnx", "tokenizer.json")
        ),
    )
