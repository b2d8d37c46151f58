"""all-MiniLM-L6-v2 as it was published: against sentence-transformers, and on a retrieval set."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress

import edgesdk

pytestmark = [pytest.mark.integration, pytest.mark.nightly]

DOCS = Path(__file__).parents[2] / "docs"
# Questions, and words that stand in the glossary's entry that answers each.
QUESTIONS = {
    "How do I end an answer before it is complete?": "cancellation token",
    "Which file says how the weights are quantized?": "recipe",
    "What holds the keys and values of earlier tokens?": "KV cache",
    "What guesses the next tokens so that decoding is faster?": "speculation, draft",
    "Where do requests wait while there is no network?": "offline queue, deferred reply",
    "What changes a model's answers with a small file of weights?": "adapter, base",
    "What decides whether the cloud or the device answers?": "router, rejection",
    "What says how much a reply took and where it came from?": "receipt",
    "What hides private values before a request leaves?": "placeholder, redact, restore",
    "What leaves an endpoint alone after failures?": "circuit breaker",
    "What are the original weights that an export starts from?": "checkpoint",
    "How much may the cloud cost?": "policy, budget",
}


@pytest.fixture(scope="module")
def bundles(minilm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    return {
        scheme: export(
            ExportJob(minilm, folder / scheme, "minilm", scheme=scheme), SilentProgress()
        ).path
        for scheme in ("fp32", "int8")
    }


def glossary():
    """The entries of the project's own glossary: what they say, by the words they explain."""
    lines = (DOCS / "glossary.md").read_text().splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:3] for line in lines if line.startswith("| ")]
    return {word.strip(): what.strip() for word, what in rows if word.strip() != "word"}


def test_vectors_are_those_of_sentence_transformers(minilm, bundles):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    peer = sentence_transformers.SentenceTransformer(str(minilm), device="cpu")
    words = " ".join(page.read_text() for page in sorted(DOCS.glob("*.md"))).split()
    lengths = (1, 2, 5, 10, 30, 80, 150, 240, 600)
    texts = [" ".join(words[50 * i : 50 * i + n]) for i, n in enumerate(lengths)]
    expected = peer.encode(texts)
    for scheme, least in (("fp32", 0.9999), ("int8", 0.998)):
        with edgesdk.load_embedder(bundles[scheme]) as embedder:
            # The peer cuts long texts without a word.
            found = embedder.embed(texts, truncate=True)
            alone = np.concatenate([embedder.embed(text, truncate=True) for text in texts])
        cosines = np.einsum("td,td->t", found, expected)
        assert (cosines >= least).all(), (scheme, dict(zip(lengths, cosines, strict=True)))
        np.testing.assert_allclose(alone, found, atol=1e-4)


def test_int8_ranks_as_float32_does(bundles):
    entries = glossary()
    names = list(entries)
    places = {}
    for scheme, bundle in bundles.items():
        with edgesdk.load_embedder(bundle) as embedder:
            similar = embedder.similarity(
                embedder.embed(list(QUESTIONS)),
                embedder.embed([f"{name}: {what}" for name, what in entries.items()]),
            )
        order = np.argsort(-similar, axis=1)
        wanted = [names.index(name) for name in QUESTIONS.values()]
        places[scheme] = [
            int(np.flatnonzero(row == at)[0]) for row, at in zip(order, wanted, strict=True)
        ]
    # Ten of twelve answers are among the first three of all entries, in both.
    for found in places.values():
        assert sum(place < 3 for place in found) >= 10, places
    # Rounding moves no answer by more than a place.
    moved = np.abs(np.subtract(places["fp32"], places["int8"]))
    assert moved.max() <= 1, places
