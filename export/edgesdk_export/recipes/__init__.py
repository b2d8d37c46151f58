"""Recipes: how a model is quantized, as readable TOML."""

from edgesdk_export.recipes.recipe import Recipe as Recipe
from edgesdk_export.recipes.recipe import load_recipe as load_recipe
from edgesdk_export.recipes.recipe import recipe_names as recipe_names
from edgesdk_export.recipes.recipe import weights_by_bits as weights_by_bits

__all__ = ["Recipe", "load_recipe", "recipe_names", "weights_by_bits"]
