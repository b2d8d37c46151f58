"""Embeddings and reranking over HTTP, with the clients that people have."""

from __future__ import annotations

import base64

import numpy as np
import openai
import pytest
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.served import served
from support.tiny_encoders import make_encoder, sentence_transformers_files

import edgesdk
from edgesdk.server.model_pool import StoreModels

pytestmark = pytest.mark.e2e

TEXTS = ["hi", "what is rope?", "a rope, or a long thing."]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """An embedder and a reranker, by name."""
    folder = tmp_path_factory.mktemp("encoders")
    found = {}
    for name, scores in (("embeds", False), ("scores", True)):
        make_encoder("bert", folder / name, scores=scores)
        if not scores:
            sentence_transformers_files(folder / name, prompts={"query": "find: "})
        job = ExportJob(folder / name, folder / f"{name}-bundle", name, scheme="fp32")
        found[name] = export(job, SilentProgress()).path
    return found


@pytest.fixture(scope="module")
def server(bundles):
    with served(StoreModels([str(path) for path in bundles.values()])) as running:
        yield running


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as opened:
        yield opened


@pytest.fixture(scope="module")
def embedder(bundles):
    with edgesdk.load_embedder(bundles["embeds"]) as loaded:
        yield loaded


def test_openais_client_gets_the_librarys_vectors(client, embedder):
    expected = embedder.embed(TEXTS)
    # The client itself asks for base64, unless it is told otherwise.
    for form in (openai.omit, "float", "base64"):
        reply = client.embeddings.create(model="embeds", input=TEXTS, encoding_format=form)
        rows = [each.embedding for each in reply.data]
        if form == "base64":
            rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
        np.testing.assert_allclose(rows, expected, atol=1e-6)
        assert [each.index for each in reply.data] == [0, 1, 2]
        assert reply.model == "embeds"
        assert reply.usage.total_tokens == sum(embedder.count(text) for text in TEXTS)

    one = client.embeddings.create(model="embeds", input="hi", dimensions=8).data
    np.testing.assert_allclose(one[0].embedding, embedder.embed("hi", dimensions=8)[0], atol=1e-6)

    rows = embedder.tokenize(TEXTS)
    for given, wanted in ((rows, expected), (rows[0], expected[:1])):
        ids = [list(row) for row in given] if given is rows else list(given)
        found = client.embeddings.create(model="embeds", input=ids).data
        np.testing.assert_allclose([each.embedding for each in found], wanted, atol=1e-6)

    asked = {"prompt_name": "query"}
    found = client.embeddings.create(model="embeds", input="hi", extra_body=asked).data
    wanted = embedder.embed("hi", prompt="query")[0]
    np.testing.assert_allclose(found[0].embedding, wanted, atol=1e-6)


def test_documents_are_ranked_as_by_the_library(server, bundles):
    documents = ["rope", {"text": "a rope is a long thing."}, "no"]
    body = {"model": "scores", "query": "what is rope?", "documents": documents}
    with edgesdk.load_reranker(bundles["scores"]) as reranker:
        texts = ["rope", "a rope is a long thing.", "no"]
        expected = reranker.rank("what is rope?", texts)
        tokens = sum(reranker.count("what is rope?", text) for text in texts)
    for path in ("/v1/rerank", "/v2/rerank"):
        reply = server.post(path, json={**body, "top_n": 2, "return_documents": True}).json()
        assert [each["index"] for each in reply["results"]] == [e.index for e in expected[:2]]
        scores = [each["relevance_score"] for each in reply["results"]]
        np.testing.assert_allclose(scores, [each.score for each in expected[:2]], atol=1e-6)
        assert reply["results"][0]["document"] == {"text": expected[0].document}
        assert reply["usage"]["total_tokens"] == tokens
    assert "document" not in server.post("/v1/rerank", json=body).json()["results"][0]


def test_ollamas_paths_give_the_same_vectors(server, embedder):
    reply = server.post("/api/embed", json={"model": "embeds:latest", "input": TEXTS}).json()
    np.testing.assert_allclose(reply["embeddings"], embedder.embed(TEXTS), atol=1e-6)
    old = server.post("/api/embeddings", json={"model": "embeds", "prompt": "hi"}).json()
    np.testing.assert_allclose(old["embedding"], embedder.embed("hi")[0], atol=1e-6)


def test_models_say_what_they_can_do(server):
    server.post("/v1/embeddings", json={"model": "embeds", "input": "hi"})
    running = {each["name"]: each for each in server.get("/api/ps").json()["models"]}
    assert running["embeds"]["context_length"] == 256
    shown = server.post("/api/show", json={"model": "embeds"}).json()
    assert shown["capabilities"] == ["embedding"]
    models = {each["id"]: each for each in server.get("/v1/models").json()["data"]}
    assert models["embeds"]["capabilities"] == ["embedding"]
    assert models["scores"]["capabilities"] == ["rerank"]
    assert models["embeds"]["context_length"] == 256


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/embeddings", {"model": "scores", "input": "hi"}, 400, "makes no vectors"),
        ("/v1/embeddings", {"model": "absent", "input": "hi"}, 404, "absent"),
        ("/v1/embeddings", {"model": "embeds", "input": []}, 400, "input"),
        ("/v1/embeddings", {"model": "embeds", "input": "hi", "dimensions": 65}, 400, "64"),
        ("/v1/embeddings", {"model": "embeds", "input": "a " * 300}, 400, "302 tokens"),
        ("/v1/embeddings", {"model": "embeds", "input": [[5, 10_000]]}, 400, "vocabulary"),
        ("/v1/embeddings", {"model": "embeds", "input": "hi", "colour": 1}, 400, "colour"),
        ("/v1/rerank", {"model": "embeds", "query": "a", "documents": ["b"]}, 400, "scores no"),
        (
            "/v1/chat/completions",
            {"model": "embeds", "messages": [{"role": "user", "content": "hi"}]},
            400,
            "answers no prompts",
        ),
    ],
)
def test_what_cannot_be_done_is_said(server, path, body, status, words):
    reply = server.post(path, json=body)
    assert reply.status_code == status, reply.text
    assert words in reply.json()["error"]["message"]


def test_requests_at_once_get_their_own_vectors(server, embedder):
    from concurrent.futures import ThreadPoolExecutor

    texts = [f"text {i} " + "ab " * i for i in range(16)]
    expected = embedder.embed(texts)

    def ask(text):
        body = {"model": "embeds", "input": text}
        return server.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]

    with ThreadPoolExecutor(8) as pool:
        np.testing.assert_allclose(list(pool.map(ask, texts)), expected, atol=1e-5)
