"""`qwenvl data read`: annotation files of others to records."""

from pathlib import Path


def data_read(
    reader: str,
    annotations: tuple[Path, ...],
    /,
    *,
    out: Path,
    images: Path = Path("."),
) -> None:
    """Read annotations in the form their authors published them, and write one record per line.

    READER is one of vqav2, gqa, vgqa, dvqa, ocr-vqa, docvqa, textvqa, chartqa, ai2d, grit-captions, grit-phrases,
    visual-genome, refcoco, refcoco+, refcocog, flickr30k-entities, coco, voc, yolo, labelme, icdar, coco-caption,
    clean; or of cc3m, cc12m, sbu, web, whose raw pairs are written as JSON lines for `qwenvl data clean`. What cannot
    be read is counted, and listed with its reason beside OUT, in a file that ends in .skipped.jsonl.

      qwenvl data read gqa train.json --images images --out gqa.jsonl

    Args:
        reader: Name of the data set.
        annotations: Its files, in the order that the error message names them.
        out: JSON lines.
        images: Folder of the pictures; pictures that come in tars are written beside OUT.
    """
    from collections import Counter

    from qwenvl.data.readers.table import read
    from qwenvl.data.readers.writer import writer

    counts: Counter[str] = writer(read(reader, annotations, images), out)
    for kind, number in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"{number:>10,}  {kind}")
