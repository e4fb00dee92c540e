"""How long a person waits before anything happens: `import qwenvl` and `qwenvl --help`, each in a fresh process.

    $ python benchmarks/startup.py [--json]

Medians over 7 processes; the first run of each is thrown away (it fills the disk cache and writes bytecode). The import
is timed inside the process, so the interpreter's own start is not in it; the help is timed outside and includes it.
"""

import json
import statistics
import subprocess
import sys
import time

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
    if "--json" in sys.argv[1:]:
        print(json.dumps(found))
    else:
        print(f"import qwenvl         {found['import_ms']:8.1f} ms   (aim: under 50)")
        print(f"qwenvl --help         {1000 * found['help_s']:8.0f} ms   (aim: under 500)")
        print(f"qwenvl parity --help  {1000 * found['command_help_s']:8.0f} ms   (aim: under 500)")
