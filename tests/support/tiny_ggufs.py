"""Tiny GGUFs, written from transformers models by the conventions of llama.cpp's
`convert_hf_to_gguf.py`, to be loaded by llama.cpp itself."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch

from edgesdk.engines.gguf.library import load_library

_RENAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_tiny_gguf(
    model: Any, path: Path, *, quantized: gguf.GGMLQuantizationType | None = None
) -> None:
    """Write a transformers model as a GGUF in float32, or with its matrices quantized."""
    config = model.config
    arch = {"gemma3_text": "gemma3", "mistral": "llama"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, arch)
    _write_metadata(writer, config, arch)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.detach().float().numpy()
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            data = data + 1
        if arch == "llama" and (found := re.search(r"\.([qk])_proj\.", name)):
            heads = config.num_attention_heads if found[1] == "q" else config.num_key_value_heads
            data = _interleave(data, heads)
        kind = quantized if data.ndim == 2 else None
        raw = data if kind is None else gguf.quants.quantize(data, kind)
        writer.add_tensor(_name(name, arch), np.ascontiguousarray(raw), raw_dtype=kind)
    _write_rope_factors(writer, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp_logits(path: Path, tokens: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """llama.cpp's own logits [tokens, vocab] in float32."""
    params = llama_cpp.llama_model_default_params()
    params.use_extra_bufts = load_library().extra_buffers
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp refuses {path}"
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = 0  # float32
    settings.flash_attn_type = 0  # off: it works in float16
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i] = token, i
        batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
    try:
        assert llama_cpp.llama_decode(context, batch) == 0
        vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        values = llama_cpp.llama_get_logits(context)
        flat = np.ctypeslib.as_array(values, shape=(len(tokens), vocab_size))
        return flat.copy()
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


llama_cpp.llama_backend_init()
llama_cpp.llama_log_set(_silent, ctypes.c_void_p())


def _write_metadata(writer: gguf.GGUFWriter, config: Any, arch: str) -> None:
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_size * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        stretch = config.max_position_embeddings / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(np.sqrt(1 + np.log(stretch) / np.log(original)))
    if arch in ("gemma2", "gemma3", "phi3") and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    # A byte vocabulary, which llama.cpp wants to see.
    writer.add_tokenizer_model("llama")
    pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += [f"<extra{i}>" for i in range(config.vocab_size - len(pieces))]
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * len(pieces))
    writer.add_token_types([2] + [6] * 256 + [1] * (len(pieces) - 257))


def _write_rope_factors(writer: gguf.GGUFWriter, config: Any) -> None:
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        for name in ("long", "short"):
            factors = np.array(rope[f"{name}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{name}.weight", factors)
    if rope.get("rope_type") == "llama3":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        size = config.head_dim
        plain = rope["rope_theta"] ** (-torch.arange(0, size, 2).float() / size)
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy().astype(np.float32))


def _interleave(data: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """`LlamaModel.permute` of the converter."""
    tail = data.shape[1:]
    return data.reshape(heads, 2, -1, *tail).swapaxes(1, 2).reshape(data.shape)


def _name(name: str, arch: str) -> str:
    sandwich = arch.startswith("gemma")
    renames = {
        **_RENAMES,
        "post_attention_layernorm": "post_attention_norm" if sandwich else "ffn_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
    body, kind = name.rsplit(".", 1)
    layer = re.match(r"model\.layers\.(\d+)\.", body)
    if layer:
        return f"blk.{layer[1]}.{renames[body[layer.end() :]]}.{kind}"
    return f"{renames[body]}.{kind}"
