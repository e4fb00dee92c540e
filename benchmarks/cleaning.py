"""How fast pairs are cleaned: rules alone, and whole shards with images.

    $ python benchmarks/cleaning.py [--rows 100000] [--shard 4000] [--processes] [--json]

`rules`   all text and shape rules and a CLIP score, English and Chinese mixed, one text of ten with a defect
`tars`    `clean` on WebDataset tars of JPEGs, read, measured, judged and written, one process
`decoded` the same with every image decoded
`columns` the same on parquet with URLs and no images
Rates are per second of this process's CPU time: one core. `peak_mb` is the peak memory of a process that cleans so many
shards of 500 pairs. With --processes the scaling from one worker process to two, start-up included: by the clock, and
by CPU time (seconds of the one worker over half the seconds of the two), which is what two free cores would give up to
the length of a shard, and the only fair figure on a machine that is busy.
"""

import argparse
import json
import multiprocessing
import random
import resource
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from qwenvl.data.clean.engine import Settings
from qwenvl.data.clean.pipeline import apply_steps, steps_of
from qwenvl.data.clean.presets import Thresholds
from qwenvl.data.clean.run import clean
from qwenvl.data.parquet import write_parquet
from qwenvl.data.records import Pair
from qwenvl.data.shards import dump
from qwenvl.data.synth.rawpairs import DEFECTS, Planted, caption, image
from qwenvl.data.tars import write_tar

THRESHOLDS = Thresholds(languages=("en", "zh"), clip_score=0.3)
TEXT_DEFECTS = (
    "Russian",
    "German",
    "smiley",
    "mojibake",
    "tag soup",
    "tags",
    "entities",
    "url",
    "file name",
    "boilerplate",
)


def text(index: int) -> str:
    """A caption: two of five are Chinese, one of ten has a defect."""
    rng = random.Random(index)
    sound = " ".join(caption(rng) for _ in range(1 + index % 3 // 2))
    sound = "，".join(caption(rng, chinese=True) for _ in range(1 + index % 2)) if index % 5 < 2 else sound
    if index % 10:
        return sound
    spoiled = Planted(key="", text=sound)
    DEFECTS[TEXT_DEFECTS[index // 10 % len(TEXT_DEFECTS)]][1](spoiled, rng)
    return spoiled.text


def rules(count: int) -> float:
    """Pairs per second through all text and shape rules."""
    pairs = [Pair(key=str(k), text=text(k), width=640, height=480, clip_score=0.35) for k in range(count)]
    steps = steps_of(THRESHOLDS)
    best = 0.0
    for _ in range(3):
        start = time.process_time()
        kept = sum(apply_steps(pair, steps).dropped_by is None for pair in pairs)
        best = max(best, count / (time.process_time() - start))
    assert 0.9 * count < kept < count
    return best


def write_shards(folder: Path, shards: int, size: int) -> None:
    """Tars of pairs; 64 images of about 20 KB take turns."""
    shown = [image(random.Random(k), 512, 384, 85) for k in range(64)]
    folder.mkdir(parents=True)
    for shard in range(shards):
        with write_tar(folder / f"{shard:03d}.tar") as tar:
            for k in range(size):
                tar.add(f"{shard:03d}{k:06d}.jpg", shown[k % 64])
                tar.add(f"{shard:03d}{k:06d}.json", dump({"text": text(k), "clip_score": 0.35}))


def cleaned(source: Path, executor: Any, workers: int, *, decode: bool = False) -> tuple[float, float, int]:
    """(wall seconds, CPU seconds of this process, pairs read) of one run."""
    out = source.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    wall, cpu = time.perf_counter(), time.process_time()
    settings = Settings(thresholds=THRESHOLDS, decode=decode)
    outcome = clean(source, out, settings, executor=executor, workers=workers)
    return time.perf_counter() - wall, time.process_time() - cpu, outcome.total.read


def peak(folder: Path) -> int:
    """Peak megabytes of a process of its own that cleans the folder."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, folder).result()


def _peak(folder: Path) -> int:
    cleaned(folder, "inline", 1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def in_processes(source: Path, number: int) -> tuple[float, float]:
    """(wall seconds, CPU seconds of all workers, their start included) of a run in worker processes."""
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    cleaned(source, "process", number)
    wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Name -> value."""
    found: dict[str, float] = {"rules_per_core_s": rules(options.rows)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "tars" / "in", 4, options.shard)
        for what, decode in (("tars", False), ("decoded", True)):
            _, cpu, read = cleaned(folder / "tars" / "in", "inline", 1, decode=decode)
            found[f"{what}_per_core_s"] = read / cpu
        for shards in (4, 64):
            write_shards(folder / f"peak{shards}" / "in", shards, 500)
            found[f"peak_mb_{shards}_shards"] = peak(folder / f"peak{shards}" / "in")
        (folder / "columns" / "in").mkdir(parents=True)
        rows = [
            {"URL": "http://x", "TEXT": text(k), "WIDTH": 640, "HEIGHT": 480, "similarity": 0.35}
            for k in range(20_000)
        ]
        write_parquet(folder / "columns" / "in" / "a.parquet", rows)
        _, cpu, read = cleaned(folder / "columns" / "in", "inline", 1)
        found["columns_per_core_s"] = read / cpu
        if options.processes:
            write_shards(folder / "scaling" / "in", 16, options.shard)
            (wall, cpu), (wall_of_two, cpu_of_two) = (
                in_processes(folder / "scaling" / "in", n) for n in (1, 2)
            )
            found["scaling_1_to_2_by_the_clock"] = wall / wall_of_two
            found["scaling_1_to_2_by_cpu"] = cpu / (cpu_of_two / 2)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shard", type=int, default=4_000, help="pairs per tar")
    parser.add_argument("--processes", action="store_true", help="also the scaling from one process to two")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options)
    if options.json:
        print(json.dumps({name: round(value, 2) for name, value in figures.items()}))
    else:
        for name, value in figures.items():
            print(f"{name:<28}{value:>12,.{2 if value < 10 else 0}f}")
