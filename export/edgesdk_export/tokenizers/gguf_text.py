"""The text side of a GGUF."""

from __future__ import annotations

from edgesdk.errors import CheckpointError
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.tokenizers import byte_bpe, sentencepiece_bpe
from edgesdk_export.tokenizers.gguf_vocabulary import (
    GgufVocabulary,
    TokenKind,
    read_gguf_vocabulary,
)
from edgesdk_export.tokenizers.text_files import TextFiles, make_entry

# Ends of a turn that llama.cpp knows by their text; files name only one of them, if any.
_ENDS = frozenset(
    ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>")
)


def read_gguf_text(checkpoint: Checkpoint) -> TextFiles:
    """Build a `tokenizer.json` that encodes every text as llama.cpp does.

    Raises:
        CheckpointError: the kind of tokenizer is not supported.
        DamagedCheckpoint: its parts contradict each other.
    """
    vocabulary = read_gguf_vocabulary(checkpoint)
    kind = vocabulary.values.get("model")
    if kind == "gpt2":
        tokenizer = byte_bpe.build_byte_bpe(vocabulary)
        add_bos = byte_bpe.byte_bpe_adds_bos(vocabulary)
    elif kind == "llama":
        tokenizer = sentencepiece_bpe.build_sentencepiece_bpe(
            vocabulary, model_name=str(checkpoint.config.get("general.name"))
        )
        add_bos = sentencepiece_bpe.sentencepiece_adds_bos(vocabulary)
    else:
        raise CheckpointError(
            f"{checkpoint.path}: the tokenizer model {kind!r} is not supported; 'gpt2' (byte-level "
            "BPE) and 'llama' (SentencePiece BPE) are.",
            hint="Export from the original safetensors folder, which has a tokenizer.json.",
        )

    template = checkpoint.config.get("tokenizer.chat_template")
    if not isinstance(template, str):
        template = None
    bos, eos = vocabulary.special_id("bos"), vocabulary.special_id("eos")
    entry = make_entry(
        chat_template=template,
        add_bos=add_bos and bos is not None,
        bos=(None if bos is None else vocabulary.tokens[bos], bos),
        eos_token=None if eos is None else vocabulary.tokens[eos],
        eos_ids=_end_ids(vocabulary, eos),
    )
    return TextFiles(tokenizer.to_str().encode(), template, entry)


def _end_ids(vocabulary: GgufVocabulary, eos: int | None) -> list[int]:
    named = [eos, vocabulary.special_id("eot"), vocabulary.special_id("eom")]
    known = [
        i
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if token in _ENDS and kind == TokenKind.CONTROL
    ]
    return [i for i in named if i is not None] + known
