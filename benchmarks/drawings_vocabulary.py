"""The vocabulary of recipes/drawings: trained on what drawings are called, in two languages, and on words of scenes.

    python benchmarks/drawings_vocabulary.py FOLDER     # of `qwenvl data fetch drawings`; writes the recipe's file

Names and keywords count as often as they stand in the drawings that are trained on; the merges are the most frequent
pairs, so that the file is a function of the fetched packages.
"""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from qwenvl.data.drawings.collection import opened
from qwenvl.data.drawings.splits import nouns
from qwenvl.data.toy.streams import vocabulary_texts
from qwenvl.tokenizer import Tokenizer

MERGES = 2800
FILE = Path(__file__).parents[1] / "recipes" / "drawings"

TOLD = (
    "Generate the caption in English:", "Generate the caption in English with grounding:",
    "Generate the caption in Chinese:", "Generate the caption in Chinese with grounding:", "OCR with grounding:",
    "用英文描述这张图片：", "用中文描述这张图片：", "识别并定位图中的文字：", "框出", "What is this? Answer:",
    "What is on the left? Answer:", "How many are there? Answer:", "What color is the", "Is there a", "in the picture?",
    "Which picture shows", "Picture 1: ", "Picture 2: ", "It shows a", "There are two", "There are three", "and an",
    "on the left", "on the right", "at the top", "at the bottom", "in the middle", "What does the sign say?",
    "这是什么？", "图中有", "图片里有什么？", "左边", "右边", "上面", "下面", "中间", "是什么颜色？", "有几个",
    "牌子上写着什么？", "红色的", "绿色的", "蓝色的", "黄色的", "紫色的", "橙色的", "黑色的", "有。", "没有。",
    "一个", "两个", "三个", "四个", "五个", "和", "哪张图片里有", "You are a helpful assistant.",
)  # fmt: skip
"""How scenes are told and asked about; each counts `OFTEN` times."""

OFTEN = 400


def texts(folder: Path) -> Iterator[str]:
    """Everything that the merges are counted in."""
    for drawing in opened(folder).training():
        yield from (f" {drawing.en}", f" {drawing.en}", drawing.zh, drawing.zh, *drawing.keywords_zh[:4])
        yield from (f" {keyword}" for keyword in drawing.keywords[:6])
    for noun in nouns():
        yield from (f" {noun.noun}", *noun.zh) * 10
    for text in TOLD:
        yield from [text] * OFTEN
    yield from islice(vocabulary_texts(600), 20_000)


if __name__ == "__main__":
    vocabulary = Tokenizer.train(texts(Path(sys.argv[1])), MERGES)
    print(vocabulary.save(FILE), vocabulary.n_vocab)
    for shown in (" a grinning cat", " washing machine", "洗衣机", "自行车", " What color is the umbrella?"):
        print(repr(shown), [vocabulary.decode([each]) for each in vocabulary.encode(shown)])
