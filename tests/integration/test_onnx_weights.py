"""What is stored, in each scheme: values, bytes, sharing, refusals; and a decoder's parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import onnx
import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.onnx import (
    FloatTensors,
    WeightScheme,
    default_bits,
    embed_model,
    head_model,
    layer_model,
    read_stored,
    write_decoder,
)
from edgesdk_export.weights import Decoder
from edgesdk_quantize.formats import Int4, Int4Symmetric, Int8
from edgesdk_quantize.formats.blocks import dequantize
from support.onnx_decoding import OnnxDecoding, cpu_options
from support.tiny_models import make_tiny

from edgesdk.errors import ExportError, RequestError

pytestmark = pytest.mark.integration

TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(24)]


@dataclass(frozen=True)
class InMemory:
    """A `LazyTensor` over an array."""

    array: np.ndarray
    dtype: str = "F32"

    @property
    def shape(self):
        return self.array.shape

    def rows(self, start, stop):
        return self.array[start:stop]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Decoders of one tied and one untied model; sizes that no block divides among them."""
    decoders = {}
    for name, overrides in (
        ("qwen2", {"intermediate_size": 112}),
        ("llama-biased", {}),
        ("gemma3", {"num_hidden_layers": 2}),
    ):
        folder = tmp_path_factory.mktemp(name)
        make_tiny(name, folder, **overrides)
        decoders[name] = read_decoder(open_checkpoint(folder))
    return decoders


def logits_of(folder, spec, tokens=TOKENS):
    return OnnxDecoding(folder / "model.onnx", spec, capacity=32).extend(tokens)


def relative_error(values, exact):
    return np.sqrt(np.mean((values - exact) ** 2) / np.var(exact))


def rounded(decoder, linear, embedding):
    """The decoder with weights that have been through the formats."""
    weights = dict(decoder.weights)
    for name, tensor in decoder.weights.items():
        if len(tensor.shape) == 2:
            fmt = embedding if name.startswith(("embed", "head")) else linear
            fmt = fmt.for_columns(tensor.shape[1])
            packed = fmt.quantize(tensor.rows(0, tensor.shape[0]))
            values = dequantize(packed, bits=fmt.bits, columns=tensor.shape[1])
            weights[name] = InMemory(values)
    return Decoder(decoder.spec, weights)


@pytest.mark.parametrize("name", ["qwen2", "llama-biased", "gemma3"])
@pytest.mark.parametrize(
    "scheme",
    [
        WeightScheme.named("int8"),
        WeightScheme.named("int4"),
        WeightScheme("symmetric", Int4Symmetric(), Int8()),
        # Wider than every matrix of these models.
        WeightScheme("wide blocks", Int4(128), Int8(128)),
    ],
    ids=lambda scheme: scheme.name,
)
def test_block_graph_computes_with_the_rounded_weights(scheme, name, tiny, tmp_path):
    decoder = tiny[name]
    (tmp_path / "blocks").mkdir()
    (tmp_path / "floats").mkdir()
    write_decoder(decoder, tmp_path / "blocks", scheme)
    exact = rounded(decoder, scheme.linear, scheme.embedding)
    write_decoder(exact, tmp_path / "floats", WeightScheme.named("fp32"))
    blocks = logits_of(tmp_path / "blocks", decoder.spec)
    floats = logits_of(tmp_path / "floats", decoder.spec)
    # The kernel rounds activations to 8 bits as well, so equality is statistical: any tensor in
    # the wrong place or order would leave no correlation.
    assert relative_error(blocks, floats) < 0.06


@pytest.mark.parametrize("name", ["qwen2", "llama-biased"])
def test_fp16_is_fp32_with_weights_rounded_to_half(name, tiny, tmp_path):
    decoder = tiny[name]
    (tmp_path / "half").mkdir()
    (tmp_path / "full").mkdir()
    write_decoder(decoder, tmp_path / "half", WeightScheme.named("fp16"))
    halved = {
        key: InMemory(tensor.rows(0, tensor.shape[0]).astype(np.float16).astype(np.float32))
        if len(tensor.shape) == 2
        else tensor
        for key, tensor in decoder.weights.items()
    }
    write_decoder(Decoder(decoder.spec, halved), tmp_path / "full", WeightScheme.named("fp32"))
    np.testing.assert_allclose(
        logits_of(tmp_path / "half", decoder.spec),
        logits_of(tmp_path / "full", decoder.spec),
        atol=1e-4,
    )
    full, half = ((tmp_path / kind / "model.onnx.data").stat().st_size for kind in ("full", "half"))
    assert half < 0.75 * full


def test_tied_embedding_is_stored_once(tiny, tmp_path):
    decoder = tiny["qwen2"]
    write_decoder(decoder, tmp_path, WeightScheme.named("int4"))
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
    }
    assert places["embed.codes"] == places["embed.rows"]
    assert places["embed.codes"]["location"] == "model.onnx.data"
    assert not any(tensor.name.startswith("head.") for tensor in model.graph.initializer)


def test_the_same_decoder_gives_the_same_bytes(tiny, tmp_path):
    files = []
    for attempt in ("one", "two"):
        folder = tmp_path / attempt
        folder.mkdir()
        write_decoder(tiny["llama-biased"], folder, WeightScheme.named("int4"))
        files.append([(folder / f).read_bytes() for f in ("model.onnx", "model.onnx.data")])
    assert files[0] == files[1]


def test_bits_per_weight_and_progress(tiny, tmp_path):
    decoder, seen = tiny["llama-biased"], []
    written = write_decoder(
        decoder, tmp_path, WeightScheme.named("fp32"), lambda done, layers: seen.append(done)
    )
    assert written.bits_per_weight == 32
    assert seen == list(range(decoder.spec.layers + 1))
    int8 = write_decoder(decoder, tmp_path, WeightScheme.named("int8"))
    assert 9.2 < int8.bits_per_weight < 9.75  # norms are float32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["layers.1.k.weight", "layers.0.pre_mlp_norm.weight"])
def test_a_weight_that_is_no_number_is_named(bad, name, tiny, tmp_path):
    decoder = tiny["qwen2"]
    values = np.array(decoder.weights[name].rows(0, decoder.weights[name].shape[0]))
    values.reshape(-1)[5] = bad
    broken = Decoder(decoder.spec, {**decoder.weights, name: InMemory(values)})
    with pytest.raises(ExportError, match=rf"{name}.*5\] is -?(nan|inf)"):
        write_decoder(broken, tmp_path, WeightScheme.named("int4"))


def test_fp16_refuses_what_does_not_fit(tiny, tmp_path):
    decoder = tiny["qwen2"]
    values = np.array(decoder.weights["layers.0.o.weight"].rows(0, 64))
    values[3, 3] = 70_000
    large = Decoder(decoder.spec, {**decoder.weights, "layers.0.o.weight": InMemory(values)})
    with pytest.raises(ExportError, match=r"layers\.0\.o\.weight.*70000.*65504"):
        write_decoder(large, tmp_path, WeightScheme.named("fp16"))


def test_hidden_sizes_that_blocks_do_not_divide(tiny, tmp_path):
    decoder = tiny["qwen2"]
    odd = Decoder(replace(decoder.spec, hidden_size=72), decoder.weights)
    with pytest.raises(ExportError, match="hidden size of 72"):
        write_decoder(odd, tmp_path, WeightScheme.named("int8"))


def test_scheme_names_and_defaults():
    assert default_bits(134_515_008) == 8
    assert default_bits(1_500_000_000) == 4
    assert WeightScheme.named("int4").linear == Int4()
    with pytest.raises(RequestError, match=r"int3.*fp32, fp16, int8, int4"):
        WeightScheme.named("int3")


def through_parts(spec, weights, tokens):
    ids = np.asarray([tokens], np.int64)
    (hidden,) = embed_model(spec, weights).session(cpu_options()).run(None, {"input_ids": ids})
    for index in range(spec.layers):
        session = layer_model(spec, weights, index).session(cpu_options())
        (hidden,) = session.run(None, {"hidden": hidden})
    cuts = [0, 100, 228, spec.vocab_size]
    logits = [
        head_model(spec, weights, rows=(start, stop))
        .session(cpu_options())
        .run(None, {"hidden": hidden})[0]
        for start, stop in pairwise(cuts)
    ]
    (whole,) = head_model(spec, weights).session(cpu_options()).run(None, {"hidden": hidden})
    np.testing.assert_allclose(np.concatenate(logits, axis=-1), whole, atol=1e-5)
    return whole[0]


@pytest.mark.parametrize("name", ["qwen2", "llama-biased", "gemma3"])
@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int4"])
def test_parts_of_a_written_model_compute_what_it_does(scheme, name, tiny, tmp_path):
    decoder = tiny[name]
    write_decoder(decoder, tmp_path, WeightScheme.named(scheme))
    weights = read_stored(tmp_path / "model.onnx")
    parts, whole = through_parts(decoder.spec, weights, TOKENS), logits_of(tmp_path, decoder.spec)
    if scheme == "int4":
        # A last-bit difference between the fused and the plain norm may move an activation to the
        # next of its 255 steps.
        assert relative_error(parts, whole) < 0.01
    else:
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["qwen2", "llama-biased", "gemma3"])
def test_parts_over_a_checkpoint_compute_what_its_fp32_model_does(name, tiny, tmp_path):
    decoder = tiny[name]
    write_decoder(decoder, tmp_path, WeightScheme.named("fp32"))
    np.testing.assert_allclose(
        through_parts(decoder.spec, FloatTensors(decoder), TOKENS),
        logits_of(tmp_path, decoder.spec),
        rtol=1e-4,
        atol=1e-4,
    )
