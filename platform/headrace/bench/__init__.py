"""What Headrace claims, as commands that anyone can run. Each module has one ``run(**options) -> dict``."""
