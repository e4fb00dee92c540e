"""The training view of the data sets by name: `qwenvl data read NAME ...`, and the rows of Table 3 that they feed."""

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from qwenvl.data.datasets import (
    ai2d,
    chartqa,
    coco,
    docvqa,
    dvqa,
    flickr30k,
    gqa,
    grit,
    icdar,
    labelme,
    ocrvqa,
    refcoco,
    textvqa,
    urls,
    visual_genome,
    voc,
    vqav2,
    web,
    yolo,
)
from qwenvl.data.datasets.entries import Found, FoundPairs
from qwenvl.data.records import Pair, Record, Skipped

Read: TypeAlias = Callable[[Sequence[Path], Path], Found | FoundPairs]
"""(annotation files, folder of images) -> records, or raw pairs still to be cleaned."""


class Dataset(NamedTuple):
    """One data set in the form its authors published."""

    records: Read
    task: str
    """Row of Table 3 that it feeds; "raw" for pairs that have to be cleaned first."""
    files: str
    """What to give as annotation files."""


DATASETS: Mapping[str, Dataset] = MappingProxyType(
    {
        "vqav2": Dataset(vqav2.records, "VQA", "questions.json annotations.json"),
        "gqa": Dataset(gqa.records, "VQA", "train_balanced_questions.json"),
        "vgqa": Dataset(visual_genome.questions, "VQA", "question_answers.json image_data.json"),
        "dvqa": Dataset(dvqa.records, "VQA", "train_qa.json"),
        "ocr-vqa": Dataset(ocrvqa.records, "VQA", "dataset.json"),
        "docvqa": Dataset(docvqa.records, "VQA", "train_v1.0.json"),
        "textvqa": Dataset(textvqa.records, "VQA", "TextVQA_0.5.1_train.json"),
        "chartqa": Dataset(chartqa.records, "VQA", "train_human.json train_augmented.json"),
        "ai2d": Dataset(ai2d.records, "VQA", "the folder questions/"),
        "grit-captions": Dataset(grit.captions, "Grounding", "tars, parquet, .jsonl or their folder"),
        "grit-phrases": Dataset(grit.phrases, "Ref Grounding", "tars, parquet, .jsonl or their folder"),
        "visual-genome": Dataset(
            visual_genome.regions, "Ref Grounding", "region_descriptions.json image_data.json"
        ),
        "refcoco": Dataset(refcoco.records, "Ref Grounding", "refs(unc).p instances.json"),
        "refcoco+": Dataset(refcoco.records_plus, "Ref Grounding", "refs(unc).p instances.json"),
        "refcocog": Dataset(refcoco.records_g, "Ref Grounding", "refs(umd).p instances.json"),
        "flickr30k-entities": Dataset(flickr30k.entities, "Grounding", "the folders Annotations/ Sentences/"),
        "coco": Dataset(coco.boxes, "Ref Grounding", "instances_train2017.json"),
        "voc": Dataset(voc.records, "Ref Grounding", "the folder Annotations/"),
        "yolo": Dataset(yolo.records, "Ref Grounding", "the folder labels/ and classes.txt or data.yaml"),
        "labelme": Dataset(labelme.records, "Ref Grounding", "NAME.json files or their folder"),
        "icdar": Dataset(icdar.records, "OCR", "NNN.csv files or their folder"),
        "coco-caption": Dataset(coco.records, "Captioning", "captions_train2017.json"),
        "clean": Dataset(web.clean, "Captioning", "the folder that `data clean` wrote"),
        "cc3m": Dataset(urls.cc3m, "raw", "Train_GCC-training.tsv"),
        "cc12m": Dataset(urls.cc12m, "raw", "cc12m.tsv"),
        "sbu": Dataset(urls.sbu, "raw", "sbu-captions-all.json"),
        "web": Dataset(web.pairs, "raw", "parquet, .tar, .jsonl or their folder"),
    }
)


def read(name: str, files: Sequence[Path], images: Path) -> Iterator[Record | Pair | Skipped]:
    """What a data set holds, entry by entry; raises ValueError for an unknown name or files in another form."""
    dataset = DATASETS.get(name)
    if dataset is None:
        raise ValueError(f"there is no reader {name!r}; known: {', '.join(DATASETS)}.")
    if not files:
        raise ValueError(f"no annotation file named; {name} needs {dataset.files}.")
    if (missing := next((path for path in files if not path.exists()), None)) is not None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(missing))
    try:
        yield from dataset.records(files, images)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"the annotations are not in the form of {name} ({type(error).__name__}: {error}); "
            f"give {dataset.files} as published."
        ) from error
