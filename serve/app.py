"""The import target of a deploy config: ``serve deploy serve/config.yaml`` answers from the store that it names.

``args`` of the config, or the environment: HEADRACE_STORE, the store's URI, and HEADRACE_SERVE, a JSON object with keys
of the recipe's ``serve`` section.
"""

import json
import os
from typing import Any

from headrace.config.run import ServeConfig
from headrace.errors import ConfigError
from headrace.serving.app import build


def app(args: dict[str, Any]) -> Any:  # noqa: ANN401 (ray.serve.Application, which has no types)
    """The application for the store in ``args["store"]``; ConfigError where neither it nor HEADRACE_STORE names one."""
    store_uri = args.get("store") or os.environ.get("HEADRACE_STORE")
    if not store_uri:
        raise ConfigError("no store to serve from: set args.store in serve/config.yaml, or HEADRACE_STORE")
    if "://" not in str(store_uri) and not os.path.isabs(str(store_uri)):
        raise ConfigError(
            f"the store {store_uri} is a relative path, and replicas have folders of their own: make it absolute"
        )
    section = args.get("serve") or json.loads(os.environ.get("HEADRACE_SERVE", "{}"))
    return build(str(store_uri), ServeConfig.model_validate(section))
