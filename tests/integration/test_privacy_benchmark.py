"""Values of many locales, planted in many forms, do not leave; the measure would see it."""

from __future__ import annotations

import pytest

from benchmarks.quality import privacy
from benchmarks.quality.privacy import FORMS, LOCALES, has_leaked, measure

pytestmark = pytest.mark.integration


def test_no_planted_value_leaks_and_all_come_back() -> None:
    tallies = measure(2, seed=5)
    assert {locale for locale, _, _ in tallies} == set(LOCALES)
    leaked = {key: tally.misses for key, tally in tallies.items() if tally.leaked}
    assert {key: found for key, found in leaked.items() if key[1] != "PHONE, unassigned"} == {}
    assert sum(tally.broken for tally in tallies.values()) == 0


@pytest.mark.parametrize("form", FORMS)
def test_the_measure_sees_a_leak_in_every_form(form: str) -> None:
    texts = FORMS[form]("It is ann@x.io, thanks.", "ann@x.io")
    assert has_leaked(texts, "ann@x.io")
    assert not has_leaked(texts, "bob@x.io")


def test_without_detectors_everything_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "BUILTIN_DETECTORS", ())
    monkeypatch.setattr(privacy, "LOCALES", {"fr_FR": LOCALES["fr_FR"]})
    tallies = measure(1, seed=5)
    assert all(tally.leaked or kind == "NAME" for (_, kind, _), tally in tallies.items())
