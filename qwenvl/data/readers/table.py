"""The readers by name: `qwenvl data read NAME ...` and the rows of Table 3 that they feed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from qwenvl.data.readers import captions, detection, grounding, ocr, questions
from qwenvl.data.records import Pair, Record, Skipped

Read: TypeAlias = Callable[[Sequence[Path], Path], Iterator[Record | Skipped] | Iterator[Pair | Skipped]]
"""(annotation files, folder of pictures) -> records, or raw pairs still to be cleaned."""


class Reader(NamedTuple):
    """One data set in the form its authors published."""

    read: Read
    task: str
    """Row of Table 3 that it feeds; "raw" for pairs that have to be cleaned first."""
    files: str
    """What to give as annotation files."""


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "vqav2": Reader(questions.vqav2, "VQA", "questions.json annotations.json"),
        "gqa": Reader(questions.gqa, "VQA", "train_balanced_questions.json"),
        "vgqa": Reader(questions.vgqa, "VQA", "question_answers.json image_data.json"),
        "dvqa": Reader(questions.dvqa, "VQA", "train_qa.json"),
        "ocr-vqa": Reader(questions.ocr_vqa, "VQA", "dataset.json"),
        "docvqa": Reader(questions.docvqa, "VQA", "train_v1.0.json"),
        "textvqa": Reader(questions.textvqa, "VQA", "TextVQA_0.5.1_train.json"),
        "chartqa": Reader(questions.chartqa, "VQA", "train_human.json train_augmented.json"),
        "ai2d": Reader(questions.ai2d, "VQA", "the folder questions/"),
        "grit-captions": Reader(grounding.grit_captions, "Grounding", "parquet or .jsonl"),
        "grit-phrases": Reader(grounding.grit_phrases, "Ref Grounding", "parquet or .jsonl"),
        "visual-genome": Reader(
            grounding.genome_regions, "Ref Grounding", "region_descriptions.json image_data.json"
        ),
        "refcoco": Reader(grounding.refcoco, "Ref Grounding", "refs(unc).p instances.json"),
        "refcoco+": Reader(grounding.refcoco_plus, "Ref Grounding", "refs(unc).p instances.json"),
        "refcocog": Reader(grounding.refcocog, "Ref Grounding", "refs(umd).p instances.json"),
        "flickr30k-entities": Reader(
            grounding.flickr30k_entities, "Grounding", "the folders Annotations/ Sentences/"
        ),
        "coco": Reader(detection.coco, "Ref Grounding", "instances_train2017.json"),
        "voc": Reader(detection.voc, "Ref Grounding", "the folder Annotations/"),
        "yolo": Reader(detection.yolo, "Ref Grounding", "the folder labels/ and classes.txt"),
        "labelme": Reader(detection.labelme, "Ref Grounding", "NAME.json files or their folder"),
        "icdar": Reader(ocr.icdar, "OCR", "NNN.csv files or their folder"),
        "coco-caption": Reader(captions.coco_captions, "Captioning", "captions_train2017.json"),
        "clean": Reader(captions.clean_captions, "Captioning", "the folder that `data clean` wrote"),
        "cc3m": Reader(captions.cc3m, "raw", "Train_GCC-training.tsv"),
        "cc12m": Reader(captions.cc12m, "raw", "cc12m.tsv"),
        "sbu": Reader(captions.sbu, "raw", "sbu-captions-all.json"),
        "web": Reader(captions.web_pairs, "raw", "parquet, .tar or .jsonl"),
    }
)


def read(name: str, files: Sequence[Path], images: Path) -> Iterator[Record | Pair | Skipped]:
    """What the reader `name` finds; raises ValueError for an unknown name, and for files in another form."""
    reader = READERS.get(name)
    if reader is None:
        raise ValueError(f"there is no reader {name!r}; known: {', '.join(READERS)}.")
    if not files:
        raise ValueError(f"no annotation file named; {name} needs {reader.files}.")
    try:
        yield from reader.read(files, images)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"the annotations are not in the form of {name} ({type(error).__name__}: {error}); "
            f"give {reader.files} as published."
        ) from error
