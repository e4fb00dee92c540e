"""The benchmarks of sections 4.1 to 4.5 and of Table 11: one row each, with the paper's numbers.

Prompts, lengths and metrics are those of the release's scripts (paper Table 9); where a script and the paper differ,
the script counts, because the published numbers came from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwenvl.data.datasets import (
    ai2d,
    chartqa,
    coco,
    docvqa,
    drawings,
    exams,
    flickr30k,
    gqa,
    grit_refexp,
    mmbench,
    ocrvqa,
    refcoco,
    scienceqa,
    seed,
    textvqa,
    touchstone,
    toyworld,
    vizwiz,
    vqav2,
)
from qwenvl.data.datasets import mme as mme_data
from qwenvl.data.datasets import own as own_samples
from qwenvl.data.datasets.sample import Sample, Source
from qwenvl.data.drawings.splits import SPLITS, VOCABULARIES
from qwenvl.data.toy.items import QUESTIONS
from qwenvl.evaluation import own
from qwenvl.evaluation.asking import Decoding
from qwenvl.evaluation.metrics import mme
from qwenvl.evaluation.metrics.multiple_choice import lettered
from qwenvl.evaluation.naming import COUNT, NAMES, NOUN
from qwenvl.evaluation.published import Published
from qwenvl.evaluation.scoring import (
    ANLS,
    CIDER,
    CIRCULAR,
    EXACT,
    GQA,
    IOU,
    IOU_ABOVE,
    LETTER,
    MME,
    RELAXED,
    TOY,
    VQA,
    Metric,
)
from qwenvl.generate.sampling import SamplingConfig
from qwenvl.markup import Image, Ref, Segment, Text
from qwenvl.options import RELEASED

OWN_TABLE = "own samples"
"""The table of whatever training reads, each task by itself."""
TOY_TABLE = "toy world"
"""The table of what is made on the spot, and needs no files."""
DRAWN_TABLE = "drawings"
"""The table of what is asked about a fetched folder of drawings."""

Ask = Callable[[Sample], list[Segment]]
Read = Callable[[Source], list[Sample]]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One row of the score card."""

    name: str
    title: str
    table: str
    """Where the paper reports it."""
    split: str
    read: Read
    ask: Ask
    decoding: Decoding | None
    """None: all are answered by the likeliest of their options, as questions with options are in any benchmark."""
    lettered: bool = True
    """Whether options are told apart by their letters, ` A`, ` B`, ..., or by their texts."""
    whole: bool = False
    """Whether an option is as likely as it is as an answer, all its tokens and the end, or as they are on average."""
    metric: Metric | None
    """None: a judge's (TouchStone)."""
    published: Published
    prompt_format: Literal["raw", "chatml"] | None = "raw"
    """How the release's script asks, chat models too; None: as the checkpoint wants to be asked."""
    numbered: bool = False
    """In ChatML, whether images are introduced as `Picture k: ` (MME's script does not)."""
    open_with: tuple[str, ...] = ()
    """Control symbols that begin the answer."""
    submit: Literal["vqa", "vizwiz", "docvqa", "mmbench"] | None = None
    """Form of the file for the test server."""
    takes_examples: bool = True
    """Whether solved examples of another split can stand before its questions."""
    unit: Callable[[Sample], str] = lambda sample: sample.id
    """Questions that a limited run takes or leaves together: those about the same image, where they are few each."""

    def source(
        self,
        data: Path | None,
        answers: Path | None = None,
        images: Path | None = None,
        prompt_format: str | None = None,
    ) -> Source:
        """Where its questions are, and how they are asked.

        Raises ValueError if they need files and none are given, or need none and some are.
        """
        if prompt_format == "raw" and self.name.startswith("own-dialogue"):
            raise ValueError(f"{self.name} is asked in ChatML, as it was written; leave out --prompt-format.")
        prompt_format = prompt_format or self.prompt_format or "chatml"
        if self.table == TOY_TABLE:
            files = (("--data", data), ("--answers", answers), ("--images", images))
            if given := [option for option, path in files if path is not None]:
                raise ValueError(f"{self.name} is made on the spot and reads no files; leave out {given[0]}.")
            return Source(Path(), prompt_format=prompt_format)
        if answers is not None and self.table == OWN_TABLE:
            raise ValueError(f"{self.name} finds the answers in the samples; leave out --answers.")
        if data is None:
            raise ValueError(
                f"{self.name} needs its files: --data FILE; docs/EVALUATION.md says which and from where."
            )
        return Source(data, answers, images, prompt_format=prompt_format)


# === Prompts (paper Table 9) ===


def describe(sample: Sample) -> list[Segment]:
    """A caption in the words of the evaluation script; training said `Generate the caption in English:`."""
    return [*_images(sample), Text("Describe the image in English:")]


def answer(sample: Sample) -> list[Segment]:
    """An open question."""
    return [*_images(sample), Text(f"{sample.text} Answer:")]


def find(sample: Sample) -> list[Segment]:
    """A phrase, to be followed by its box."""
    return [*_images(sample), Ref(sample.text)]


def choose_with_context(sample: Sample) -> list[Segment]:
    """ScienceQA and MMBench: hint, question, lettered options."""
    options = "\n".join(lettered(sample.options))
    context = f"Context: {sample.context or 'N/A'}\n"
    return [*_images(sample), Text(f"{context}Question: {sample.text}\nOptions: {options}\nAnswer:")]


def choose(sample: Sample) -> list[Segment]:
    """SEED-Bench: each image or frame on a line of its own."""
    options = "\n".join(lettered(sample.options))
    images: list[Segment] = []
    for image in _images(sample):
        images += [image, Text("\n")]
    return [*images, Text(f"Question: {sample.text}\nOptions: {options}\nAnswer:")]


def exam(sample: Sample) -> list[Segment]:
    """Solved examples, then a question that its reader has laid out."""
    return [Text(sample.context + sample.text)]


def yes_or_no(sample: Sample) -> list[Segment]:
    """MME: the question on the line below its image."""
    return [*_images(sample), Text(f"\n{sample.text}")]


def talk(sample: Sample) -> list[Segment]:
    """TouchStone and the toy world: an instruction as it is written, behind its images."""
    return [*_images(sample), Text(sample.text)]


def as_made(sample: Sample) -> list[Segment]:
    """The toy world: markup of its own."""
    return list(sample.content)


def _images(sample: Sample) -> list[Segment]:
    return [Image(image) for image in sample.images]


# === Decoding (paper Table 9) ===

CAPTION = Decoding(max_new_tokens=30, min_new_tokens=8)
SHORT = Decoding(max_new_tokens=10, min_new_tokens=1)
LONG = Decoding(max_new_tokens=100, min_new_tokens=1)
TOY_SHORT = Decoding(max_new_tokens=64)
TOY_LONG = Decoding(max_new_tokens=160)
"""The longest right answer, a caption with five boxes, has about 110 tokens."""
BOX = Decoding(max_new_tokens=28, min_new_tokens=10)
NEARLY_GREEDY = Decoding(max_new_tokens=512, sampling=SamplingConfig(greedy=False, top_p=0.01))
CHAT = Decoding(max_new_tokens=512, sampling=RELEASED)

SHIKRA = "Shikra-13B"
INSTRUCT_BLIP = "InstructBLIP (Vicuna-13B)"
PIX2STRUCT = "Pix2Struct-Large"


def _captioning(name: str, title: str, split: str, read: Read, published: Published) -> Benchmark:
    return Benchmark(
        name=name, title=title, table="Table 4", split=split, read=read, ask=describe,
        decoding=CAPTION, metric=CIDER, published=published,
    )  # fmt: skip


def _question(
    name: str,
    title: str,
    split: str,
    read: Read,
    metric: Metric,
    published: Published,
    *,
    table: str = "Table 4",
    decoding: Decoding = SHORT,
    submit: Literal["vqa", "vizwiz", "docvqa"] | None = None,
) -> Benchmark:
    return Benchmark(
        name=name, title=title, table=table, split=split, read=read, ask=answer,
        decoding=decoding, metric=metric, published=published, submit=submit,
    )  # fmt: skip


def _phrase(name: str, title: str, split: str, base: float, chat: float, best: float) -> Benchmark:
    return Benchmark(
        name=name, title=title, table="Table 6", split=split, read=refcoco.samples(split), ask=find,
        decoding=BOX, metric=IOU, published=Published(base, chat, best, SHIKRA), open_with=("<box>",),
    )  # fmt: skip


def _choice(
    name: str, title: str, table: str, split: str, read: Read, ask: Ask, published: Published
) -> Benchmark:
    """Examinations bring solved examples of their own."""
    return Benchmark(
        name=name, title=title, table=table, split=split, read=read, ask=ask, decoding=None, metric=LETTER,
        published=published, takes_examples=ask is not exam,
    )  # fmt: skip


def _dialogue(
    name: str,
    title: str,
    split: str,
    read: Read,
    decoding: Decoding,
    metric: Metric | None,
    published: Published,
) -> Benchmark:
    return Benchmark(
        name=name, title=title, table="Table 7", split=split, read=read, ask=yes_or_no if metric else talk,
        decoding=decoding, metric=metric, published=published, prompt_format="chatml", numbered=metric is None,
        takes_examples=metric is not None,
    )  # fmt: skip


def _toy(
    name: str, title: str, kinds: tuple[str, ...], metric: Metric, ask: Ask = talk, *, chat: bool = False
) -> Benchmark:
    """Asked in the raw formats of Appendix B, but about two images, which only dialogues have."""
    choice = metric is LETTER
    return Benchmark(
        name=f"toyworld-{name}", title=f"Toy {title}", table=TOY_TABLE, split="test",
        read=toyworld.of_kinds(kinds), ask=ask, decoding=None if choice else TOY_SHORT, lettered=False,
        metric=metric, published=Published(None, None), prompt_format="chatml" if chat else "raw", numbered=chat,
        open_with=("<box>",) if metric is IOU else (),
    )  # fmt: skip


def _drawn(name: str, title: str, read: Read, metric: Metric, ask: Ask = answer) -> Benchmark:
    choice = metric is NOUN
    return Benchmark(
        name=f"drawings{name}", title=f"Drawings: {title}", table=DRAWN_TABLE, split=", ".join(SPLITS), read=read,
        ask=ask, decoding=None if choice else TOY_SHORT, lettered=False, whole=choice, metric=metric,
        published=Published(None, None), open_with=("<box>",) if ask is find else (), takes_examples=False,
    )  # fmt: skip


def _own(task: str, how: own.OwnTask) -> Benchmark:
    """Asked as it is trained: dialogues in ChatML, with the numbers that their images have, the rest raw."""
    return Benchmark(
        name=f"own-{task}", title=f"Own {how.title}", table=OWN_TABLE, split="all", read=own_samples.of_task(task),
        ask=as_made, decoding=how.decoding, metric=how.metric, published=Published(None, None),
        prompt_format="chatml" if task.startswith("dialogue") else "raw", open_with=how.open_with,
        takes_examples=how.takes_examples,
    )  # fmt: skip


ROWS = (
    # --- Table 4: captions and general questions
    _captioning("flickr30k", "Flickr30K", "Karpathy test", flickr30k.samples,
                Published(85.8, 81.0, 82.8, INSTRUCT_BLIP)),
    _captioning("nocaps", "NoCaps", "val", coco.samples, Published(121.4, 120.2, 121.9, INSTRUCT_BLIP)),
    _question("vqav2", "VQAv2", "test-dev, val", vqav2.samples, VQA,
              Published(79.5, 78.2, 77.9, "Unified-IO-XL"), submit="vqa"),
    _question("okvqa", "OKVQA", "val", vqav2.samples, VQA, Published(58.6, 56.6, 54.0, "Unified-IO-XL")),
    _question("gqa", "GQA", "testdev-balanced", gqa.samples, GQA, Published(59.3, 57.5, 49.5, INSTRUCT_BLIP)),
    _choice("scienceqa", "ScienceQA-Img", "Table 4", "test, with image", scienceqa.samples, choose_with_context,
            Published(67.1, 68.2, 63.1, INSTRUCT_BLIP)),
    _question("vizwiz", "VizWiz", "test-dev, val", vizwiz.samples, VQA,
              Published(35.2, 38.9, 33.4, INSTRUCT_BLIP), submit="vizwiz"),
    # --- Table 5: questions about text
    _question("textvqa", "TextVQA", "val", textvqa.samples, VQA,
              Published(63.8, 61.5, 52.6, "mPLUG-DocOwl"), table="Table 5"),
    _question("docvqa", "DocVQA", "test, val", docvqa.samples, ANLS,
              Published(65.1, 62.6, 76.6, PIX2STRUCT), table="Table 5", decoding=LONG, submit="docvqa"),
    _question("chartqa", "ChartQA", "test, human and augmented", chartqa.samples, RELAXED,
              Published(65.7, 66.3, 58.6, PIX2STRUCT), table="Table 5", decoding=LONG),
    _question("ai2d", "AI2D", "test", ai2d.samples, EXACT,
              Published(62.3, 57.7, 42.1, PIX2STRUCT), table="Table 5"),
    _question("ocrvqa", "OCR-VQA", "test", ocrvqa.samples, EXACT,
              Published(75.7, 70.5, 71.3, PIX2STRUCT), table="Table 5", decoding=LONG),
    # --- Table 6: referring expressions
    _phrase("refcoco-val", "RefCOCO val", "val", 89.36, 88.55, 87.83),
    _phrase("refcoco-testA", "RefCOCO testA", "testA", 92.26, 92.27, 91.11),
    _phrase("refcoco-testB", "RefCOCO testB", "testB", 85.34, 84.51, 81.81),
    _phrase("refcoco+-val", "RefCOCO+ val", "val", 83.12, 82.82, 82.89),
    _phrase("refcoco+-testA", "RefCOCO+ testA", "testA", 88.25, 88.59, 87.79),
    _phrase("refcoco+-testB", "RefCOCO+ testB", "testB", 77.21, 76.79, 74.41),
    _phrase("refcocog-val", "RefCOCOg val", "val", 85.58, 85.96, 82.64),
    _phrase("refcocog-test", "RefCOCOg test", "test", 85.48, 86.32, 83.16),
    Benchmark(
        name="grit", title="GRIT refexp", table="Table 6", split="test", read=grit_refexp.samples, ask=find,
        decoding=BOX, metric=IOU_ABOVE, published=Published(78.22, None, 78.61, "Unified-IO"), open_with=("<box>",),
    ),
    # --- Table 7: instructions
    _dialogue("touchstone-en", "TouchStone En", "En", touchstone.samples, CHAT, None,
              Published(None, 645.2, 605.4, "mPLUG-Owl")),
    _dialogue("touchstone-cn", "TouchStone Cn", "Cn", touchstone.samples, CHAT, None,
              Published(None, 401.2, 247.1, "VisualGLM")),
    _choice("seed", "SEED-Bench", "Table 7", "all dimensions", seed.samples("all"), choose,
            Published(56.3, 58.2, 53.4, "InstructBLIP")),
    _choice("seed-image", "SEED-Bench image", "Table 7", "dimensions 1-9", seed.samples("image"), choose,
            Published(62.3, 65.4, 58.8, "InstructBLIP")),
    _choice("seed-video", "SEED-Bench video", "Table 7", "dimensions 10-12", seed.samples("video"), choose,
            Published(39.1, 37.8, 38.1, "InstructBLIP")),
    _dialogue("mme-perception", "MME perception", "10 subtasks", mme_data.samples(mme.PERCEPTION), NEARLY_GREEDY, MME,
              Published(None, 1487.58, 1212.82, "InstructBLIP")),
    _dialogue("mme-cognition", "MME cognition", "4 subtasks", mme_data.samples(mme.COGNITION), NEARLY_GREEDY, MME,
              Published(None, 360.71, 291.79, "InstructBLIP")),
    # --- Not in the paper, but in the release
    Benchmark(
        name="mmbench", title="MMBench", table="release", split="dev, test", read=mmbench.samples,
        ask=choose_with_context, decoding=None, metric=CIRCULAR, published=Published(None, None), submit="mmbench",
    ),
    # --- Table 11: text only
    _choice("mmlu", "MMLU", "Table 11", "test, 5-shot", exams.samples(("question", *"ABCD", "answer")), exam,
            Published(50.7, None, 54.2, "Baichuan2-7B")),
    _choice("cmmlu", "CMMLU", "Table 11", "test, 5-shot", exams.samples(), exam,
            Published(49.5, None, 57.1, "Baichuan2-7B")),
    _choice("ceval", "C-Eval", "Table 11", "val, 5-shot", exams.samples(split="val"), exam,
            Published(51.1, None, 54.0, "Baichuan2-7B")),
    # --- The toy world: all kinds of questions about an image, and each kind in small
    Benchmark(
        name="toyworld", title="Toy world", table=TOY_TABLE, split="test", read=toyworld.samples, ask=as_made,
        decoding=TOY_LONG, lettered=False, metric=TOY, published=Published(None, None), prompt_format=None,
        numbered=True, takes_examples=False, unit=toyworld.scene_of,
    ),
    _toy("caption", "captions", ("caption",), CIDER),
    _toy("vqa", "questions", tuple(kind for kind in QUESTIONS if kind != "read"), EXACT),
    _toy("reading", "reading", ("read",), ANLS),
    _toy("refer", "phrases", ("refer",), IOU, find),
    _toy("choice", "choices", ("multiple_choice",), LETTER),
    _toy("two-images", "image pairs", ("two_images",), EXACT, chat=True),
    # --- Drawings that nobody trained on: their names, and scenes composed of them
    _drawn("", "names", drawings.naming("en"), NAMES),
    _drawn("-zh", "Chinese names", drawings.naming("zh"), NAMES),
    *(_drawn(f"-{size}", f"among {size} nouns", drawings.choosing(size), NOUN) for size in VOCABULARIES),
    _drawn("-grounding", "phrases", drawings.scenes("refer"), IOU, find),
    _drawn("-counting", "counts", drawings.scenes("count"), COUNT),
    _drawn("-reading", "signs", drawings.scenes("read"), ANLS),
    # --- Whatever training reads
    *(_own(task, how) for task, how in own.TASKS.items()),
)  # fmt: skip

BENCHMARKS: Mapping[str, Benchmark] = {row.name: row for row in ROWS}


def benchmark(name: str) -> Benchmark:
    """The row of this name. Raises ValueError with the nearest name for an unknown one."""
    if name not in BENCHMARKS:
        from difflib import get_close_matches

        near = get_close_matches(name, BENCHMARKS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no benchmark {name!r}; {hint}known: {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]
