"""Workers in a row that are lost at any time and begin again: with any order of turns the undisturbed run's states.

The processes, the connections and the driver (`orchestrator.engines.replacing`) are played here; what is held and sent
again is `trainers.decoupled.held`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.decoupled.held import Held, Message, Place
from trainers.decoupled.links import Mark

STEPS, EVALUATE, TESTS = 24, 5, 2
BIG = (1 << 31) - 1


class Driver:
    """What is known of the run, and the states that a lost worker may begin with."""

    def __init__(self, modules: int) -> None:
        self.modules = modules
        self.states: dict[int, dict[int, int]] = {0: {module: module + 1 for module in range(modules)}}
        self.whole, self.known, self.told = 0, -1, 0
        self.measured: dict[int, dict[int, tuple[int, ...]]] = {}
        self.under_way: dict[int, tuple[int, int]] = {}

    def heard(self) -> None:
        while self.known < self.told:
            step = self.known + 1
            evaluated = step % EVALUATE or len(self.measured.get(step, ())) == self.modules
            if not evaluated:
                break
            self.known = step
        whole = [step for step, parts in self.states.items() if len(parts) == self.modules and step <= self.known]
        self.whole = max(self.whole, *whole, 0)

    def kept(self) -> tuple[int, int]:
        ways = [(self.whole, self.known), *self.under_way.values()]
        return min(step for step, _ in ways), min(step for _, step in ways)


class Process:
    """One worker's process: it takes, makes, holds and reports, and gives its turn back wherever it has to wait."""

    def __init__(self, run: Run, module: int, begin: int, known: int, lost: bool) -> None:
        self.run, self.module, self.begin, self.known, self.lost = run, module, begin, known, lost
        self.reached = run.driver.told
        place = Place.behind(begin, known)
        self.had = self.taken = place
        self.held = None if module + 1 == run.modules else Held(run.queue, run.limit, place)
        self.arrived: deque[Message] = deque()
        self.state = run.driver.states[begin][module]
        self.turns = self._live()
        self.done = False

    def _live(self) -> Generator[None]:
        driver = self.run.driver
        if self.begin == 0:
            yield from self._evaluate(0)
        for step in range(self.begin + 1, STEPS + 1):
            given = yield from self._take(Place(step, 0, 0))
            made = (given * 31 + self.state * 7 + step) % BIG
            yield from self._put(Place(step, 0, 0), made)
            self.state = (self.state * 17 + made) % BIG
            if self.held is None:
                driver.told = max(driver.told, step)
            new = step > self.reached if self.held is None else self.held.is_new(step)
            if self.lost and new:
                driver.under_way.pop(self.module, None)
            if step % EVALUATE == 0:
                yield from self._evaluate(step)
            if step % self.run.every == 0 or step == STEPS:
                driver.states.setdefault(step, {})[self.module] = self.state
            yield
        self.done = True

    def _evaluate(self, step: int) -> Generator[None]:
        if self.lost and step <= self.known:
            return
        found = []
        for index in range(TESTS):
            given = yield from self._take(Place(step, 1, index))
            found.append((given + self.state) % BIG)
            yield from self._put(Place(step, 1, index), found[-1])
        before = self.run.driver.measured.setdefault(step, {}).setdefault(self.module, tuple(found))
        assert before == tuple(found)

    def _take(self, place: Place) -> Generator[None, None, int]:
        if self.module == 0:
            return place.step * 1000 + place.index
        while True:
            while not self.arrived:
                yield
            message = self.arrived.popleft()
            self.taken = message.place
            self.run.held(self.module - 1).taken(message.place)
            assert message.place <= place
            if message.place == place:
                return int(message.carry["h"])

    def _put(self, place: Place, made: int) -> Generator[None]:
        if self.held is not None:
            while not self.held.fits(place):
                yield
            self.held.put(Message(place, Mark(0, 0, 0), {"h": torch.tensor(made)}))


class Run:
    """Processes in a row and what is between them."""

    def __init__(self, modules: int, queue: int, every: int) -> None:
        self.modules, self.queue, self.every = modules, queue, every
        self.limit = every + queue * modules
        self.driver = Driver(modules)
        self.processes = [Process(self, module, 0, -1, False) for module in range(modules)]
        for module in range(1, modules):
            self._connect(module)

    def held(self, module: int) -> Held:
        held = self.processes[module].held
        assert held is not None
        return held

    def lose(self, module: int) -> None:
        driver = self.driver
        driver.under_way.pop(module, None)
        begin, known = driver.under_way[module] = driver.kept()
        self.processes[module] = Process(self, module, begin, known, True)
        for reader in (module, module + 1):
            if 0 < reader < self.modules:
                self._connect(reader)

    def turn(self, module: int) -> None:
        next(self.processes[module].turns, None)
        if module:
            message = self.held(module - 1).next()
            if message is not None:
                self.processes[module].arrived.append(message)
                self.processes[module].had = message.place
        self.driver.heard()
        for process in self.processes:
            if process.held is not None:
                process.held.keep(*self.driver.kept())

    def _connect(self, reader: int) -> None:
        self.held(reader - 1).read_by(self.processes[reader].had, self.processes[reader].taken)


def finished(modules: int, queue: int, every: int, seed: int, kills: list[int]) -> Driver:
    """Play a run in a drawn order of turns, with as many workers lost at drawn moments."""
    drawn, run = random.Random(seed), Run(modules, queue, every)
    moments = sorted(drawn.randrange(4, 60 * modules) for _ in kills)
    for turn in range(6000 * modules):
        if moments and turn >= moments[0]:
            run.lose(kills[len(kills) - len(moments)] % modules)
            moments.pop(0)
            continue
        run.turn(drawn.randrange(modules))
        if all(process.done for process in run.processes) and not moments:
            return run.driver
    places = [(process.module, process.begin, process.taken) for process in run.processes]
    raise AssertionError(f"the run stands still: {places}")


@settings(deadline=None, max_examples=60)
@given(
    modules=st.integers(2, 4),
    queue=st.integers(1, 3),
    every=st.integers(1, 9),
    seed=st.integers(0, 1 << 20),
    kills=st.lists(st.integers(0, 3), min_size=1, max_size=4),
)
def test_whoever_is_lost_and_whenever_the_run_ends_with_the_states_and_measures_of_the_undisturbed_one(
    modules: int, queue: int, every: int, seed: int, kills: list[int]
) -> None:
    calm, found = finished(modules, queue, every, 0, []), finished(modules, queue, every, seed, kills)
    assert found.states[STEPS] == calm.states[STEPS] and found.measured == calm.measured
