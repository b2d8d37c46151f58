"""Recipes of distillation: defaults, and what is said of wrong ones."""

from __future__ import annotations

import pytest
from edgesdk_export.distill.recipe import DistillRecipe, read_training_recipe

from edgesdk.errors import RequestError


def test_every_key_has_a_default(tmp_path):
    path = tmp_path / "empty.toml"
    path.write_text("")
    assert read_training_recipe(path, DistillRecipe) == DistillRecipe()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training]\nlos = 1", "training.los: Extra inputs"),
        ('[training]\nloss = "kl"', "training.loss: .*There is no loss 'kl'"),
        ("[training]\non_policy = 1.5", "training.on_policy: .*less than or equal to 1"),
        ("[student]\nlayers = 0", "student.layers: .*greater than 0"),
        ("[data", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text, said, tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(RequestError, match=said):
        read_training_recipe(path, DistillRecipe)


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(RequestError, match="cannot be read"):
        read_training_recipe(tmp_path / "none.toml", DistillRecipe)
