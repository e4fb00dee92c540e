"""Greedy answers by vLLM, for `qwenvl parity --through vllm`."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwenvl.checkpoint.folder import SIDECARS, read_config
from qwenvl.images import open_image
from qwenvl.integrations.vllm.settings import longest_row
from qwenvl.tokenizer import Tokenizer

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""What vLLM is told unless the caller says otherwise: one process, a gigabyte of keys and values, few words."""

OPTIONS: Mapping[str, Any] = {"enforce_eager": True, "max_num_seqs": 8, "disable_log_stats": True}

MODEL_FILES = ("config.json", "model*.safetensors*", "pytorch_model*.bin*", *SIDECARS)


@contextmanager
def opened(folder: Path) -> Iterator[Any]:
    """`answers` of one model folder, in float32.

    Raises ValueError for heads of a width that vLLM's kernels lack.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import LLM

    shape = read_config(folder).llm
    _require_heads(shape.head_width)
    tokenizer = Tokenizer.load(folder)
    with tempfile.TemporaryDirectory() as alone:  # vLLM reads every file of tensors that lies in a folder
        for pattern in MODEL_FILES:
            for file in folder.glob(pattern):
                Path(alone, file.name).symlink_to(file.resolve())
        longest = max(shape.sequence_length, 512 * (not shape.dynamic_ntk and not shape.log_n))
        engine = LLM(alone, dtype="float32", max_model_len=longest, **OPTIONS)

    def answers(prompts: Sequence[tuple[Sequence[int], Sequence[Path]]], new_tokens: int) -> list[Any]:
        """(ids, log-probabilities) for each (ids with placeholders, files of images), up to end-of-text.

        Raises ValueError for a row beyond the trained length, see `settings.longest_row`.
        """
        from vllm import SamplingParams

        longest_row(shape, max(len(ids) for ids, _ in prompts) + new_tokens)
        params = SamplingParams(
            temperature=0,
            max_tokens=new_tokens,
            logprobs=0,
            ignore_eos=True,
            stop_token_ids=[tokenizer.endoftext],
            detokenize=False,
        )
        asked = [
            {
                "prompt_token_ids": [token for token in ids if token != tokenizer.imgpad],
                "multi_modal_data": {"image": [open_image(file) for file in files]} if files else None,
            }
            for ids, files in prompts
        ]
        return [_read(each.outputs[0]) for each in engine.generate(asked, params, use_tqdm=False)]

    try:
        yield answers
    finally:
        engine.llm_engine.engine_core.shutdown()


def _read(output: Any) -> tuple[list[int], list[float]]:
    ids = list(output.token_ids)
    return ids, [steps[token].logprob for token, steps in zip(ids, output.logprobs, strict=True)]


def _require_heads(width: int) -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    if width not in (known := CPUAttentionBackend.get_supported_head_sizes()):
        raise ValueError(f"vLLM on a CPU has no attention for heads of {width} channels; it has {known}.")
