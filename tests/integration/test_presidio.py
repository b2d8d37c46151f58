"""Names that presidio finds, hidden and put back."""

from __future__ import annotations

import re

import pytest

from edgesdk.hybrid.privacy.builtin_detectors import BUILTIN_DETECTORS
from edgesdk.hybrid.privacy.detectors import Presidio
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.hybrid.privacy.redaction import Redactor, restore

presidio_analyzer = pytest.importorskip("presidio_analyzer")

pytestmark = pytest.mark.integration

TEXT = "Zoë Quill and Ann Li live in Oslo; write to ann@example.com. Zoë Quill agrees."


@pytest.fixture(scope="module")
def detector() -> Presidio:
    """With lists in place of a language model, which would have to be downloaded."""
    spacy = pytest.importorskip("spacy")
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    engine = SpacyNlpEngine(models=[{"lang_code": "en", "model_name": "blank"}])
    engine.nlp = {"en": spacy.blank("en")}
    registry = presidio_analyzer.RecognizerRegistry(supported_languages=["en"])
    for kind, words in {"PERSON": ["Zoë Quill", "Ann Li"], "LOCATION": ["Oslo"]}.items():
        registry.add_recognizer(
            presidio_analyzer.PatternRecognizer(supported_entity=kind, deny_list=words)
        )
    return Presidio(
        presidio_analyzer.AnalyzerEngine(
            registry=registry, nlp_engine=engine, supported_languages=["en"]
        )
    )


def test_names_are_found_beside_what_patterns_find(detector: Presidio) -> None:
    verdict = Policy("redact", detectors=(*BUILTIN_DETECTORS, detector)).evaluate(
        [{"role": "user", "content": TEXT}]
    )
    assert verdict.kinds == {"PERSON", "LOCATION", "EMAIL"}


def test_names_are_hidden_and_restored(detector: Presidio) -> None:
    redactor = Redactor((*BUILTIN_DETECTORS, detector))
    hidden = redactor.redact(TEXT)
    for secret in ("Zoë", "Quill", "Ann", "Oslo", "example.com"):
        assert secret not in hidden
    first, second, again = re.findall(r"<PERSON_\d+>", hidden)
    assert first == again != second
    assert restore(redactor, hidden) == TEXT


def test_only_what_is_asked_for_counts(detector: Presidio) -> None:
    places = Presidio(detector.analyzer, entities=("LOCATION",))
    assert [TEXT[one.start : one.end] for one in places.find(TEXT)] == ["Oslo"]
