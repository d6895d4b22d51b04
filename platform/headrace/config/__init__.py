"""Recipes: frozen pydantic models, TOML files, overrides. No torch, no ray: a wrong run dies in a second."""
