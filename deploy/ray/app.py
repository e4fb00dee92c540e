"""Replicas by Ray Serve: `serve run deploy.ray.app:build model=tiny replicas=2` from a checkout.

Ray takes the connections and spreads them over replicas; each replica is the application of `qwenvl serve`, whole, with
an engine of its own. A replica whose engine fails ends, and Ray starts another.
"""

import os
from pathlib import Path

from ray import serve

from qwenvl.serve.app import Api
from qwenvl.serve.start import Start


def build(args: dict[str, str]) -> serve.Application:
    """For `serve run`; `args`: model, replicas, keys (a file), as `name=value` on the command line."""
    start = Start(
        checkpoint=args.get("model", "tiny"),
        keys=Path(args["keys"]) if "keys" in args else None,
        host=args.get("host", "127.0.0.1"),
    )

    def replica() -> Api:
        api = start.api()
        api.worker.on_death = lambda error: os._exit(1)
        return api

    @serve.deployment(
        num_replicas=int(args.get("replicas", "1")), max_ongoing_requests=64, graceful_shutdown_timeout_s=45
    )
    @serve.ingress(replica)
    class QwenVL:
        """One replica."""

    return QwenVL.bind()
