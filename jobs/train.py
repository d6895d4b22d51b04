"""Ray job entry point: `ray job submit --working-dir . -- python jobs/train.py RECIPE.toml a.b=c ...`.

The job's own cluster is joined, whatever the recipe says. Its image must hold the package on every node.
"""

import sys

from headrace.cli import app

if __name__ == "__main__":
    app(["run", *sys.argv[1:], "run.ray_address=auto"])
