"""Ray job entry point: `ray job submit --working-dir . -- python jobs/backfill.py RECIPE.toml run.dir=NEW a.b=c ...`.

A run of its own over all that has landed, from the first shard on, without replicas. With [feed.replay] it ends as the
log does. Else it goes on: once it has caught up, stop it, start jobs/train.py on NEW, and serve from NEW's store.
"""

from pathlib import Path

import typer

from headrace.cli import app
from headrace.commands.words import Words, errors_in_words, open_store, recipe_of
from headrace.errors import ConfigError


def backfill(words: Words = None) -> None:
    """Train a new model from the first shard on, in a folder and a store that nobody has used."""
    with errors_in_words():
        recipe = recipe_of(words)
        if Path(recipe.run.dir).expanduser().exists():
            raise ConfigError(f"{recipe.run.dir} is there already: a backfill begins afresh, so name a new run.dir=...")
        if open_store(recipe.store_uri).names("epochs"):
            raise ConfigError(f"a run has used {recipe.store_uri}: it would be taken from it; name a new store.uri=...")
    app(["run", *(words or ()), "serve.enabled=false", "run.ray_address=auto"])


if __name__ == "__main__":
    typer.run(backfill)
