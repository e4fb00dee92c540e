"""vLLM on a CPU for `decode.py --vllm` and `inside_vllm.py --speed`: runs in vLLM's own environment, line by line.

Reads one JSON object per line, {"batch": rows, "prompt": tokens, "new": tokens, "round": number}, and writes one:
processor seconds of the prefill, and of each step that wrote a token for every row.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

import torch
from vllm import LLM, SamplingParams, __version__

VOCABULARY = Path(__file__).parents[1] / "tests" / "golden" / "models" / "tiny_q4" / "qwen.tiktoken"


def start(shape: dict[str, Any]) -> LLM:
    """An engine over random weights of this shape, which needs a folder with a config and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(shape))
        ours = shape["model_type"] == "qwenvl"
        if ours:
            Path(folder, VOCABULARY.name).write_bytes(VOCABULARY.read_bytes())
        return LLM(
            folder,
            load_format="dummy",
            skip_tokenizer_init=not ours,  # who takes images needs a vocabulary
            dtype="bfloat16",
            max_model_len=2048,
            max_num_seqs=16,
            gpu_memory_utilization=0.1,
            enforce_eager=True,
            disable_log_stats=True,
            enable_prefix_caching=False,
        )


def answer(llm: Any, batch: int, prompt: int, new: int, round: int) -> dict[str, object]:
    """Processor seconds of the prefill and of each decode step of one batch."""
    vocab = llm.llm_engine.model_config.get_vocab_size()
    settings = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False, logprobs=0)
    for row in range(batch):
        ids = [(row * 7 + place * 3 + round * 11) % (vocab - 100) + 10 for place in range(prompt)]
        llm.llm_engine.add_request(f"{batch}.{round}.{row}", {"prompt_token_ids": ids}, settings)
    prefill, steps = 0.0, []
    written = [0] * batch
    while llm.llm_engine.has_unfinished_requests():
        start = process_time()
        outputs = llm.llm_engine.step()
        seconds = process_time() - start
        before, written = written, list(written)
        for output in outputs:
            written[int(output.request_id.split(".")[2])] = len(output.outputs[0].token_ids)
        if min(before) == 0:
            prefill += seconds
        else:
            steps.append(seconds)
    return {"prefill": prefill, "steps": steps}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints goes to the log
    torch.set_num_threads(1)
    llm = start(json.loads(sys.stdin.readline()))
    print(json.dumps({"vllm": __version__, "torch": torch.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(llm, **json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
