"""`qwenvl data dialogues`: what stage 3 learns from (paper 3.3)."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections import Counter

    from qwenvl.data.dialogues import Ask
    from qwenvl.data.records import Dialogue, Record, Skipped


def data_dialogues(
    strategy: Literal["localisation", "several-images", "self-instruction"],
    records: tuple[Path, ...],
    /,
    *,
    out: Path | None = None,
    images: Path | None = None,
    questions: int = 3,
    together: int = 2,
    seed: int = 0,
    server: str | None = None,
    model: str | None = None,
    language: str = "English",
    key_from: str = "OPENAI_API_KEY",
    at_once: int = 4,
    dry_run: bool = False,
    format: Literal["official", "records"] = "official",
    json: bool = False,
) -> int:
    """Make dialogues about images out of records about them.

    localisation asks where the phrases of an image are and what is in their boxes; several-images joins captions and
    questions of different images; self-instruction has a language model write about what is known of one image, on
    any OpenAI-compatible server. Its replies are kept beside OUT: the same command again asks only for what is
    missing. Where nothing comes out, OUT is not written.

      qwenvl data dialogues localisation refcoco.jsonl --out where.jsonl
      qwenvl data dialogues self-instruction coco.jsonl --model NAME --dry-run

    Args:
        strategy: localisation, several-images or self-instruction.
        records: JSON lines as `qwenvl data read` writes them, or what else training reads.
        out: JSON lines of dialogues; not needed for a dry run.
        images: Folder below which paths of images may lead, beside those of the records.
        questions: Questions in a dialogue at most (several-images: about each image).
        together: several-images: images in a dialogue.
        seed: Another seed draws otherwise.
        server: self-instruction: URL of the API, such as http://localhost:8000/v1.
        model: self-instruction: its name on the server.
        language: self-instruction: what the dialogues are to be written in.
        key_from: Environment variable that holds the server's key, if it wants one.
        at_once: self-instruction: requests under way at a time.
        dry_run: self-instruction: print the requests, one per line, and send nothing.
        format: official is the fine-tuning JSON that `qwenvl finetune` reads; records is for `qwenvl data inspect`.
        json: Print the counts as JSON.
    """
    from collections import Counter

    from qwenvl.data import dialogues
    from qwenvl.terminal import printable_json

    if not records:
        raise ValueError("no records named; give JSON lines as `qwenvl data read` writes them.")
    if questions < 1 or at_once < 1:
        raise ValueError(f"--questions {questions} --at-once {at_once}; both must be at least 1.")
    if dry_run != (out is None) or (dry_run and strategy != "self-instruction"):
        raise ValueError(
            "give --out for the dialogues, or --dry-run, which is for self-instruction, without it."
        )
    asked = {"together": together != 2, "seed": seed != 0, "server": server, "model": model, "at-once": at_once != 4,
             "language": language != "English", "key-from": key_from != "OPENAI_API_KEY"}  # fmt: skip
    if unused := [name for name, given in asked.items() if given and name not in _USED[strategy]]:
        raise ValueError(f"{strategy} has no use for --{unused[0]}; leave it out.")
    counts: Counter[str] = Counter()
    groups = dialogues.by_image(_known(records, images, out, counts))
    found: Iterable[Dialogue | Skipped | dict[str, object]]
    if strategy == "localisation":
        found = dialogues.localisations(groups, questions, seed)
    elif strategy == "several-images":
        found = dialogues.comparisons(groups, together, questions, seed)
    elif model is None:
        raise ValueError("no --model named; give its name on the server.")
    else:
        ask = None if out is None else _server(server, key_from, out)
        options = {"turns": questions, "language": language}
        found = dialogues.self_instruct(groups.values(), ask, model, at_once=at_once, **options)
    counts = Counter({"images": len(groups), **counts})
    if out is None:
        return _show(found)
    _write(found, out, format, counts)
    message = "\n".join(f"{count:>10,}  {kind}" for kind, count in counts.items())
    print(printable_json(dict(counts)) if json else message)
    return 0


_USED = {
    "localisation": ("seed",),
    "several-images": ("seed", "together"),
    "self-instruction": ("server", "model", "at-once", "language", "key-from"),
}
"""Strategy -> the options of its own that it uses."""


def _known(
    records: tuple[Path, ...], images: Path | None, out: Path | None, counts: "Counter[str]"
) -> "Iterator[Record]":
    """The records of all files, images by the names that they have in OUT; what cannot be used is counted."""
    import sys

    from qwenvl.data.conversations import samples
    from qwenvl.data.faults import Unusable
    from qwenvl.data.layouts import read, with_images
    from qwenvl.data.lookup import name_of
    from qwenvl.markup import Image
    from qwenvl.terminal import printable

    folder = Path() if out is None else out.parent
    for path in records:
        for where, sample in samples(path, images):
            try:
                if isinstance(sample, Unusable):
                    raise sample
                record = read(sample, strict=False).record
            except Unusable as reason:
                counts[f"unusable: {reason.kind}"] += 1
                if counts[f"unusable: {reason.kind}"] == 1:
                    print(f"{printable(where)}, {reason.kind}: {printable(reason.detail)}", file=sys.stderr)
                continue
            yield with_images(record, lambda image: Image(name_of(image.source, folder)))


def _show(found: "Iterable[Dialogue | Skipped | dict[str, object]]") -> int:
    """The requests of a dry run, one per line; their number goes to stderr."""
    import sys

    from qwenvl.terminal import printable_json

    requests = [each for each in found if isinstance(each, dict)]
    for request in requests:
        print(printable_json(request))
    print(f"{len(requests):,} requests, none sent", file=sys.stderr)
    return 0 if requests else 1


def _server(url: str | None, key_from: str, out: Path | None) -> "Ask":
    import os

    from qwenvl.data.dialogues import remembered, server
    from qwenvl.parsing import http_url

    if url is None:
        raise ValueError("no --server named; give the URL of its API, such as http://localhost:8000/v1.")
    assert out is not None
    key = os.environ.get(key_from)
    if key is None and key_from != "OPENAI_API_KEY":
        raise ValueError(
            f"--key-from {key_from}: there is no such environment variable; set it, or leave it out."
        )
    return remembered(server(http_url(url, "--server"), key), out.with_suffix(".replies"))


def _write(
    found: "Iterable[Dialogue | Skipped | dict[str, object]]", out: Path, format: str, counts: "Counter[str]"
) -> None:
    """The dialogues as lines; counts what became of every image, and says of each fault what the first one was.

    Raises ValueError, and writes nothing, when no dialogue comes out.
    """
    import sys

    from rich.console import Console
    from rich.progress import track

    from qwenvl.data.conversations import sample_of
    from qwenvl.data.records import Dialogue, Skipped, to_json
    from qwenvl.data.shards import dump
    from qwenvl.files import atomic
    from qwenvl.terminal import printable

    quiet = not sys.stderr.isatty()
    shown = track(found, "dialogues", console=Console(stderr=True), disable=quiet, transient=True)
    with atomic(out) as file:
        for each in shown:
            if isinstance(each, Dialogue):
                try:
                    sample = dump(sample_of(each, f"{each.source} {counts['dialogues']}"))
                    file.write((sample if format == "official" else to_json(each).encode()) + b"\n")
                except ValueError:
                    counts["skipped: a text spells a tag"] += 1
                    continue
                counts["dialogues"] += 1
                counts["questions"] += len(each.turns) // 2
            else:
                assert isinstance(each, Skipped)
                counts[f"skipped: {each.kind}"] += 1
                if counts[f"skipped: {each.kind}"] == 1:
                    print(f"image {each.key}, {each.kind}: {printable(each.detail)}", file=sys.stderr)
        if not counts["dialogues"]:
            found_so_far = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
            raise ValueError(
                f"no dialogue comes out of these records ({found_so_far}), and {out} is not written; localisation "
                "needs phrases with boxes, several-images captions or questions of several images."
            )
