"""Data-Juicer's nearest operators and our `clean` on the same rows, one process each.

    $ python benchmarks/versus_data_juicer.py rows FOLDER [--rows 1000]    in our environment: writes rows, times ours
    $ python benchmarks/versus_data_juicer.py juicer FOLDER                in one with py-data-juicer: times theirs

Nine operators stand for the eight rules without language identification (theirs downloads weights) and CLIP.
Data-Juicer
makes one pass over the rows per operator and decodes every picture: its design, not a setting of ours.
"""

import argparse
import json
import tarfile
import time
from pathlib import Path


def rows(folder: Path, count: int) -> None:
    """Tars for us, JSON lines and picture files for them; prints our time."""
    from cleaning import cleaned, write_shards

    write_shards(folder / "tars", 1, count)
    (folder / "pictures").mkdir()
    with tarfile.open(folder / "tars" / "000.tar") as tar, (folder / "rows.jsonl").open("w") as lines:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            if member.name.endswith(".jpg"):
                path = folder / "pictures" / member.name
                path.write_bytes(file.read())
            else:
                lines.write(json.dumps({"text": json.load(file)["text"], "images": [str(path)]}) + "\n")
    cleaned(folder / "tars", "inline", 1)  # the first run imports and warms up
    wall, cpu, read = cleaned(folder / "tars", "inline", 1)
    print(f"qwenvl data clean: {read} rows, {wall:.2f} s wall, {cpu:.2f} s CPU, {read / wall:,.0f} rows/s")


def juicer(folder: Path) -> None:
    """Prints their time per operator and in all, without the import of the library."""
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
    data = dataset.from_list(loaded)
    start = time.perf_counter()
    for name, options in wanted.items():
        began = time.perf_counter()
        data = known[name](num_proc=1, **options).run(data)
        print(f"  {name:<32}{time.perf_counter() - began:>8.2f} s", flush=True)
    data.to_json(str(folder / "out.jsonl"))
    wall = time.perf_counter() - start
    print(f"Data-Juicer: {len(loaded)} rows, {wall:.2f} s wall, {len(loaded) / wall:,.0f} rows/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("side", choices=["rows", "juicer"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1000)
    options = parser.parse_args()
    if options.side == "rows":
        options.folder.mkdir(parents=True)
        rows(options.folder, options.rows)
    else:
        juicer(options.folder)
