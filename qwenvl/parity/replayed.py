"""The recorded answers by this project's own static step, as it is or compiled: `qwenvl parity --through static`.

On a GPU it is captured as CUDA graphs. A door as those of other programs (`through.Door`), so that the same certificate
says that the dynamic engine, the static step and the compiled one write the same.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwenvl.generate.choosing import Settings
from qwenvl.generate.prompts import Prompt
from qwenvl.generate.replay import Replay
from qwenvl.parity.fixture import Fixture


@contextmanager
def opened(folder: Path, *, compiled: bool) -> Iterator[Any]:
    """`answers` of one model folder, in float32 on the default device."""
    fixture = Fixture(folder)
    replay, end = Replay(fixture.model, compiled=compiled), fixture.tokenizer.endoftext

    def answers(prompts: Sequence[tuple[Sequence[int], Sequence[Path]]], new_tokens: int) -> list[Any]:
        """(ids, log-probabilities) for each (ids with placeholders, files of images), up to end-of-text."""
        asked = [Prompt(ids=tuple(ids), pixels=fixture.arrays(files)) for ids, files in prompts]
        settings = Settings(max_new_tokens=new_tokens, stop=((end,),))
        written = apart.submit(replay.write, asked, settings).result()
        return [(list(each.ids), list(each.logprobs)) for each in written]

    # A default device is a mode of its thread, through which nothing compiles.
    with ThreadPoolExecutor(1) as apart:
        yield answers
