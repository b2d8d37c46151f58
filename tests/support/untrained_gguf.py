"""A GGUF whose header is whole and whose weights mean nothing."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def write_untrained_gguf(path: Path) -> Path:
    """Two layers of a llama, 16 KV values for each head; three matrices in Q4_0."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv([1, 2])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_add_bos_token(True)
    writer.add_token_list(["a", "b", "ü"])
    numbers = np.arange(64 * 16, dtype=np.float32).reshape(16, 64)
    writer.add_tensor("output_norm.weight", numbers[0, :3])
    for name in ("token_embd.weight", "output.weight", "blk.0.attn_q.weight"):
        kind = gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
