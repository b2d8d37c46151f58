"""Write random weights in the layout of Qwen2.5, as a stream of sharded bfloat16 safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# Values at a time, and bytes of a shard: Hugging Face's shards of the 7B are about as large.
_CHUNK = 2**22
_SHARD_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Layout:
    """The sizes of one model of the Qwen2.5 family (its config.json)."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool


LAYOUTS = {
    "0.5B": Layout(896, 4864, 24, 14, 2, 151_936, True),
    "1.5B": Layout(1536, 8960, 28, 12, 2, 151_936, True),
    "3B": Layout(2048, 11_008, 36, 16, 2, 151_936, True),
    "7B": Layout(3584, 18_944, 28, 28, 4, 152_064, False),
}


def shapes_of(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, in the order in which it is written."""
    hidden, inner = layout.hidden, layout.inner
    width = hidden // layout.heads * layout.kv_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (layout.vocab, hidden)}
    for index in range(layout.layers):
        at = f"model.layers.{index}."
        shapes |= {
            at + "input_layernorm.weight": (hidden,),
            at + "self_attn.q_proj.weight": (hidden, hidden),
            at + "self_attn.q_proj.bias": (hidden,),
            at + "self_attn.k_proj.weight": (width, hidden),
            at + "self_attn.k_proj.bias": (width,),
            at + "self_attn.v_proj.weight": (width, hidden),
            at + "self_attn.v_proj.bias": (width,),
            at + "self_attn.o_proj.weight": (hidden, hidden),
            at + "post_attention_layernorm.weight": (hidden,),
            at + "mlp.gate_proj.weight": (inner, hidden),
            at + "mlp.up_proj.weight": (inner, hidden),
            at + "mlp.down_proj.weight": (hidden, inner),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not layout.tied:
        shapes["lm_head.weight"] = (layout.vocab, hidden)
    return shapes


def parameters_of(layout: Layout) -> int:
    """How many weights there are."""
    return sum(int(np.prod(shape)) for shape in shapes_of(layout).values())


def write_checkpoint(layout: Layout, folder: Path, *, seed: int = 0) -> None:
    """Write a folder as Hugging Face has it; what stands there already is kept if it is whole."""
    wanted = json.dumps({"layout": vars(layout), "seed": seed})
    mark = folder / "made-by-benchmark.json"
    if mark.is_file() and mark.read_text() == wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.Generator(np.random.SFC64(seed))
    shards = _shards(shapes_of(layout))
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shapes in zip(names, shards, strict=True):
        _write_shard(folder / name, shapes, rng)
    placed = {tensor: name for name, shapes in zip(names, shards, strict=True) for tensor in shapes}
    size = 2 * parameters_of(layout)
    _dump(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": placed},
    )
    _dump(folder / "config.json", _config(layout))
    _write_tokenizer(folder, layout.vocab)
    mark.write_text(wanted)


def _shards(shapes: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        if shards[-1] and filled + size > _SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    return shards


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for chunk in _values(name, shape, rng):
                # The upper half of a float32 is a bfloat16.
                file.write((chunk.view(np.uint32) >> 16).astype("<u2").tobytes())


def _values(
    name: str, shape: tuple[int, ...], rng: np.random.Generator
) -> Iterator[npt.NDArray[np.float32]]:
    """Normal values as networks begin with; gains are near one."""
    count, scale = int(np.prod(shape)), 0.02 if len(shape) > 1 else 0.1
    for start in range(0, count, _CHUNK):
        chunk = rng.standard_normal(min(_CHUNK, count - start), np.float32) * np.float32(scale)
        yield chunk + np.float32(1) if name.endswith("norm.weight") else chunk


def _config(layout: Layout) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": layout.hidden,
        "intermediate_size": layout.inner,
        "num_hidden_layers": layout.layers,
        "num_attention_heads": layout.heads,
        "num_key_value_heads": layout.kv_heads,
        "vocab_size": layout.vocab,
        "tie_word_embeddings": layout.tied,
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "max_window_layers": layout.layers,
        "sliding_window": None,
        "use_sliding_window": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "bos_token_id": 257,
        "eos_token_id": 256,
        "torch_dtype": "bfloat16",
    }


def _write_tokenizer(folder: Path, vocab: int) -> None:
    """Bytes as tokens, and names for the rest of the vocabulary that nothing ever becomes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {letter: index for index, letter in enumerate(alphabet)}
    tokens |= {"<|end|>": 256, "<|start|>": 257}
    tokens |= {f"<|unused{index}|>": index for index in range(258, vocab)}
    tokenizer = Tokenizer(models.BPE(tokens, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<|start|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    _dump(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2TokenizerFast",
            "bos_token": None,
            "eos_token": "<|end|>",
            "add_bos_token": False,
        },
    )


def _dump(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2))
