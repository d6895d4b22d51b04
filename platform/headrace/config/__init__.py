"""Recipes: frozen pydantic models, TOML files, overrides. Imports neither torch nor ray, so a wrong run dies in a second."""
