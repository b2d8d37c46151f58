"""What is learned and calibrated belongs to one profile, and changes nothing for the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.fake_engine import fake_model
from support.sure_engine import SureEngine

from edgesdk.bundle.opening import Bundle
from edgesdk.errors import InvalidOption
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.confidence.artifacts import SHIPPED, ArtifactStore, profile_store
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.confidence.training import train_profile
from edgesdk.model import Model

BUNDLE = "ab" * 32
# Of 60 prompts the 40 that the device is sure of are right, and none of the others.
SURENESS = {f"<{i}>": 0.9 - 0.01 * i for i in range(60)}
ANSWERS = {
    prompt: ("7" if i < 40 else "8", sureness)
    for i, (prompt, sureness) in enumerate(SURENESS.items())
}
LABELLED = [(f"How many? <{i}>", "7") for i in range(60)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGESDK_HOME", str(tmp_path))
    return tmp_path


def client(profile: str | Path | None, **changes: Any) -> HybridClient:
    return HybridClient(fake_model(SureEngine(ANSWERS)), profile=profile, **changes)


def train(profile: str | Path) -> None:
    train_profile(fake_model(SureEngine(ANSWERS)), LABELLED, profile=profile)


def test_what_one_app_learns_is_its_own() -> None:
    train("shop")
    learned = client("shop").guarantee.confidence
    assert learned.regression is not None
    assert client("shop").path._preflight.classifier is not None
    for profile in ("bank", None):
        other = client(profile)
        assert other.guarantee.confidence == Confidence()
        assert other.path._preflight.classifier is None


def test_what_one_app_learns_makes_no_promise_of_another_stale() -> None:
    for profile in ("shop", "bank"):
        client(profile).calibrate(LABELLED)
    train("shop")
    assert (client("bank").guarantee.status, client("shop").guarantee.status) == ("holds", "stale")
    client("shop").calibrate(LABELLED)
    assert {client(profile).guarantee.status for profile in ("bank", "shop")} == {"holds"}


def test_a_calibration_that_fails_takes_nothing_from_another(home: Path) -> None:
    for profile in ("shop", home / "of the bank"):
        client(profile).calibrate(LABELLED)
    client("shop").calibrate(LABELLED[:5])
    assert client("shop").guarantee.status == "impossible"
    assert client("shop").respond("How many? <0>").low_confidence
    assert client(home / "of the bank").guarantee.status == "holds"
    assert not client(home / "of the bank").respond("How many? <0>").low_confidence
    assert client("market").guarantee.status == "none"


def test_without_a_profile_nothing_is_stored(home: Path) -> None:
    unnamed = client(None)
    assert unnamed.calibrate(LABELLED).calibration.threshold is not None
    assert unnamed.guarantee.status == "holds"
    assert client(None).guarantee.status == "none"
    assert list(home.iterdir()) == []


def test_a_profile_is_a_folder_of_the_store_or_of_the_app(home: Path) -> None:
    client("shop").calibrate(LABELLED)
    train(home / "mine")
    written = {str(path.relative_to(home)) for path in home.rglob("*.json")}
    assert written == {
        f"profiles/shop/{BUNDLE}/calibration.json",
        f"mine/{BUNDLE}/confidence.json",
        f"mine/{BUNDLE}/prompts.json",
    }


@pytest.mark.parametrize("name", ["", "../shop", "a/b", "Shop", ".shop", "x" * 65, "shop\n"])
def test_a_name_that_is_none_is_said_before_anything_runs(name: str) -> None:
    with pytest.raises(InvalidOption, match="cannot be the name of a profile"):
        client(name)
    with pytest.raises(InvalidOption, match="cannot be the name of a profile"):
        train_profile(fake_model(SureEngine({})), iter(()), profile=name)


def test_what_a_bundle_brings_serves_all_that_learned_nothing(home: Path) -> None:
    shipped = ArtifactStore(home / "bundle" / SHIPPED)
    brought, own = Confidence(threshold=0.61), Confidence(threshold=0.62)
    brought.save(shipped, BUNDLE)
    client(shipped.folder).calibrate(LABELLED)
    bundle = object.__new__(Bundle)
    object.__setattr__(bundle, "path", home / "bundle")
    own.save(profile_store("shop"), BUNDLE)

    def confidence(profile: str | None) -> Confidence:
        model = Model("fake", fake_model(SureEngine(ANSWERS)).runtime, bundle)
        made = HybridClient(model, profile=profile)
        # A promise is about an app's own prompts, so a bundle brings none.
        assert made.guarantee.status == "none"
        return made.guarantee.confidence

    assert [confidence(profile) for profile in (None, "bank", "shop")] == [brought, brought, own]
