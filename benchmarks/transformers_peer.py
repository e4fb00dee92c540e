"""The bare forward of transformers' Qwen2 for `benchmarks/decode.py`: its cache and an argmax, without `generate()`.

Reads a config, then lines as `decode_peer.py` does.
"""

import json
import sys
from time import process_time
from typing import Any

import torch
import transformers
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache


@torch.inference_mode()
def answer(model: Any, batch: int, prompt: int, new: int, round: int) -> dict[str, object]:
    """Processor seconds of the prefill and of each decode step of one batch."""
    vocab = model.config.vocab_size - 100
    ids = torch.tensor(
        [[(r * 7 + p * 3 + round * 11) % vocab + 10 for p in range(prompt)] for r in range(batch)]
    )
    cache, times = DynamicCache(config=model.config), []
    for _ in range(new):
        start = process_time()
        logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        ids = logits[:, -1].argmax(-1, keepdim=True)
        ids[:, 0].tolist()
        times.append(process_time() - start)
    return {"prefill": times[0], "steps": times[1:]}


def main() -> None:
    torch.set_num_threads(1)
    shape = json.loads(sys.stdin.readline())
    dtype = getattr(torch, shape.pop("torch_dtype"))
    theta = {"rope_type": "default", "rope_theta": shape.pop("rope_theta")}
    config = Qwen2Config(**shape, rope_parameters=theta, attn_implementation="sdpa")
    model = Qwen2ForCausalLM(config).to(dtype).eval()
    print(json.dumps({"transformers": transformers.__version__, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
