"""The server of a soak, in a process of its own: `qwenvl serve tiny` with full caches, poison and a way to break.

    python benchmarks/soak_server.py [--poison TOKEN] [--fail-at STEP] [--leak BYTES]

A token whose row of the embedding is NaN lets a prompt poison itself. Its caches are full within
seconds: what grows then is a leak. At SIGUSR1 it says on stderr what it holds (`soak_memory.held`, and its caches).
"""

import argparse
import dataclasses
import json
import signal
import sys
from typing import Any

from soak_memory import held

from qwenvl.serve.limits import Limits
from qwenvl.serve.recent import RecentImages, Seen

SAYS = "held "
"""What the line begins with that tells what is held."""

PREFIX_TOKENS = 1024


def main() -> int:
    """Serve until SIGTERM; the exit status is the server's."""
    import torch

    from qwenvl.generate.engine import Engine, EngineConfig
    from qwenvl.serve import loading
    from qwenvl.serve.start import Start

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=int, default=1 << 20, help="bytes of each cache of images")
    parser.add_argument("--poison", help="the token whose numbers are none")
    parser.add_argument("--fail-at", type=int, default=0, help="the engine's step that raises")
    parser.add_argument("--leak", type=int, default=0, help="bytes kept of every image, to see them noticed")
    args = parser.parse_args()
    load, recent = loading.load, LeakingImages(args.cache, args.leak)

    def prepared(*given: Any) -> Any:
        loaded = load(*given)
        assistant = loaded.preparer.assistant
        loaded.preparer._recent = recent
        small = EngineConfig(rows=8, cache_tokens=8192, prefix_tokens=PREFIX_TOKENS, visual_bytes=args.cache)
        engine = Engine(assistant.model, small)
        if args.poison:
            with torch.no_grad():
                assistant.model.llm.embed.weight[assistant.tokenizer.specials[args.poison]] = float("nan")
        if args.fail_at:
            _break(engine, args.fail_at)
        return dataclasses.replace(loaded, engine=engine)

    loading.load = prepared  # type: ignore[assignment]
    signal.signal(signal.SIGUSR1, lambda *_: _say(recent))
    limits = Limits(queue=12, write_seconds=3, header_seconds=5, body_seconds=5)
    return Start(
        checkpoint="tiny", device="cpu", port=0, rows=8, threads=1, drain=5, quiet=True, limits=limits
    ).run()


class LeakingImages(RecentImages):
    """Images opened lately; where it is asked for, something of every one stays for ever."""

    def __init__(self, budget: int, leak: int) -> None:
        super().__init__(budget)
        self._leak, self._leaked = leak, []  # type: ignore[var-annotated]

    def put(self, key: bytes, seen: Seen) -> None:
        """See `RecentImages`."""
        super().put(key, seen)
        if self._leak:
            self._leaked.append(bytearray(self._leak))


def _break(engine: Any, fail_at: int) -> None:
    step, counted = engine.step, iter(range(1, 1 << 40))

    def failing() -> Any:
        if next(counted) >= fail_at:
            raise RuntimeError("as planned")
        return step()

    engine.step = failing  # type: ignore[method-assign]


def _say(recent: RecentImages) -> None:
    print(SAYS + json.dumps({**held(), "recent_bytes": recent.held_bytes}), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
