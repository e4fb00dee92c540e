"""What a stage reads: toy and real documents in one stream, packed, by worker processes if asked, drops noted.

RUN/<stage>/data.json             every shard with its bytes and samples: a run goes on with the same data only
RUN/<stage>/left_out-000.jsonl    a line per document that rank 0 had to leave out, with its reason
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from qwenvl.data.packing import Rows
from qwenvl.data.shards import dump, find_shards
from qwenvl.data.stream.batches import Batches, Prefetcher
from qwenvl.data.stream.sources import Document, Stream
from qwenvl.data.toy.streams import SOURCES, Vocabulary
from qwenvl.data.toy.worlds import Dice
from qwenvl.files import atomic
from qwenvl.parsing import read_json
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import distributed
from qwenvl.train.stages import StageConfig


def batches(
    stage: StageConfig, tokenizer: Tokenizer, queries: int, run_dir: Path | None = None
) -> Callable[[Sequence[int]], Rows]:
    """The micro-batches of a stage by the numbers of their documents. Raises ValueError as `require_sources` does."""
    document = documents(stage, tokenizer, queries)
    if run_dir is not None and isinstance(document, Stream) and distributed.rank() == 0:
        require_same_data(document, run_dir / "data.json")
    made = Batches(
        document=document,
        row_length=stage.sequence_length,
        packing=stage.packing,
        pad_id=tokenizer.endoftext,
        micro=stage.micro_documents,
        window=stage.window,
        image_size=stage.image_size if stage.data else 0,
        fast=stage.fast_images,
        seed=stage.seed,
    )
    update, end = stage.documents, stage.documents * stage.optim.steps
    prefetcher = Prefetcher(made, stage.workers, update=update, end=end) if stage.workers else made
    if run_dir is None:
        return prefetcher
    file = run_dir / f"left_out-{distributed.rank():03}.jsonl"

    def noted(documents: Sequence[int]) -> Rows:
        rows = prefetcher(documents)
        if rows.left_out:
            with file.open("ab") as lines:
                for each in rows.left_out:
                    message = {
                        "sample": each.key,
                        "kind": each.kind,
                        "detail": each.detail,
                        "shard": each.source,
                    }
                    lines.write(dump(message) + b"\n")
        return rows

    return noted


def require_sources(stage: StageConfig) -> None:
    """Raises ValueError for a stage without sources, an unknown toy source or a path without shards."""
    if not stage.mixture and not stage.data:
        raise ValueError(
            f"stage {stage.name} has neither a mixture nor data; give `qwenvl train` a file with --data, such as "
            "recipes/qwen_vl_7b/data.toml."
        )
    if stage.curriculum and not stage.mixture:
        raise ValueError(
            f"stage {stage.name} opens with {', '.join(stage.curriculum)} and has no mixture to go on with; give a "
            "mixture of the toy world, or no opening."
        )
    if unknown := {*stage.mixture, *stage.curriculum} - set(SOURCES):
        raise ValueError(
            f"the mixture of stage {stage.name} has {sorted(unknown)[0]!r}; expected shares of {', '.join(SOURCES)}."
        )
    for path in (path for row in stage.data for path in row.paths):
        find_shards(path)
    if stage.fast_images and find_spec("simplejpeg") is None:
        raise ValueError(
            "fast_pictures needs the package simplejpeg, which is not installed; pip install 'qwenvl[data]'."
        )


def documents(stage: StageConfig, tokenizer: Tokenizer, queries: int) -> "Stream | Toys":
    """The documents of a stage by their numbers. Raises ValueError as `require_sources` does."""
    require_sources(stage)
    toys = Toys(Vocabulary(tokenizer, queries, stage.seed), stage)
    if not stage.data:
        return toys
    return Stream(
        sources=stage.data,
        tokenizer=tokenizer,
        queries=queries,
        longest=stage.sequence_length,
        seed=stage.seed,
        toys=toys if stage.mixture else None,
        toy_weight=sum(stage.mixture.values()),
    )


@dataclass(frozen=True)
class Toys:
    """The documents of the toy world by their numbers."""

    world: Vocabulary
    stage: StageConfig

    def __call__(self, number: int) -> Document:
        """The document of a number."""
        source = self.source_of(number)
        return Document(source, SOURCES[source](self.world, number))

    def source_of(self, number: int) -> str:
        """Which toy source a document comes from: a weighted draw named by the stage's seed and the number."""
        opens = number < self.stage.curriculum_steps * self.stage.documents
        shares = self.stage.curriculum if opens else self.stage.mixture
        left = Dice("source", self.stage.seed, number).share() * sum(shares.values())
        for source, weight in shares.items():
            left -= weight
            if left < 0:
                return source
        return source


def require_same_data(stream: Stream, file: Path) -> None:
    """Note the shards of a run when it begins. Raises ValueError when it goes on with others, in another order then."""
    here = {shard: list(facts) for shard, facts in stream.shards().items()}
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
            for text in file.read_text(encoding="utf-8").splitlines():
                with suppress(json.JSONDecodeError):  # a line that a kill cut
                    line = json.loads(text)
                    seen.setdefault((line["kind"], line["shard"], line["sample"]), line["detail"])
    found: dict[str, tuple[int, str]] = {}
    for (kind, _, sample), detail in sorted(seen.items()):
        count, example = found.get(kind, (0, f"{sample}: {detail}" if detail else sample))
        found[kind] = count + 1, example
    return found
