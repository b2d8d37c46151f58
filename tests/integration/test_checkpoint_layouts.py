"""Layouts of checkpoint folders: what transformers loads is read to the same logits, and what is
no model is refused with what it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from safetensors.torch import load_file, save_file
from support.reference_decoder import logits_of
from support.tiny_models import make_tiny
from transformers import AutoModelForCausalLM

from edgesdk.errors import CheckpointError, DamagedCheckpoint

pytestmark = pytest.mark.integration

TOKENS = [(7 * i * i + 3 * i) % 320 for i in range(20)]
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
Tensors = dict[str, torch.Tensor]


def halves(tensors: Tensors) -> tuple[Tensors, Tensors]:
    names = list(tensors)
    cut = len(names) // 2
    return {n: tensors[n] for n in names[:cut]}, {n: tensors[n] for n in names[cut:]}


def save(folder: Path, name: str, tensors: Tensors) -> None:
    save_file(
        {n: t.clone().contiguous() for n, t in tensors.items()}, folder / name, {"format": "pt"}
    )


def shard(number: int, count: int = 2) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def index(folder: Path, *parts: Tensors, also: dict[str, str] | None = None) -> None:
    placed = {name: shard(i + 1, len(parts)) for i, part in enumerate(parts) for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed | (also or {})}))


def stale_index(folder: Path, tensors: Tensors) -> None:
    save(folder, WHOLE, tensors)
    index(folder, *halves(tensors))


def index_of_nothing(folder: Path, tensors: Tensors) -> None:
    save(folder, WHOLE, tensors)
    (folder / INDEX).write_text('{"weight_map": {"gone": "gone.safetensors"}}')


def tensor_not_listed(folder: Path, tensors: Tensors) -> None:
    first, second = halves(tensors)
    save(folder, shard(1), first)
    save(folder, shard(2), second)
    index(folder, dict(list(first.items())[1:]), second)


def tensor_in_two_shards(folder: Path, tensors: Tensors) -> None:
    first, second = halves(tensors)
    stale = {name: torch.zeros_like(second[name]) for name in list(second)[:2]}
    save(folder, shard(1), first | stale)
    save(folder, shard(2), second)
    index(folder, first, second, also=dict.fromkeys(stale, shard(1)))


def tensor_in_the_other_shard(folder: Path, tensors: Tensors) -> None:
    first, second = halves(tensors)
    save(folder, shard(1), first)
    save(folder, shard(2), second)
    index(folder, second, first)


def names_without_model(folder: Path, tensors: Tensors) -> None:
    save(folder, WHOLE, {name.removeprefix("model."): t for name, t in tensors.items()})


def some_names_without_model(folder: Path, tensors: Tensors) -> None:
    save(
        folder,
        WHOLE,
        {n.removeprefix("model.") if "layers.0." in n else n: t for n, t in tensors.items()},
    )


def consolidated_beside(folder: Path, tensors: Tensors) -> None:
    save(folder, WHOLE, tensors)
    save(folder, "consolidated.safetensors", {"tok_embeddings.weight": torch.zeros(4, 4)})


@pytest.mark.parametrize(
    "layout",
    [
        stale_index,
        index_of_nothing,
        tensor_not_listed,
        tensor_in_two_shards,
        tensor_in_the_other_shard,
        names_without_model,
        some_names_without_model,
        consolidated_beside,
    ],
)
def test_what_transformers_loads_is_read_alike(layout, tmp_path):
    make_tiny("llama", tmp_path)
    tensors = load_file(tmp_path / WHOLE)
    (tmp_path / WHOLE).unlink()
    layout(tmp_path, tensors)
    assert_like_transformers(tmp_path)


@pytest.mark.parametrize("variant", ["llama-tied", "gemma2", "qwen2"])
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_tied_weights_under_the_heads_name_only(variant, prefix, tmp_path):
    make_tiny(variant, tmp_path)
    tensors = load_file(tmp_path / WHOLE)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save(tmp_path, WHOLE, {name.replace("model.", prefix, 1): t for name, t in tensors.items()})
    assert read_decoder(open_checkpoint(tmp_path)).spec.tied
    assert_like_transformers(tmp_path)


def test_a_head_alone_is_no_embedding_of_an_untied_model(tmp_path):
    make_tiny("llama", tmp_path)
    tensors = load_file(tmp_path / WHOLE)
    del tensors["model.embed_tokens.weight"]
    save(tmp_path, WHOLE, tensors)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight' is missing"):
        read_decoder(open_checkpoint(tmp_path))


def assert_like_transformers(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0].numpy()
    ours = logits_of(read_decoder(open_checkpoint(folder)), TOKENS)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize("names", [[shard(1, 1)], [shard(1), shard(2)], ["weights.safetensors"]])
def test_shards_without_an_index_are_the_model(names, tmp_path):
    # Of these transformers finds none; there is only one way to read them.
    make_tiny("llama", tmp_path)
    want = logits_of(read_decoder(open_checkpoint(tmp_path)), TOKENS)
    tensors = load_file(tmp_path / WHOLE)
    (tmp_path / WHOLE).unlink()
    parts = [tensors] if len(names) == 1 else halves(tensors)
    for name, part in zip(names, parts, strict=True):
        save(tmp_path, name, part)
    checkpoint = open_checkpoint(tmp_path)
    assert [file.name for file in checkpoint.files] == names
    np.testing.assert_array_equal(logits_of(read_decoder(checkpoint), TOKENS), want)


def adapter(folder: Path, **settings: Any) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save(folder, "adapter_model.safetensors", {name: torch.zeros(4, 64)})
    config = {"peft_type": "LORA", "base_model_name_or_path": "someone/base", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def lora_alone(folder: Path) -> None:
    (folder / WHOLE).unlink()
    (folder / "config.json").unlink()
    adapter(folder)


def lora_without_its_config(folder: Path) -> None:
    lora_alone(folder)
    (folder / "adapter_config.json").unlink()


def lora_beside_its_base(folder: Path) -> None:
    adapter(folder)


def consolidated_only(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "consolidated.safetensors")


def pointer(folder: Path) -> None:
    (folder / WHOLE).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    )


def pointer_of_the_config(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "kept")
    pointer(folder)
    (folder / WHOLE).rename(folder / "config.json")
    (folder / "kept").rename(folder / WHOLE)


def pickled(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "pytorch_model.bin")


def of_flax(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "flax_model.msgpack")


def half_of_the_shards(folder: Path) -> None:
    (folder / WHOLE).rename(folder / shard(2, 3))


def two_models(folder: Path) -> None:
    save(folder, "a.safetensors", load_file(folder / WHOLE))
    (folder / WHOLE).rename(folder / "b.safetensors")


@pytest.mark.parametrize(
    ("make", "what", "remedy"),
    [
        (lora_alone, r"LORA adapter of someone/base, and no model", r"--merge-adapter FOLDER"),
        (
            lora_without_its_config,
            r"LORA adapter of a base model that it does not",
            r"--adapter",
        ),
        (
            lora_beside_its_base,
            r"LORA adapter \(adapter_model.*beside a model",
            r"move the adapter",
        ),
        (consolidated_only, r"consolidated weights", r"transformers layout"),
        (pointer, r"model\.safetensors is a Git LFS pointer", r"git lfs pull"),
        (pointer_of_the_config, r"config\.json is a Git LFS pointer", r"git lfs pull"),
        (pickled, r"holds neither", r"Pickled weights.*save_pretrained"),
        (of_flax, r"holds neither", r"flax_model\.msgpack is not read"),
        (half_of_the_shards, r"model-00001-of-00003\.safetensors and 1 more of 3", r"Download"),
        (two_models, r"several safetensors files.*a\.safetensors, b\.safetensors", r"index"),
    ],
)
def test_what_is_no_model_is_refused_by_name(make, what, remedy, tmp_path):
    make_tiny("llama", tmp_path)
    make(tmp_path)
    with pytest.raises(CheckpointError, match=what) as refused:
        read_decoder(open_checkpoint(tmp_path))
    assert refused.value.hint is not None
    assert re.search(remedy, refused.value.hint)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"general.type": "adapter", "general.architecture": "llama"}, r"LoRA adapter"),
        ({"general.type": "imatrix", "general.architecture": "llama"}, r"importance matrix"),
        ({"general.type": "mmproj", "general.architecture": "clip"}, r"projector"),
        ({"general.architecture": "clip"}, r"projector"),
    ],
)
def test_ggufs_that_are_no_models(fields, what, tmp_path):
    import gguf

    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, fields["general.architecture"])
    if "general.type" in fields:
        writer.add_type(fields["general.type"])
    writer.add_tensor("a.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=what):
        open_checkpoint(path)


def test_a_gguf_that_is_a_pointer(tmp_path):
    (tmp_path / "x.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DamagedCheckpoint, match=r"x\.gguf is a Git LFS pointer"):
        open_checkpoint(tmp_path / "x.gguf")
