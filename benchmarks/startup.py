"""How long a person waits before anything happens: `import qwenvl` and `qwenvl --help`, each in a fresh process.

    $ python benchmarks/startup.py [--json] [--serve]

Medians over 7 processes; the first run of each is thrown away (it fills the disk cache and writes bytecode). The import
is timed inside the process, so the interpreter's own start is not in it; the help is timed outside and includes it.
`--serve` adds how long `qwenvl serve tiny` takes to answer: on the clock, and in processor time, which other work
on the machine disturbs less (the fastest of three).
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 7
IMPORT = "import time; t = time.perf_counter(); import qwenvl; print(time.perf_counter() - t)"


def import_seconds() -> float:
    """`import qwenvl` in a fresh interpreter."""
    return float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, check=True).stdout)


def help_seconds(*words: str) -> float:
    """A whole `qwenvl ... --help`, interpreter included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "qwenvl", *words, "--help"], capture_output=True, check=True)
    return time.perf_counter() - start


def serve_seconds() -> tuple[float, float]:
    """Until `qwenvl serve tiny` is ready: on the clock, and of processor time."""
    start = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "qwenvl", "serve", "tiny", "--port", "0", "--device", "cpu", "--threads", "1"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert server.stderr is not None
        next(line for line in server.stderr if " at http" in line)
        clock = time.perf_counter() - start
        times = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
        return clock, (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    finally:
        server.kill()
        server.communicate()


def measure() -> dict[str, float]:
    """Name -> median."""

    def median(run: list[float]) -> float:
        return statistics.median(run[1:])

    return {
        "import_ms": round(1000 * median([import_seconds() for _ in range(RUNS + 1)]), 2),
        "help_s": round(median([help_seconds() for _ in range(RUNS + 1)]), 3),
        "command_help_s": round(median([help_seconds("parity") for _ in range(RUNS + 1)]), 3),
    }


if __name__ == "__main__":
    found = measure()
    if "--serve" in sys.argv[1:]:
        found["serve_s"], found["serve_cpu_s"] = min(serve_seconds() for _ in range(3))
    if "--json" in sys.argv[1:]:
        print(json.dumps(found))
    else:
        print(f"import qwenvl         {found['import_ms']:8.1f} ms   (aim: under 50)")
        print(f"qwenvl --help         {1000 * found['help_s']:8.0f} ms   (aim: under 500)")
        print(f"qwenvl parity --help  {1000 * found['command_help_s']:8.0f} ms   (aim: under 500)")
        if "serve_s" in found:
            computing = f"{found['serve_cpu_s']:.1f} s of it computing"
            print(
                f"qwenvl serve tiny     {1000 * found['serve_s']:8.0f} ms   (aim: under 3,000; {computing})"
            )
