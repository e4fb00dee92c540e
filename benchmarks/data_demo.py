"""Raw pairs with planted defects, cleaned in every way that must give the same bytes: `make data-demo`.

    $ python benchmarks/data_demo.py [--pairs 5000] [--out runs/data-demo] [--expect-ray]

Inline, in two processes, on a local Ray (where ray is installed), and killed and resumed; then per rule how many of its
planted defects it caught (recall) and how much of what it caught was planted for it (precision). Exit status 1 if any
output differs or any rule is not perfect.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from qwenvl.data.clean.contamination import Benchmarks
from qwenvl.data.clean.engine import Settings
from qwenvl.data.clean.executors import Executor
from qwenvl.data.clean.run import Outcome, clean, table
from qwenvl.data.synth.rawpairs import KEPT, Planted, became, benchmark_texts, planted, strict, write_raw


def settings() -> Settings:
    """Every rule on, everything kept aside: the gallery wants to show it."""
    return Settings(
        thresholds=strict(), source="planted", aside="all", benchmarks=Benchmarks.of(benchmark_texts())
    )


def digest(folder: Path) -> str:
    """One hash over the names and bytes of all files of a run."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".tmp")):
        total.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def run(raw: Path, out: Path, executor: Executor) -> Outcome:
    """One run from nothing, with its time."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    outcome = clean(raw, out, settings(), executor=executor, workers=2)
    print(f"{executor:<20}{time.perf_counter() - start:>8.1f} s   {digest(out)}")
    return outcome


def killed_and_resumed(raw: Path, out: Path) -> None:
    """A run that is killed when its third shard is done, and finished by a second one."""
    shutil.rmtree(out, ignore_errors=True)
    names = f"Path({str(raw)!r}), Path({str(out)!r})"
    program = (
        f"import sys; sys.path.insert(0, 'benchmarks'); from data_demo import *; clean({names}, settings())"
    )
    root = str(Path(__file__).parents[1])
    process = subprocess.Popen([sys.executable, "-c", program], cwd=root)
    while not (out / "done" / "00002.json").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    outcome = clean(raw, out, settings())
    print(f"{'killed and resumed':<20}{outcome.resumed:>4} of {outcome.shards}   {digest(out)}")


def verdicts(pairs: Sequence[Planted], fates: dict[str, str]) -> list[tuple[str, int, int, int]]:
    """(rule, planted for it, caught by it, both) for every rule and KEPT."""
    expected = Counter(pair.expected for pair in pairs)
    got = Counter(fates.get(pair.key, KEPT) for pair in pairs)
    both = Counter(pair.expected for pair in pairs if fates.get(pair.key, KEPT) == pair.expected)
    return [(name, expected[name], got[name], both[name]) for name in sorted({*expected, *got})]


def main() -> int:
    """Prints the funnel, the digests, precision and recall."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path("runs/data-demo"))
    parser.add_argument("--expect-ray", action="store_true", help="fail where ray is not installed")
    options = parser.parse_args()
    raw, out = options.out / "raw", options.out
    shutil.rmtree(raw, ignore_errors=True)
    pairs = planted(options.pairs)
    write_raw(pairs, raw)
    kinds = len({pair.defect for pair in pairs}) - 1
    print(
        f"{len(pairs)} raw pairs, {sum(p.defect != 'none' for p in pairs)} of them with one of {kinds} defects\n"
    )
    print(table(run(raw, out / "inline", "inline")), end="\n\n")
    run(raw, out / "process", "process")
    if find_spec("ray") is not None:
        os.environ.setdefault(
            "RAY_worker_niceness", "0"
        )  # Ray's own 15 waits for everything else on the machine
        run(raw, out / "ray", "ray")
    else:
        print("ray                 skipped: not installed (pip install 'qwenvl[data]')")
    killed_and_resumed(raw, out / "resumed")
    runs = [path for name in ("inline", "process", "ray", "resumed") if (path := out / name).exists()]
    same = len({digest(path) for path in runs}) == 1
    print("all outputs identical\n" if same else "OUTPUTS DIFFER\n")
    rows = verdicts(pairs, became(out / "inline"))
    print(f"{'rule':<28}{'planted':>8}{'caught':>8}{'precision':>11}{'recall':>8}")
    for name, wanted, got, both in rows:
        print(f"{name:<28}{wanted:>8}{got:>8}{both / max(1, got):>11.1%}{both / max(1, wanted):>8.1%}")
    (out / "demo.json").write_text(json.dumps({"identical": same, "rules": rows}))
    perfect = all(wanted == got == both for _, wanted, got, both in rows)
    missing = options.expect_ray and not (out / "ray").exists()
    return 0 if same and perfect and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
