"""Small GGUFs that llama.cpp loads, and where each part of their headers lies."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
from gguf import TokenType

_HIDDEN, _FORWARD, _HEADS = 32, 32, 2
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def write_small_gguf(path: Path, vocabulary: str) -> Path:
    """One layer of a llama with random float32 weights.

    Args:
        vocabulary: "llama" (SentencePiece) or "gpt2" (byte-level BPE).
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(_HIDDEN)
    writer.add_feed_forward_length(_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_HIDDEN // _HEADS)
    writer.add_rope_freq_base(10_000.0)
    pieces = ["<unk>", "<s>", "</s>", "<|im_end|>"]
    kinds = [TokenType.UNKNOWN, *[TokenType.CONTROL] * 3]
    writer.add_tokenizer_model(vocabulary)
    if vocabulary == "llama":
        pieces += [f"<0x{byte:02X}>" for byte in range(256)] + ["▁a", "b"]
        kinds += [TokenType.BYTE] * 256 + [TokenType.NORMAL] * 2
        writer.add_token_scores([0.0] * len(pieces))
    else:
        writer.add_tokenizer_pre("smollm")
        pieces += [*map(chr, [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144)]), "ab"]
        kinds += [TokenType.NORMAL] * (len(pieces) - 4)
        writer.add_token_merges(["a b"])
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    chance = np.random.default_rng(0)
    norm, square = (_HIDDEN,), (_HIDDEN, _HIDDEN)
    shapes = {"token_embd": (len(pieces), _HIDDEN), "output_norm": norm, "blk.0.attn_norm": norm}
    shapes |= {f"blk.0.attn_{part}": square for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_norm": norm, "blk.0.ffn_down": (_HIDDEN, _FORWARD)}
    shapes |= {f"blk.0.ffn_{part}": (_FORWARD, _HIDDEN) for part in ("gate", "up")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", chance.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def header_regions(data: bytes) -> list[tuple[int, int]]:
    """(start, end) of the prologue, of each metadata entry, its value, and each tensor's entry.

    Without them nearly all damage would fall into the vocabulary. Values come twice, since damage
    elsewhere mostly makes a header that nothing can be read from.
    """
    tensors, entries = struct.unpack_from("<QQ", data, 8)
    regions, at = [(0, 24)], 24
    for _ in range(entries):
        start, at = at, _after_string(data, at)
        kind = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if kind == 8:
            value, at = at + 8, _after_string(data, at)
        elif kind != 9:
            value, at = at, at + _SIZES[kind]
        else:
            kind, count = struct.unpack_from("<IQ", data, at)
            value = at = at + 12
            regions.append((start, at + 64))
            for _ in range(count):
                at = _after_string(data, at) if kind == 8 else at + _SIZES[kind]
        regions += [(start, at), (value, at), (value, at)]
    for _ in range(tensors):
        start, at = at, _after_string(data, at)
        at += 4 + 8 * int.from_bytes(data[at : at + 4], "little") + 12
        regions.append((start, at))
    return regions


def _after_string(data: bytes, at: int) -> int:
    return at + 8 + int.from_bytes(data[at : at + 8], "little")
