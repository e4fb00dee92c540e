"""Our engine for `benchmarks/decode.py`, in a process of its own and of any checkout: answers line by line.

    python benchmarks/decode_peer.py CHECKOUT

Reads the shape of a model, then one JSON object per line: {"batch", "prompt", "new", "round"} is answered with
processor seconds of the prefill and of each step behind it, {"shrinking": rows} with megabytes of a batch whose rows
end one after another. Only what commit 7e1eb60 has is used, so that earlier checkouts can be asked too.
"""

import json
import os
import sys
from itertools import islice
from pathlib import Path
from time import process_time
from typing import Any

sys.path.insert(0, str(Path(sys.argv[1]).resolve()))

import torch

from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.generate.engine import Prompt, Settings, stream
from qwenvl.model.vlm import QwenVL

try:
    from qwenvl.model.packed import pack_
except ImportError:  # an earlier checkout
    pack_ = None  # type: ignore[assignment]


def build(hidden: int, layers: int, heads: int, mlp_width: int, vocab: int, dtype: str) -> QwenVL:
    """Random weights; images play no part."""
    torch.manual_seed(0)
    config = ModelConfig(
        vision=VisionConfig(width=32, layers=1, heads=2, mlp_width=32, image_size=28),
        adapter=AdapterConfig(queries=4, heads=8),
        llm=LLMConfig(vocab_size=vocab, hidden=hidden, layers=layers, heads=heads, mlp_width=mlp_width),
        imgpad_id=vocab - 1,
    )
    model = QwenVL(config).to(getattr(torch, dtype)).eval()
    if pack_ is not None:
        pack_(model)
    return model


def prompts(model: QwenVL, batch: int, tokens: int, round: int) -> list[Prompt]:
    """The same ids as in `vllm_peer.py`."""
    vocab = model.config.llm.vocab_size - 100
    return [
        Prompt(ids=tuple((row * 7 + place * 3 + round * 11) % vocab + 10 for place in range(tokens)))
        for row in range(batch)
    ]


def answer(model: QwenVL, batch: int, prompt: int, new: int, round: int) -> dict[str, object]:
    """Processor seconds of the prefill and of each decode step of one batch."""
    tokens = stream(model, prompts(model, batch, prompt, round), Settings(max_new_tokens=new))
    times, written = [], []
    for _ in range(new):
        start = process_time()
        written.append([token.id for token in islice(tokens, batch)])
        times.append(process_time() - start)
    return {"prefill": times[0], "steps": times[1:], "ids": written}


def shrinking(model: QwenVL, rows: int) -> dict[str, object]:
    """Megabytes that such a batch takes at its peak behind the prefill, and those of the cache of all its rows."""
    prompt, new = 448, 60  # within one bucket of 512 tokens
    settings = Settings(max_new_tokens=new, stop_when=lambda ids: len(ids) >= 4 + ids[0] % 50)
    list(stream(model, prompts(model, rows, prompt, 0), settings))  # scratch memory of products is no cache
    before = _status("VmRSS")
    tokens = stream(model, prompts(model, rows, prompt, 1), settings)
    list(islice(tokens, rows))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    ended = sum(token.end is not None for token in tokens)
    config = model.config.llm
    cache = 2 * config.layers * rows * config.hidden * 512 * model.llm.embed.weight.element_size() / 2**20
    return {"peak": _status("VmHWM") - before, "cache": cache, "ended": ended}


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main() -> None:
    torch.set_num_threads(1)
    model: Any = build(**json.loads(sys.stdin.readline()))
    print(json.dumps({"torch": torch.__version__, "pid": os.getpid()}), flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        done = shrinking(model, wanted["shrinking"]) if "shrinking" in wanted else answer(model, **wanted)
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
