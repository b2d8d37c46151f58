"""Recipes: how a model is quantized, as readable TOML."""

from edgesdk_export.recipes.loading import load_recipe as load_recipe
from edgesdk_export.recipes.loading import recipe_names as recipe_names
from edgesdk_export.recipes.model import BundleFormat as BundleFormat
from edgesdk_export.recipes.model import Recipe as Recipe

__all__ = ["BundleFormat", "Recipe", "load_recipe", "recipe_names"]
