"""Data-Juicer's nearest operators and our `clean` on the same rows, one process each, in one run.

    $ python -m venv dj && dj/bin/pip install py-data-juicer aiohttp
    $ python benchmarks/versus_data_juicer.py dj/bin/python [--rows 1000]

Nine operators stand for the eight rules without language identification (theirs downloads weights) and CLIP.
Data-Juicer makes one pass over the rows per operator and decodes every image: its design, not a setting of ours. So
ours is timed twice, also with every image decoded. Ours reads tars and writes tars; theirs reads image files and
writes JSON lines. Seconds of CPU time are of the process and its children, without imports; the ratio is of those,
because the machine may be busy.
"""

import argparse
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """(wall seconds, CPU seconds with children) of a call."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    before, wall = [resource.getrusage(kind) for kind in kinds], time.perf_counter()
    work()
    wall, after = time.perf_counter() - wall, [resource.getrusage(kind) for kind in kinds]
    return wall, sum(
        b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(before, after, strict=True)
    )


def write_rows(folder: Path, count: int) -> None:
    """The same rows as a tar for us, and as JSON lines and image files for them."""
    from cleaning import write_shards

    write_shards(folder / "tars", 1, count)
    (folder / "images").mkdir()
    with tarfile.open(folder / "tars" / "000.tar") as tar, (folder / "rows.jsonl").open("w") as lines:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            if member.name.endswith(".jpg"):
                path = folder / "images" / member.name
                path.write_bytes(file.read())
            else:
                lines.write(json.dumps({"text": json.load(file)["text"], "images": [str(path)]}) + "\n")


def ours(folder: Path) -> dict[str, tuple[float, float]]:
    """Name -> (wall, CPU)."""
    from cleaning import cleaned

    cleaned(folder / "tars", "inline", 1)  # the first run imports and warms up
    return {
        name: timed(lambda decode=decode: cleaned(folder / "tars", "inline", 1, decode=decode))
        for name, decode in (("qwenvl data clean", False), ("qwenvl data clean --decode", True))
    }


def theirs(folder: Path) -> dict[str, tuple[float, float]]:
    """Name -> (wall, CPU), operator by operator; run by the Python that has Data-Juicer."""
    from importlib import import_module

    dataset = import_module("data_juicer.core.data").NestedDataset
    loaded = [json.loads(line) for line in (folder / "rows.jsonl").open()]
    known = import_module("data_juicer.ops").OPERATORS.modules
    ratio, side = {"min_ratio": 1 / 3, "max_ratio": 3.0}, {"min_width": 200, "min_height": 200}
    wanted = {
        "image_aspect_ratio_filter": ratio, "image_shape_filter": side, "clean_html_mapper": {},
        "clean_links_mapper": {}, "clean_email_mapper": {}, "special_characters_filter": {"max_ratio": 0.5},
        "character_repetition_filter": {"max_ratio": 0.6}, "alphanumeric_filter": {"min_ratio": 0.5},
        "text_length_filter": {"min_len": 5, "max_len": 1000},
    }  # fmt: skip
    state = [dataset.from_list(loaded[:20])]

    def apply(name: str, options: Any) -> None:
        state.append(known[name](num_proc=1, **options).run(state.pop()))

    for (
        name,
        options,
    ) in wanted.items():  # the first run imports, warms up, and installs what it finds missing
        apply(name, options)
    state = [dataset.from_list(loaded)]
    times = {
        name: timed(lambda name=name, options=options: apply(name, options))
        for name, options in wanted.items()
    }
    times["writing"] = timed(lambda: state[0].to_json(str(folder / "out.jsonl")))
    return times


def main(python: str, count: int) -> None:
    """Prints the times of both and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, count)
        mine = ours(folder)
        run = subprocess.run(
            [python, __file__, "--theirs", name], stdout=subprocess.PIPE, text=True, check=True
        )
        juicer = json.loads(run.stdout.splitlines()[-1])
    print(f"{'':<34}{'wall s':>8}{'CPU s':>8}   {count} rows")
    for what, (wall, cpu) in {**juicer, **mine}.items():
        print(f"{what:<34}{wall:>8.2f}{cpu:>8.2f}")
    walls, cpus = (sum(column) for column in zip(*juicer.values(), strict=True))
    images = sum(cpu for what, (_, cpu) in juicer.items() if what.startswith("image"))
    print(f"{'Data-Juicer in all':<34}{walls:>8.2f}{cpus:>8.2f}   of which images {images:.2f}")
    for what, (wall, cpu) in mine.items():
        print(f"{what}: {cpus / cpu:.1f} times as fast by CPU time, {walls / wall:.1f} by the clock")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python", nargs="?", help="the Python of an environment with py-data-juicer")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--theirs", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.theirs:
        print(json.dumps(theirs(options.theirs)))
    elif options.python:
        main(options.python, options.rows)
    else:
        sys.exit("name the Python of an environment with py-data-juicer")
