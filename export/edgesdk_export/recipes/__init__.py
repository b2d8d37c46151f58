"""Recipes: how a model is quantized, as readable TOML."""

from edgesdk_export.recipes.recipe import Recipe as Recipe
from edgesdk_export.recipes.recipe import load_recipe as load_recipe
from edgesdk_export.recipes.recipe import recipe_names as recipe_names

__all__ = ["BundleFormat", "Recipe", "load_recipe", "recipe_names"]
