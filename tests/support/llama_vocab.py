"""llama.cpp's own tokenizer, without the weights."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import llama_cpp


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


def llama_ends(path: Path) -> set[int]:
    """The ids at which llama.cpp ends an answer."""
    vocab = load_vocabulary(path)
    ids = range(llama_cpp.llama_vocab_n_tokens(vocab))
    return {token for token in ids if llama_cpp.llama_vocab_is_eog(vocab, token)}


def llama_encoder(path: Path) -> Callable[[str], list[int]]:
    """Ids of a text as llama.cpp gives them: special tokens parsed, no BOS added."""
    vocab = load_vocabulary(path)

    def encode(text: str) -> list[int]:
        raw = text.encode()
        room = len(raw) + 16
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(vocab, raw, len(raw), ids, room, False, True)
        assert count >= 0
        return list(ids[:count])

    return encode


def load_vocabulary(path: Path) -> ctypes.c_void_p:
    """llama.cpp's vocabulary of a file; it is never freed."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp refuses {path}"
    return ctypes.c_void_p(llama_cpp.llama_model_get_vocab(model))
