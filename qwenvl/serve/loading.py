"""The model behind the server, read in the thread that will own it."""

import torch

from qwenvl.chat import Assistant
from qwenvl.generate.engine import Engine, EngineConfig
from qwenvl.generate.promise import promise
from qwenvl.model.packed import slow_here
from qwenvl.runtime import Runtime, ask_for_huge_pages, give_back_large_blocks
from qwenvl.serve.app import Loaded
from qwenvl.serve.requests import Preparer
from qwenvl.serve.start import Start


def load(start: Start) -> Loaded:
    """Raises ValueError for what is no model, OSError for what cannot be read."""
    ask_for_huge_pages()
    give_back_large_blocks()
    if start.threads is not None:
        torch.set_num_threads(start.threads)
    runtime = Runtime.detect(device=start.device, dtype=start.dtype)
    assistant = Assistant.load(start.checkpoint, runtime)
    config = EngineConfig(rows=start.rows, cache_tokens=start.cache_tokens, prefix_tokens=start.prefix_tokens)
    engine = Engine(assistant.model, config)
    preparer = Preparer(
        assistant=assistant,
        limits=start.limits,
        raw_orientation=start.raw_orientation,
        context=min(start.context or engine.stats().cache_capacity, engine.stats().cache_capacity),
    )
    found = promise(assistant.model)
    return Loaded(
        engine=engine,
        preparer=preparer,
        answers=str(found),
        because=found.reason,
        slow=tuple(slow_here(assistant.model)),
    )
