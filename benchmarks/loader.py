"""What the loader delivers: how full its rows are, how fast it is beside a training step and in decoding images.

    python benchmarks/loader.py [--image-sizes 24] [--rounds 5] [--photos FOLDER] [--only fill|images|step]

    fill       documents of Table 3 in their shares, lengths as the formats of Box B.1 have them, rows of 2,048 tokens
    images     JPEG -> float32 tensor on one thread, image by image in turn: the exact path (Pillow), simplejpeg
               before Pillow's filter (as exact, and not used because of what is printed here), the fast path
    step       documents per second of one loader process, from tars of JPEGs to packed rows with their images, beside
               what one training step of recipes/tiny consumes on one thread, in turn

Times are CPU time of the process, the least of the rounds; other work on the machine still makes them longer.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image as pillow

from qwenvl import images
from qwenvl.data.formats import Example
from qwenvl.data.mixtures import MULTITASK
from qwenvl.data.packing import PACKINGS
from qwenvl.data.stream.batches import Batches
from qwenvl.data.stream.images import square
from qwenvl.data.stream.order import Draw, permuted
from qwenvl.data.stream.sources import Document
from qwenvl.data.tars import write_tar
from qwenvl.data.toy.streams import vocabulary_texts
from qwenvl.model.vlm import QwenVL
from qwenvl.presets import tiny
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.data import batches
from qwenvl.train.objectives import next_token
from qwenvl.train.stages import StageConfig
from qwenvl.train.toy import initialise_narrow_

IMAGE = 258
LENGTHS = {
    "Captioning": (12, 80), "VQA": (15, 50), "Grounding": (60, 250), "Ref Grounding": (25, 45),
    "Grounded Cap.": (25, 45), "OCR": (100, 1700), "Pure-text Autoregression": (50, 1790),
}  # fmt: skip
"""Tokens beside the image of each task, least and most: our estimate, the paper prints none."""

SIZES = ((640, 480, 224), (640, 480, 448), (1024, 768, 448), (2048, 1536, 448))
"""Width and height of an image, and the side of its square."""


def fill() -> None:
    draw = Draw([row.millions for row in MULTITASK], 0)

    def document(number: int) -> Document:
        name = MULTITASK[draw(number)[0]].name
        least, most = LENGTHS[name]
        image = IMAGE * (name != "Pure-text Autoregression")
        length = image + least + permuted(0, most - least + 1, number)
        zeros = (0,) * length
        return Document(name, Example(ids=zeros, labels=zeros, branches=zeros, positions=zeros, images=()))

    print(
        f"{'window':>8}" + "".join(f"{packing:>14}" for packing in PACKINGS) + "   of rows of 2,048, filled"
    )
    for window in (4, 64, 256, 1024, 4096):
        shares = []
        for packing in PACKINGS:
            made = Batches(
                document=document, row_length=2048, packing=packing, pad_id=0, micro=window, window=window
            )
            rows = [made(range(start, start + window)) for start in range(0, 4096, window)]
            shares.append(np.average([each.fill for each in rows], weights=[len(each.ids) for each in rows]))
        print(f"{window:>8}" + "".join(f"{share:>14.1%}" for share in shares))


def photo(seed: int, width: int, height: int) -> bytes:
    """A JPEG with large shapes, small ones and grain, of about the bytes of a photograph."""
    random = np.random.default_rng(seed)
    levels = np.zeros((height, width, 3))
    for cells, weight in ((4, 0.5), (16, 0.3), (64, 0.2)):
        small = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        levels += weight * np.asarray(
            pillow.fromarray(small).resize((width, height), pillow.Resampling.BICUBIC)
        )
    levels += random.normal(0, 5, levels.shape)
    file = io.BytesIO()
    pillow.fromarray(levels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def by_simplejpeg(data: bytes, size: int) -> np.ndarray:
    """Another decoder before Pillow's own filter."""
    image = pillow.fromarray(simplejpeg.decode_jpeg(data, "RGB"))
    return images.normalise(images.resize(image, size))


def image_sizes(count: int, rounds: int, photos: Path | None) -> None:
    ways: dict[str, Callable[[bytes, int], np.ndarray]] = {
        "exact": lambda data, size: images.normalise(square(data, size)),
        "simplejpeg": by_simplejpeg,
        "fast": lambda data, size: images.normalise(square(data, size, fast=True)),
    }
    sets: list[tuple[str, int, list[bytes]]] = [
        (f"{width} x {height}", size, [photo(seed, width, height) for seed in range(count)])
        for width, height, size in SIZES
    ]
    if photos is not None:
        files = sorted(file for file in photos.iterdir() if file.suffix.lower() in (".jpg", ".jpeg"))
        sets.append((f"{len(files)} of {photos.name}", 448, [file.read_bytes() for file in files]))
    print(
        f"{'image':<16}{'side':>6}{'KB':>6}{'exact ms':>10}{'simplejpeg':>12}{'fast':>8}   levels that differ in it"
    )
    for name, size, encoded in sets:
        seconds = {way: np.full(len(encoded), np.inf) for way in ways}
        for _ in range(rounds):
            for number, data in enumerate(encoded):
                for way, make in ways.items():
                    start = time.process_time()
                    make(data, size)
                    seconds[way][number] = min(seconds[way][number], time.process_time() - start)
        off = [
            np.abs(square(data, size).astype(int) - square(data, size, fast=True).astype(int))
            for data in encoded
        ]
        for data in encoded:
            assert np.array_equal(by_simplejpeg(data, size), ways["exact"](data, size)), (
                "another decoder, other levels"
            )
        times = {way: each.mean() for way, each in seconds.items()}
        ratios = {way: times["exact"] / each for way, each in times.items()}
        share, most = np.mean([np.mean(each > 0) for each in off]), max(each.max() for each in off)
        kilobytes = np.mean([len(data) for data in encoded]) / 1000
        print(
            f"{name:<16}{size:>6}{kilobytes:>6.0f}{1000 * times['exact']:>10.1f}{ratios['simplejpeg']:>11.2f}x"
            f"{ratios['fast']:>7.2f}x   {share:.2%}, by {most} at most"
        )


def step(rounds: int) -> None:
    tokenizer = Tokenizer.train(vocabulary_texts(300), 400)
    model = QwenVL(tiny(tokenizer.n_vocab, tokenizer.imgpad))
    initialise_narrow_(model, torch.Generator().manual_seed(0))
    recipe = StageConfig.read(Path(__file__).parents[1] / "recipes/tiny/2-multitask.toml")
    with tempfile.TemporaryDirectory() as folder:
        with write_tar(Path(folder) / "0.tar") as tar:
            for number in range(256):
                text = (
                    f"an image with the number {number} and things that are told in about a dozen words or so"
                )
                tar.add(f"{number:05}.jpg", photo(number, 256, 192))
                tar.add(f"{number:05}.json", json.dumps({"text": text}).encode())
        rows = [{"paths": [folder]}]
        stage = recipe.changed({"data": rows, "documents": 64, "micro_documents": 16, "window": 64})
        reader = batches(stage, tokenizer, model.config.adapter.queries)
        objective = next_token(model, tokenizer, stage)
        numbers = [range(start, start + 16) for start in range(0, 16 * (rounds + 1), 16)]
        read, trained = [], []
        for documents in numbers:
            start = time.process_time()
            batch = reader(documents)
            read.append(time.process_time() - start)
            start = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=stage.bfloat16):
                objective.loss(objective.placed(batch)).total.backward()
            trained.append(time.process_time() - start)
    loader, training = 16 / np.mean(read[1:]), 16 / np.mean(trained[1:])
    print(
        f"loader   {loader:>8,.0f} documents/s of one process, JPEGs of 256 x 192 to packed rows at 112 pixels"
    )
    print(f"step     {training:>8,.0f} documents/s forward and backward of the tiny preset, one thread")
    print(f"the loader delivers {loader / training:.1f}x what the step consumes")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image-sizes", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=Path, default=None)
    parser.add_argument("--only", choices=("fill", "images", "step"), default=None)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    if given.only in (None, "fill"):
        fill()
    if given.only in (None, "images"):
        image_sizes(given.image_sizes, given.rounds, given.photos)
    if given.only in (None, "step"):
        step(given.rounds)


if __name__ == "__main__":
    main()
