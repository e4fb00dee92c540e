"""Micro-batches are functions of their number: whoever asks, in which order, with how many workers, gets the same."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from qwenvl.data.formats import Example
from qwenvl.data.mixtures import MULTITASK
from qwenvl.data.packing import DOCUMENT, Rows
from qwenvl.data.records import Skipped
from qwenvl.data.stream import prefetcher
from qwenvl.data.stream.batches import Batches
from qwenvl.data.stream.order import Draw, permuted
from qwenvl.data.stream.prefetcher import Prefetcher
from qwenvl.data.stream.sources import Document, SourceConfig, Stream
from qwenvl.images import normalise, open_image, preprocess, resize

from .conftest import BYTES, QUERIES, dialogues_json, jpeg, mixed_records, pages_tar, pairs_tar, records_lines

IMAGE = 258
LENGTHS = {
    "Captioning": (12, 80), "VQA": (15, 50), "Grounding": (60, 250), "Ref Grounding": (25, 45), 
    "Grounded Cap.": (25, 45),
    "OCR": (100, 1700), "Pure-text Autoregression": (50, 2048 - IMAGE),
}  # fmt: skip
"""Tokens beside the image, least and most, about as the formats of Box B.1 have them."""


def of_length(length: int) -> Example:
    return Example(
        ids=(1,) * length,
        labels=(1,) * length,
        branches=(0,) * length,
        positions=tuple(range(length)),
        images=(),
    )


def stage_2(number: int) -> Document:
    """A document of Table 3 by its number: tasks in their shares, lengths as their formats have them."""
    task, _ = Draw([row.millions for row in MULTITASK], 0)(number)
    name = MULTITASK[task].name
    least, most = LENGTHS[name]
    return Document(name, of_length(IMAGE + least + permuted(0, most - least + 1, number)))


@pytest.fixture(scope="module")
def rows_of_sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[SourceConfig, ...]:
    """Three sources: pairs with a damaged image and an over-long text among them, pages, and mixed records."""
    root = tmp_path_factory.mktemp("sources")
    texts = [f"text {k}" for k in range(12)]
    texts[5] = "long " * 60
    tar = pairs_tar(root / "pairs.tar", texts)
    raw = tar.read_bytes()
    tar.write_bytes(raw.replace(jpeg(3), jpeg(3)[:200] + bytes(len(jpeg(3)) - 200)))
    pages_tar(root / "pages.tar", 5)
    records_lines(root / "records.jsonl", mixed_records(root / "images", 4))
    dialogues_json(root / "d.json", 3)
    return (
        SourceConfig(paths=(str(root / "pairs.tar"),), weight=2.0),
        SourceConfig(paths=(str(root / "pages.tar"), str(root / "records.jsonl")), weight=3.0),
        SourceConfig(paths=(str(root / "d.json"),)),
    )


@pytest.fixture
def batches(rows_of_sources: tuple[SourceConfig, ...]) -> Batches:
    stream = Stream(sources=rows_of_sources, tokenizer=BYTES, queries=QUERIES, longest=256, seed=7)
    return Batches(
        document=stream,
        row_length=256,
        packing="isolated",
        pad_id=0,
        micro=4,
        window=16,
        image_size=28,
        seed=7,
    )


def equal(one: Rows, other: Rows) -> bool:
    if len(one.images) != len(other.images):
        return False
    names = ("ids", "labels", "segments", "positions")
    same = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)
    images = [
        np.array_equal(np.asarray(a.source), np.asarray(b.source))
        for a, b in zip(one.images, other.images, strict=True)
    ]
    return same and all(images) and one.left_out == other.left_out


def micro(number: int) -> range:
    return range(4 * number, 4 * number + 4)


@pytest.mark.parametrize("packing", ["isolated", "interleaved"])
def test_rows_of_stage_2_are_97_percent_full(packing: str) -> None:
    """Table 3's mixture in rows of 2,048 tokens, a window of 1,024 documents as in recipes/qwen_vl_7b."""
    made = Batches(document=stage_2, row_length=2048, packing=packing, pad_id=0, micro=256, window=1024)
    rows = [made(range(k, k + 256)) for k in range(0, 1024, 256)]
    assert np.average([each.fill for each in rows], weights=[len(each.ids) for each in rows]) >= 0.97
    tokens = [len(each.made) for each in map(stage_2, range(1024)) if isinstance(each.made, Example)]
    assert sum(int((each.segments > 0).sum()) for each in rows) == sum(tokens)


def test_an_interleaved_sequence_holds_one_task_and_runs_on(
    rows_of_sources: tuple[SourceConfig, ...],
) -> None:
    """Documents of a sequence see those before; where two tasks share a row, they do not see each other."""
    stream = Stream(sources=rows_of_sources, tokenizer=BYTES, queries=QUERIES, longest=256, seed=7)
    tasks = {each.made.ids: each.task for each in map(stream, range(64)) if isinstance(each.made, Example)}
    made = Batches(document=stream, row_length=256, packing="interleaved", pad_id=0, micro=64, window=64)
    rows = made(range(64))
    documents, sequences, shared = 0, 0, 0
    for ids, segments, positions in zip(rows.ids, rows.segments, rows.positions, strict=True):
        present = np.unique(segments[segments > 0])
        shared += len(present) > 1
        for segment in present:
            rest, found = tuple(ids[segments == segment].tolist()), []
            assert positions[segments == segment].tolist() == list(range(len(rest)))
            while rest:
                found.append(next(known for known in tasks if rest[: len(known)] == known))
                rest = rest[len(found[-1]) :]
            assert len({tasks[known] for known in found}) == 1
            documents, sequences = documents + len(found), sequences + 1
    assert documents > sequences > len(rows.ids), "documents were joined, and rows shared"
    assert 0 < shared < len(rows.ids)
    assert documents + len(rows.left_out) == 64


def test_every_document_comes_once_whole_with_its_own_image(batches: Batches) -> None:
    stream = batches.document
    expected: Counter[tuple[int, ...]] = Counter()
    for number in range(32):
        made = stream(number).made
        if isinstance(made, Example):
            expected[made.ids] += 1
    got: Counter[tuple[int, ...]] = Counter()
    left_out: list[Skipped] = []
    for number in range(8):
        rows = batches(micro(number))
        left_out += rows.left_out
        images = iter(rows.images)
        for ids, segments in zip(rows.ids, rows.segments, strict=True):
            for document in np.unique(segments[segments > 0] // DOCUMENT):
                inside = ids[segments // DOCUMENT == document]
                got[tuple(inside.tolist())] += 1
                for _ in range((inside == BYTES.imgpad).sum() // QUERIES):
                    assert np.asarray(next(images).source).shape == (28, 28, 3)
        assert next(images, None) is None
    lost = expected - got
    assert not got - expected
    kinds = Counter(each.kind for each in left_out)
    assert kinds["over-long"] >= 1 and kinds["damaged image"] == sum(lost.values()) >= 1
    assert sum(got.values()) + sum(kinds.values()) == 32, "every document is there or told why not"
    assert {each.key for each in left_out if each.kind == "damaged image"} == {"pairs.tar, 000003.jpg"}
    (long,) = {(each.key, each.detail) for each in left_out if each.kind == "over-long"}
    assert long[0] == "pairs.tar, 000005" and "256 fit" in long[1]


def test_images_are_those_of_preprocessing(batches: Batches) -> None:
    """The levels are squares already, so that resizing them again is the identity."""
    for image in batches(micro(0)).images:
        levels = np.asarray(image.source)
        assert np.array_equal(preprocess(levels, 28), normalise(levels))
        number = round(float(np.median(levels[..., 0])) / 5)
        assert np.array_equal(levels, resize(open_image(jpeg(number)), 28))


def test_the_order_of_asking_and_the_window_cache_change_nothing(batches: Batches) -> None:
    forwards = [batches(micro(k)) for k in range(10)]
    again = replace(batches, _windows=type(batches._windows)())
    backwards = [again(micro(k)) for k in (7, 3, 9, 0, 5, 2, 8, 1, 6, 4)]
    for rows, number in zip(backwards, (7, 3, 9, 0, 5, 2, 8, 1, 6, 4), strict=True):
        assert equal(rows, forwards[number])
    assert not equal(forwards[0], forwards[1])


def test_workers_give_the_same_batches(batches: Batches) -> None:
    prefetcher = Prefetcher(batches, 2, update=16, end=48)
    for number in (1, 3, 5, 7, 8, 11):  # it may also ask for others than it is expected to
        assert equal(prefetcher(micro(number)), batches(micro(number)))
    prefetcher.close()


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 2), (2, 4)])
def test_workers_learn_what_a_rank_reads(rank: int, ranks: int) -> None:
    """Four micro-batches an update, dealt to ranks: known from the second that a rank asks for, to the end."""
    made = Batches(document=stage_2, row_length=8, packing="isolated", pad_id=0, micro=4)
    prefetcher = Prefetcher(made, 1, update=16, end=64)
    asked = [start for update in range(0, 64, 16) for start in range(update, update + 16, 4)[rank::ranks]]
    for place, start in enumerate(asked):
        assert list(prefetcher.following(start)) == (asked[place + 1 :] if place else [])


def lethal(number: int, file: Path) -> Document:
    """The third document waits until there is a file, and then ends its process as a lack of memory does."""
    while number == 2:
        if file.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
    return Document("", of_length(4))


def test_a_killed_worker_is_told_whatever_was_announced_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some that wait for a worker are not asked for any more when it ends; who asked for another one is told."""
    monkeypatch.setattr(prefetcher, "DEPTH", 8)
    document = partial(lethal, file=tmp_path / "now")
    made = Batches(document=document, row_length=8, packing="isolated", pad_id=0, micro=1)
    reader = Prefetcher(made, 1, update=64, end=64)
    for number in (0, 1):
        reader([number])
    with ThreadPoolExecutor(1) as asking:
        asked = asking.submit(reader, [8])
        while min(reader._coming) < 8:
            time.sleep(0.01)
        (tmp_path / "now").touch()
        assert isinstance(asked.exception(120), ChildProcessError)
        reader.close()


def test_workers_end_with_the_process_they_work_for(tmp_path: Path) -> None:
    program = f"""if True:
        import os, sys, time
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from qwenvl.data.stream.batches import Batches
        from qwenvl.data.stream.prefetcher import Prefetcher
        made = Batches(document=print, row_length=8, packing="isolated", pad_id=0, micro=1)
        reader = Prefetcher(made, 1, update=1, end=0)
        print(reader._pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 120
    while _runs(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(worker)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_micro_batch_without_documents_is_a_row_of_padding() -> None:
    """Fewer rows than micro-batches, or all its documents left out: the step is taken by every rank all the same."""
    of_three = Document("", of_length(3))
    made = Batches(
        document=lambda _: of_three, row_length=64, packing="isolated", pad_id=9, micro=2, window=8
    )
    rows = [made(range(k, k + 2)) for k in range(0, 8, 2)]
    assert [int((each.segments > 0).sum()) for each in rows] == [0, 0, 0, 24]
    assert all(each.ids.shape == (1, 64) for each in rows) and (rows[0].ids == 9).all()


def test_data_that_is_all_wrong_stops_the_run(tmp_path: Path) -> None:
    lines = records_lines(tmp_path / "r.jsonl", mixed_records(tmp_path / "images", 3)[:3])
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    row = SourceConfig(paths=(str(lines),))
    stream = Stream(sources=(row,), tokenizer=BYTES, queries=QUERIES, longest=256, seed=0)
    made = Batches(document=stream, row_length=256, packing="isolated", pad_id=0, micro=4, window=32)
    message = r"none of 32 documents in a row can be used; the first, r.jsonl, byte \d+: missing image"
    with pytest.raises(ValueError, match=message):
        made(range(4))


def test_a_row_of_a_mixture_is_checked() -> None:
    with pytest.raises(ValueError, match="a row of a mixture names no paths"):
        SourceConfig(paths=())
    with pytest.raises(
        ValueError, match=r"the format of a.jsonl is 'point'; expected one of caption, question"
    ):
        SourceConfig(paths=("a.jsonl",), format="point")
    with pytest.raises(ValueError, match=r"the weight of a.jsonl is 0; expected more than 0"):
        SourceConfig(paths=("a.jsonl",), weight=0.0)
