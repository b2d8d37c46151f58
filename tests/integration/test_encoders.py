"""Encoders, exported and loaded as an app does, against transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.tiny_encoders import (
    ENCODERS,
    make_encoder,
    sentence_transformers_files,
    word_piece_tokenizer,
)
from support.tiny_models import END, make_tiny
from tokenizers import Tokenizer, processors

import edgesdk
from edgesdk.cli.command_group import group
from edgesdk.errors import (
    BundleError,
    ConfigMismatch,
    ContextOverflow,
    EngineError,
    ExportError,
    InvalidOption,
    RequestError,
)

pytestmark = pytest.mark.integration

# Of unlike lengths, one past ModernBERT's windows; the last one's "[SEP]" is no special token.
TEXTS = [
    "hi",
    "what is a decorator?",
    "a longer text, with 40 tokens or more. so be it!",
    "a [SEP] b",
]


def exported(checkpoint, folder, scheme="fp32", **job):
    """The bundle of a checkpoint."""
    whole = ExportJob(checkpoint, folder, "tiny", scheme=scheme, quality_tokens=0, **job)
    return export(whole, SilentProgress()).path


def reference(model, texts, pooling="mean"):
    """transformers' vectors of texts, one by one and so without padding, of length 1."""
    tokenizer, vectors = word_piece_tokenizer(), []
    tokenizer.encode_special_tokens = True
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.no_grad():
            states = model(input_ids=ids).last_hidden_state[0].numpy()
        vector = states.mean(0) if pooling == "mean" else states[0 if pooling == "cls" else -1]
        vectors.append(vector / np.linalg.norm(vector))
    return np.stack(vectors)


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_are_those_of_transformers(name, tmp_path):
    model = make_encoder(name, tmp_path / "checkpoint")
    with edgesdk.load_embedder(exported(tmp_path / "checkpoint", tmp_path / "bundle")) as embedder:
        vectors = embedder.embed(TEXTS)
        alone = np.concatenate([embedder.embed(text) for text in TEXTS])
    expected = reference(model, TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    # What else is in a batch changes nothing that matters.
    np.testing.assert_allclose(alone, vectors, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "modernbert"])
def test_scores_are_those_of_transformers(name, tmp_path):
    changes = {"classifier_pooling": "mean"} if name == "modernbert" else {}
    model = make_encoder(name, tmp_path / "checkpoint", scores=True, **changes)
    documents = ["rope", "a rope is a long thing.", "no"]
    tokenizer, expected = word_piece_tokenizer(), []
    for document in documents:
        found = tokenizer.encode("what is rope?", document)
        given = {"input_ids": torch.tensor([found.ids])}
        if name == "bert":
            given["token_type_ids"] = torch.tensor([found.type_ids])
        with torch.no_grad():
            expected.append(torch.sigmoid(model(**given).logits)[0, 0].item())
    # A tokenizer whose model has one type of tokens says so.
    if name != "bert":
        path = tmp_path / "checkpoint/tokenizer.json"
        path.write_text(path.read_text().replace('"type_id":1', '"type_id":0'))
        path.write_text(path.read_text().replace('"type_id": 1', '"type_id": 0'))
    bundle = exported(tmp_path / "checkpoint", tmp_path / "bundle")
    with edgesdk.load_reranker(bundle) as reranker:
        ranked = reranker.rank("what is rope?", documents)
        assert [each.index for each in reranker.rank("what is rope?", documents, top=1)] == [
            ranked[0].index
        ]
        assert reranker.rank("what is rope?", []) == []
    scores = {each.index: each.score for each in ranked}
    np.testing.assert_allclose([scores[i] for i in range(3)], expected, atol=1e-5)
    assert [each.score for each in ranked] == sorted(expected, reverse=True) or np.allclose(
        [each.score for each in ranked], sorted(expected, reverse=True), atol=1e-5
    )
    assert [each.document for each in ranked] == [documents[each.index] for each in ranked]


def test_settings_of_sentence_transformers_hold(tmp_path):
    model = make_encoder("bert", tmp_path / "checkpoint")
    prompts = {"query": "find: ", "document": ""}
    sentence_transformers_files(
        tmp_path / "checkpoint", pooling="cls", prompts=prompts, default_prompt_name="query"
    )
    limits = {"max_seq_length": 20}
    (tmp_path / "checkpoint/sentence_bert_config.json").write_text(json.dumps(limits))
    with edgesdk.load_embedder(exported(tmp_path / "checkpoint", tmp_path / "bundle")) as embedder:
        assert embedder.max_tokens == 20
        assert embedder.prompts == {"query": "find: "}
        expected = reference(model, ["find: hi", "hi"], "cls")
        found = [embedder.embed("hi", prompt=prompt)[0] for prompt in (None, "")]
        np.testing.assert_allclose(found, expected, atol=1e-4)

        short = embedder.embed("hi", dimensions=8)[0]
        np.testing.assert_allclose(
            short, expected[0, :8] / np.linalg.norm(expected[0, :8]), atol=1e-4
        )

        with pytest.raises(ContextOverflow, match="Text 1 has 42 tokens; the model reads 20"):
            embedder.embed(["hi", "a" * 40], prompt="")
        cut = embedder.embed("a" * 40, prompt="", truncate=True)
        np.testing.assert_allclose(cut, reference(model, ["a" * 18], "cls"), atol=1e-4)
        with pytest.raises(InvalidOption, match="no prompt 'doc'"):
            embedder.embed("hi", prompt="doc")
        with pytest.raises(InvalidOption, match="between 1 and 64"):
            embedder.embed("hi", dimensions=65)
        with pytest.raises(RequestError, match="outside the vocabulary"):
            embedder.embed_tokens([[2, 10_000, 3]])
        assert embedder.embed([]).shape == (0, 64)
        assert embedder.count("hi", prompt="") == 4


def test_nomic_bert_as_it_was_published_gives_the_same_vectors(tmp_path):
    from safetensors.numpy import load_file, save_file

    model = make_encoder("nomic_bert", tmp_path / "checkpoint")
    path = tmp_path / "checkpoint/model.safetensors"
    renamed = {}
    tensors = {name.removeprefix("nomic_bert."): value for name, value in load_file(path).items()}
    if not any("Wqkv" in name for name in tensors):
        for name, value in tensors.items():
            if ".q_proj" in name:
                parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                place = name.replace("layers.", "encoder.layers.").replace(
                    "self_attn.q_proj", "attn.Wqkv"
                )
                renamed[place] = np.concatenate(parts)
            elif ".k_proj" not in name and ".v_proj" not in name:
                for new, old in (
                    ("layers.", "encoder.layers."),
                    ("embeddings.LayerNorm", "emb_ln"),
                    ("self_attn.o_proj", "attn.out_proj"),
                    ("up_proj", "fc11"),
                    ("gate_proj", "fc12"),
                    ("down_proj", "fc2"),
                    ("post_attention_layernorm", "norm1"),
                    ("post_mlp_layernorm", "norm2"),
                ):
                    name = name.replace(new, old)
                renamed[name] = value
        save_file(renamed, path)
    with edgesdk.load_embedder(exported(tmp_path / "checkpoint", tmp_path / "bundle")) as embedder:
        np.testing.assert_allclose(embedder.embed(TEXTS), reference(model, TEXTS), atol=1e-4)


def test_the_command_line_makes_the_same_vectors(tmp_path):
    make_encoder("bert", tmp_path / "checkpoint")
    bundle = str(exported(tmp_path / "checkpoint", tmp_path / "bundle"))
    with edgesdk.load_embedder(bundle) as embedder:
        expected = embedder.embed(["hi", "a text"])
    for texts, lines in ((["hi", "a text"], ""), ([], "hi\na text\n")):
        result = CliRunner().invoke(group, ["embed", bundle, *texts], input=lines)
        found = [json.loads(line) for line in result.output.splitlines()]
        np.testing.assert_array_equal(np.float32(found), expected)


def test_int8_stays_near_and_is_smaller(tmp_path):
    model = make_encoder("bert", tmp_path / "checkpoint")
    bundle = exported(tmp_path / "checkpoint", tmp_path / "bundle", scheme="int8")
    with edgesdk.load_embedder(bundle) as embedder:
        cosines = np.diagonal(embedder.similarity(embedder.embed(TEXTS), reference(model, TEXTS)))
    assert (cosines > 0.99).all(), cosines
    assert edgesdk.open_bundle(bundle).manifest.quantization.weights == "int8"


@pytest.mark.parametrize(("scheme", "least"), [("f32", 0.99999), ("q8_0", 0.99)])
def test_llama_cpp_gives_the_same_vectors(scheme, least, tmp_path):
    model = make_encoder("bert", tmp_path / "checkpoint")
    sentence_transformers_files(tmp_path / "checkpoint", pooling="cls")
    bundle = exported(tmp_path / "checkpoint", tmp_path / "bundle", scheme=scheme, format="gguf")
    expected = reference(model, TEXTS, "cls")
    found = []
    # As a bundle, and as a bare file with a tokenizer of its own.
    for path in (bundle, bundle / "model.gguf"):
        with edgesdk.load_embedder(path) as embedder:
            vectors = embedder.embed(TEXTS)
            found.append(embedder.tokenize(TEXTS))
            cut = embedder.embed("a" * 300, truncate=True)
        cosines = np.diagonal(embedder.similarity(vectors, expected))
        assert (cosines >= least).all(), (path.name, cosines)
        assert np.isfinite(cut).all()
        with pytest.raises(BundleError, match=r"edgesdk\.load_embedder"):
            edgesdk.load(path)
        with pytest.raises(EngineError, match="closed"):
            embedder.embed("hi")
    assert found[0] == found[1]


def test_a_decoder_makes_vectors_of_its_last_hidden_states(tmp_path):
    model = make_tiny("qwen3", tmp_path / "checkpoint")
    bundle = exported(tmp_path / "checkpoint", tmp_path / "bundle")
    with pytest.raises(BundleError, match='pooling="last"'):
        edgesdk.load_embedder(bundle)
    with edgesdk.load_embedder(bundle, pooling="last") as embedder:
        ids = [5, 9, 200, 31]
        vectors = embedder.embed_tokens([ids])
        with torch.no_grad():
            states = model.model(torch.tensor([ids])).last_hidden_state[0, -1].numpy()
        expected = states / np.linalg.norm(states)
        np.testing.assert_allclose(vectors[0], expected, atol=1e-4)

    # A checkpoint for vectors says so itself, and its tokenizer ends each text with a token.
    path = tmp_path / "checkpoint/tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, end)]
    )
    tokenizer.save(str(path))
    sentence_transformers_files(tmp_path / "checkpoint", pooling="last")
    bundle = exported(tmp_path / "checkpoint", tmp_path / "embedding")
    with edgesdk.load_embedder(bundle) as embedder:
        ids = tokenizer.encode("a text").ids
        assert ids[-1] == end
        np.testing.assert_array_equal(embedder.embed("a text"), embedder.embed_tokens([ids]))
        assert embedder.count("a text") == len(ids)


def test_each_kind_of_bundle_names_its_loader(tmp_path):
    make_encoder("bert", tmp_path / "embeds")
    make_encoder("bert", tmp_path / "scores", scores=True)
    embeds = exported(tmp_path / "embeds", tmp_path / "embedder")
    scores = exported(tmp_path / "scores", tmp_path / "reranker")
    for bundle, load, loader in (
        (embeds, edgesdk.load, "load_embedder"),
        (scores, edgesdk.load, "load_reranker"),
        (scores, edgesdk.load_embedder, "load_reranker"),
        (embeds, edgesdk.load_reranker, "load_embedder"),
    ):
        with pytest.raises(BundleError, match=f"edgesdk.{loader}"):
            load(bundle)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "mish"}, "activation 'mish'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"intermediate_size": 97}, "has shape"),
        ({"num_attention_heads": 5}, "5 heads do not divide"),
    ],
)
def test_a_checkpoint_that_cannot_be_computed_is_refused(change, words, tmp_path):
    make_encoder("bert", tmp_path / "checkpoint")
    path = tmp_path / "checkpoint/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigMismatch, match=words):
        exported(tmp_path / "checkpoint", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_what_has_no_place_in_an_encoders_bundle_is_refused(tmp_path):
    make_encoder("modernbert", tmp_path / "other")
    with pytest.raises(ExportError, match="Only BERT"):
        exported(tmp_path / "other", tmp_path / "bundle", scheme="q8_0", format="gguf")
    make_encoder("bert", tmp_path / "checkpoint")
    with pytest.raises(RequestError, match="ONNX"):
        exported(tmp_path / "checkpoint", tmp_path / "bundle", target="qualcomm")
    sentence_transformers_files(tmp_path / "checkpoint", pooling="max")
    with pytest.raises(ConfigMismatch, match="pooling 'max'"):
        exported(tmp_path / "checkpoint", tmp_path / "bundle")
    model = make_encoder("bert", tmp_path / "classifier", scores=True, num_labels=3)
    assert model.config.num_labels == 3
    with pytest.raises(ConfigMismatch, match="3 classes"):
        exported(tmp_path / "classifier", tmp_path / "bundle")
