"""What a stage reads: documents of all its sources in one stream, packed, by worker processes if asked, drops noted.

RUN/<stage>/data.json             every shard with its bytes and samples: a run goes on with the same data only
RUN/<stage>/left_out-000.jsonl    a line per document that rank 0 had to leave out, with its reason
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from qwenvl.data.drawings import streams
from qwenvl.data.packing import Rows
from qwenvl.data.records import Skipped
from qwenvl.data.shards import dump, find_shards
from qwenvl.data.stream.batches import Batches
from qwenvl.data.stream.prefetcher import Prefetcher
from qwenvl.data.stream.sources import Stream
from qwenvl.files import atomic
from qwenvl.parsing import read_json
from qwenvl.terminal import printable
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import distributed
from qwenvl.train.stages import StageConfig

LOOKED_AT = 64
"""Documents that are looked at before the first update."""

ADVICE = {
    "over-long": "Documents are never cut: raise sequence_length, or make shorter ones.",
    "image at a URL": "Download the images; none is fetched while training.",
}
"""Kind of reason -> what to do, where it is not the paths or the data."""


class MicroBatches:
    """The micro-batches of a stage by the numbers of their documents, made here or by worker processes ahead."""

    def __init__(self, made: Batches, stage: StageConfig, run_dir: Path | None) -> None:
        """What is left out is noted in `run_dir`, where there is one."""
        update, end = stage.documents, stage.documents * stage.optim.steps
        self._prefetcher = Prefetcher(made, stage.workers, update=update, end=end) if stage.workers else None
        self._make: Callable[[Sequence[int]], Rows] = self._prefetcher or made
        self._file = None if run_dir is None else run_dir / f"left_out-{distributed.rank():03}.jsonl"

    def __call__(self, documents: Sequence[int]) -> Rows:
        """The rows of a micro-batch."""
        rows = self._make(documents)
        if rows.left_out and self._file is not None:
            with self._file.open("ab") as lines:
                lines.writelines(dump(_reason(each)) + b"\n" for each in rows.left_out)
        return rows

    def close(self) -> None:
        """End the workers."""
        if self._prefetcher is not None:
            self._prefetcher.close()


def _reason(each: Skipped) -> dict[str, str]:
    return {"sample": each.key, "kind": each.kind, "detail": each.detail, "shard": each.source}


def batches(
    stage: StageConfig, tokenizer: Tokenizer, queries: int, run_dir: Path | None = None
) -> MicroBatches:
    """The micro-batches of a stage. Raises ValueError as `require_sources` and `look_at_the_first` do."""
    document = documents(stage, tokenizer, queries)
    if run_dir is not None:
        distributed.on_rank0(lambda: _begin(document, stage, run_dir / "data.json"))
    made = Batches(
        document=document,
        row_length=stage.sequence_length,
        packing=stage.packing,
        pad_id=tokenizer.endoftext,
        micro=stage.micro_documents,
        window=stage.window,
        image_size=stage.image_size,
        fast=stage.fast_images,
        ground=stage.ground,
        seed=stage.seed,
    )
    return MicroBatches(made, stage, run_dir)


def _begin(document: Stream, stage: StageConfig, file: Path) -> None:
    begins = not file.exists()
    require_same_data(document, file)
    if begins:
        look_at_the_first(document, stage)


def look_at_the_first(document: Stream, stage: StageConfig) -> None:
    """Say on stderr how many of the first documents cannot be used, before hours are spent on the others.

    Raises ValueError when none can. Whether an image is whole is seen only when it is decoded.
    """
    count = min(LOOKED_AT, stage.documents * stage.optim.steps)
    reasons: dict[str, list[Skipped]] = {}
    for number in range(count):
        made = document(number).made
        if isinstance(made, Skipped):
            reasons.setdefault(made.kind, []).append(made)
    if not reasons:
        return
    unusable = sum(map(len, reasons.values()))
    listed = "; ".join(
        f"{len(found)} {kind}, such as {found[0].key}: {found[0].detail}"
        for kind, found in sorted(reasons.items())
    )
    fix = ADVICE.get(max(reasons, key=lambda kind: len(reasons[kind])), "Correct the paths or the data.")
    counted = (
        f"stage {stage.name}: {'none' if unusable == count else unusable} of the first {count} documents"
    )
    if unusable == count:
        raise ValueError(f"{counted} can be used ({printable(listed)}). {fix}")
    print(f"{counted} cannot be used and are left out ({printable(listed)}). {fix}", file=sys.stderr)


def require_sources(stage: StageConfig) -> None:
    """Raises ValueError for a stage without sources, a path without shards or a folder without drawings."""
    if not stage.data:
        raise ValueError(
            f"stage {stage.name} has no data; give `qwenvl train` a file with --data, such as "
            "recipes/qwen_vl_7b/data.toml."
        )
    for row in (*stage.data, *stage.curriculum.data):
        for path in row.paths if not row.world else ():
            find_shards(path)
        if row.world == "drawings":
            streams.require(row.place(stage.seed), row.made)
    if stage.fast_images and find_spec("simplejpeg") is None:
        raise ValueError(
            "fast_images needs the package simplejpeg, which is not installed; pip install 'qwenvl[data]'."
        )


def documents(stage: StageConfig, tokenizer: Tokenizer, queries: int) -> Stream:
    """The documents of a stage by their numbers. Raises ValueError as `require_sources` does."""
    require_sources(stage)
    whole = Stream(
        sources=stage.data,
        tokenizer=tokenizer,
        queries=queries,
        longest=stage.sequence_length,
        seed=stage.seed,
    )
    if not stage.curriculum.steps:
        return whole
    curriculum = replace(whole, sources=stage.curriculum.data)
    return replace(whole, start=stage.curriculum.steps * stage.documents, curriculum=curriculum)


def require_same_data(stream: Stream, file: Path) -> None:
    """Note the shards of a run when it begins. Raises ValueError when it goes on with others, in another order then."""
    require_same_shards(stream.shards(), file)


def require_same_shards(shards: Mapping[str, tuple[int, int]], file: Path) -> None:
    """The same of shards with their bytes and samples."""
    here = {shard: list(facts) for shard, facts in shards.items()}
    if not file.exists():
        with atomic(file) as out:
            out.write(json.dumps(here, indent=1).encode())
        return
    before = read_json(file)
    if different := sorted({name for name in {*here, *before} if here.get(name) != before.get(name)}):
        name = different[0]
        raise ValueError(
            f"{len(different)} shards differ from those the run began with, such as {name}: [bytes, samples] were "
            f"{before.get(name)}, are {here.get(name)}; bring the data back or begin another run."
        )


def left_out(run_dirs: Iterable[Path]) -> dict[str, tuple[int, str]]:
    """What stages left out: kind -> number of different samples, and one of them with the detail."""
    seen: dict[tuple[str, str, str], str] = {}
    for run_dir in run_dirs:
        for file in sorted(run_dir.glob("left_out-*.jsonl")):
            for text in file.read_text(encoding="utf-8").split("\n"):
                with suppress(json.JSONDecodeError):  # a line that a kill cut
                    line = json.loads(text)
                    seen.setdefault((line["kind"], line["shard"], line["sample"]), line["detail"])
    found: dict[str, tuple[int, str]] = {}
    for (kind, _, sample), detail in sorted(seen.items()):
        count, example = found.get(kind, (0, f"{sample}: {detail}" if detail else sample))
        found[kind] = count + 1, example
    return found
