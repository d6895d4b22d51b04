"""Ray job entry point: how good a recipe is on a log, in event time; ``headrace bench stream`` with the same words.

`ray job submit --entrypoint-num-cpus 4 --working-dir . -- python jobs/evaluate.py --data DIR RECIPE.toml --out FOLDER`

It is one process and needs no Ray. The CPUs (a GPU, with --device cuda) are asked for the job itself: without them it
would run on the head, which holds no work. DIR and FOLDER are absolute, on what all nodes share.
"""

import sys

from headrace.cli import app

if __name__ == "__main__":
    app(["bench", "stream", *sys.argv[1:]])
