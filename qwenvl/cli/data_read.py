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
    clean; or of cc3m, cc12m, sbu, web, whose raw pairs are written as JSON lines for `qwenvl data clean`. Every image
    is opened. What cannot be used is counted, and listed with its reason beside OUT, in a file that ends in
    .skipped.jsonl; where nothing can, OUT is not written and the exit status is 2.

      qwenvl data read gqa train.json --images images --out gqa.jsonl

    Args:
        reader: Name of the data set.
        annotations: Its files, in the order that the error message names them.
        out: JSON lines; images below its folder are named relative to it, others by their whole path.
        images: Folder of the images, which names never leave; images that come in tars are written beside OUT.
    """
    from qwenvl.data.datasets.table import read
    from qwenvl.data.datasets.writer import write

    counts, outside = write(read(reader, annotations, images), out)
    for kind, number in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"{number:>10,}  {kind}")
    if outside:
        print(
            f"{outside:,} records have an image outside {out.parent}: whoever reads {out.name} must name its folder "
            "(--images)"
        )
