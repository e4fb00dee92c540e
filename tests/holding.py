"""How much can be reached from an object: what grows from request to request is kept by mistake."""

import gc
import threading
import types
from asyncio import AbstractEventLoop
from collections import Counter
from typing import Any

_ELSEWHERE = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    threading.Thread,
    AbstractEventLoop,
)


def reachable(root: Any) -> Counter[str]:
    """Objects that `root` keeps alive, by type; not those of modules, classes, functions, threads and event loops."""
    seen, todo, found = {id(root)}, [root], Counter[str]()
    while todo:
        each = todo.pop()
        found[type(each).__name__] += 1
        for other in gc.get_referents(each):
            if id(other) not in seen and not isinstance(other, _ELSEWHERE):
                seen.add(id(other))
                todo.append(other)
    return found
