"""The engine's thread ends when it is told to, whenever that is."""

import asyncio
import threading

from serving import ScriptedEngine

from qwenvl.serve.worker import Worker


class EndedBeforeItIsCleared(threading.Event):
    """The moment between a look at whether to end and sleep, in which somebody says so."""

    worker: Worker | None = None

    def clear(self) -> None:
        if self.worker is not None:
            other = threading.Thread(target=self.worker.stop, args=(0,))
            other.start()
            other.join()
        super().clear()


def test_an_end_that_is_told_just_before_sleep_is_heard() -> None:
    async def start(worker: Worker, wake: EndedBeforeItIsCleared) -> None:
        wake.worker = worker
        worker.start()
        await asyncio.to_thread(worker._thread.join, 10)

    worker = Worker(lambda: ScriptedEngine(lambda prompt, settings: []))
    wake = worker._wake = EndedBeforeItIsCleared()
    asyncio.run(start(worker, wake))
    assert not worker._thread.is_alive()
