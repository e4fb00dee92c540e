"""The scheduler beside a model of what it schedules: requests come, grow, are pre-empted, vanish and end."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qwenvl.generate.scheduler import CHUNK, Decode, Preempt, Quantum, Read, Scheduler, See, Start, stop
from qwenvl.model.cache import bucket

SECONDS = {Decode: 1.0, Read: 3.0, See: 5.0}


class Fake:
    """A runner without a model: knows the length of every row, and what has been written."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.rows: dict[int, int] = {}
        self.prompts: dict[int, int] = {}
        self.most: dict[int, int] = {}
        self.written: dict[int, int] = {}
        self.images: dict[int, int] = {}
        self.cuts: dict[int, tuple[int, ...]] = {}
        self.salts: dict[int, bytes] = {}
        self.places: list[tuple[int, bool]] = []  # every start: who, and whether for the first time
        self.preempted: dict[int, int] = {}
        self.ended: list[int] = []

    def add(self, number: int, prompt: int, most: int, salt: bytes, images: int) -> None:
        self.prompts[number], self.most[number], self.images[number] = prompt, prompt + most, images
        self.salts[number], self.written[number] = salt, 0
        self.cuts[number] = tuple(range(prompt // 3, prompt, CHUNK))[:images]
        self.scheduler.add(number, prompt=prompt, most=prompt + most, salt=salt, cuts=self.cuts[number])

    def end(self, number: int) -> None:
        self.scheduler.remove(number)
        self.rows.pop(number, None)
        del self.prompts[number]
        self.ended.append(number)

    def work(self) -> Quantum | None:
        while isinstance(quantum := self.scheduler.next(), Start | Preempt):
            if isinstance(quantum, Start):
                assert quantum.row not in self.rows
                self.places.append((quantum.row, quantum.row not in self.preempted))
                self.rows[quantum.row] = 0
                self.scheduler.started(quantum.row, read=0, unseen=self.images[quantum.row] > 0)
            else:
                self.preempted[quantum.row] = self.preempted.get(quantum.row, 0) + 1
                del self.rows[quantum.row]
        if quantum is None:
            return None
        for row in quantum.rows:
            assert row in self.rows and row in self.prompts
        if isinstance(quantum, See):
            self.scheduler.done(quantum, SECONDS[See], seen=quantum.rows[:1])
            return quantum
        if isinstance(quantum, Read):
            for row, end in zip(quantum.rows, quantum.stops, strict=True):
                assert quantum.start == self.rows[row] < end <= self.prompts[row]
                assert quantum.start % CHUNK == 0 or quantum.start in self.cuts[row]
                assert end == stop(quantum.start, self.prompts[row], self.cuts[row])
                self.rows[row] = end
        else:
            for row in quantum.rows:
                assert self.rows[row] >= self.prompts[row]
                self.rows[row] += 1
        self.scheduler.done(quantum, SECONDS[type(quantum)])
        for row in quantum.rows:
            if self.rows[row] == self.prompts[row] + self.written[row]:  # all that is known is read: one more
                self.written[row] += 1
                if self.rows[row] + 1 == self.most[row]:
                    self.end(row)
        return quantum


class Schedule(RuleBasedStateMachine):
    @initialize(rows=st.integers(1, 4), capacity=st.sampled_from([768, 1024, 2048]), ahead=st.integers(1, 3))
    def begin(self, rows: int, capacity: int, ahead: int) -> None:
        self.scheduler = Scheduler(rows=rows, capacity=capacity, slot_tokens=bucket, share=1.0, ahead=ahead)
        self.fake, self.count, self.since = Fake(self.scheduler), 0, 0

    @rule(
        prompt=st.integers(1, 400),
        most=st.integers(1, 300),
        salt=st.sampled_from([b"", b"a"]),
        images=st.integers(0, 1),
    )
    def add(self, prompt: int, most: int, salt: bytes, images: int) -> None:
        self.fake.add(self.count, prompt, most, salt, images)
        self.count += 1

    @precondition(lambda self: self.fake.prompts)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.fake.end(data.draw(st.sampled_from(sorted(self.fake.prompts))))

    @rule(steps=st.integers(1, 200))
    def work(self, steps: int) -> None:
        for _ in range(steps):
            running = [row for row, length in self.fake.rows.items() if length >= self.fake.prompts[row]]
            quantum = self.fake.work()
            self.since = 0 if isinstance(quantum, Decode) or not running else self.since + 1
            assert self.since <= 1, "two quanta of others between two tokens"
            self.book()

    @invariant()
    def book(self) -> None:
        scheduler, fake = self.scheduler, self.fake
        held = sum(bucket(length) for length in fake.rows.values() if length)
        assert held <= scheduler.reserved <= scheduler.capacity
        assert len(fake.rows) <= scheduler.running <= scheduler.rows
        assert scheduler.running + scheduler.waiting == len(fake.prompts)
        assert all(times == 1 for times in fake.preempted.values()), "an aged request went twice"
        for salt in (b"", b"a"):
            first = [row for row, fresh in fake.places if fresh and fake.salts[row] == salt]
            assert first == sorted(first), "first come, first served"

    def teardown(self) -> None:
        for _ in range(20_000):
            if self.fake.work() is None:
                break
        assert not self.scheduler.busy and self.scheduler.reserved == 0 and not self.fake.rows
        assert sorted(self.fake.ended) == list(range(self.count)), "every request ends exactly once"


TestSchedule = Schedule.TestCase
TestSchedule.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)


def test_salts_take_turns():
    scheduler = Scheduler(rows=1, capacity=4096, slot_tokens=bucket)
    fake = Fake(scheduler)
    for number, salt in enumerate([b"a", b"a", b"a", b"b"]):
        fake.add(number, 10, 2, salt, 0)
    while fake.work() is not None:
        pass
    assert [row for row, _ in fake.places] == [0, 3, 1, 2]


def test_running_rows_get_their_share():
    """Behind each chunk of another, as many seconds of steps as it took; never two chunks in a row."""
    scheduler = Scheduler(rows=2, capacity=4096, slot_tokens=bucket)
    fake = Fake(scheduler)
    fake.add(0, 10, 200, b"", 0)
    fake.work()
    fake.add(1, 3 * CHUNK, 5, b"", 1)
    assert fake.cuts[1] == (CHUNK,)
    kinds = [type(fake.work()) for _ in range(16)]
    assert kinds == [
        See,
        *[Decode] * 5,
        Read,
        *[Decode] * 3,
        Read,
        *[Decode] * 3,
        Read,
        Decode,
    ]


def test_chunks_end_at_multiples_and_at_cuts():
    ends, start = [], 0
    while start < 300:
        start = stop(start, 300, (40, CHUNK, 200))
        ends.append(start)
    assert ends == [40, CHUNK, 200, 2 * CHUNK, 300]


@pytest.mark.parametrize("phase", ["waiting", "started", "reading", "running"])
def test_who_goes_leaves_nothing(phase: str):
    scheduler = Scheduler(rows=1, capacity=1024, slot_tokens=bucket)
    fake = Fake(scheduler)
    fake.add(0, 300, 50, b"", 0)
    for _ in range({"waiting": 0, "started": 1, "reading": 2, "running": 4}[phase]):
        fake.work()
    fake.end(0)
    scheduler.remove(0)
    assert scheduler.next() is None and not scheduler.busy and scheduler.reserved == 0


def test_who_has_not_begun_gives_its_place_back_without_being_pre_empted():
    """Admitted, but its row was never given: there is nothing to take away. Found by the machine above, rarely."""
    scheduler = Scheduler(rows=3, capacity=1024, slot_tokens=bucket, ahead=3)
    fake = Fake(scheduler)
    asked = [
        (178, 219, 0),
        (1, 148, 1),
        (243, 295, 0),
        (1, 2, 1),
        (365, 155, 1),
        (265, 123, 0),
        (231, 300, 1),
    ]
    asked += [(335, 109, 0), (56, 1, 1), (56, 1, 1), (2, 82, 1), (125, 231, 0), (112, 201, 0)]
    for number, (prompt, most, salt) in enumerate(asked):
        fake.add(number, prompt, most, b"a" * salt, 0)
    while fake.work() is not None:
        assert scheduler.preemptions == sum(fake.preempted.values())
    assert sorted(fake.ended) == list(range(len(asked)))
