"""Whatever is written, saved, killed and resumed, clients' states equal those of a dict copied at every save."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from pyarrow import fs

from orchestrator import client_store
from orchestrator.checkpoints import CheckpointStore
from orchestrator.engines.base import RunState

STATES = st.dictionaries(
    st.one_of(st.integers(0, 12), st.integers(0, 10**12)),
    st.binary(max_size=40) | st.integers(0, 255).map(lambda n: bytes([n]) * 600),
    max_size=6,
)
KEEP = 2


class ClientsOfARun(RuleBasedStateMachine):
    """A run's process writes states at steps, saves, is killed, and is resumed from any kept checkpoint."""

    seen = Bundle("seen")

    @initialize(remote=st.booleans(), tiny=st.booleans())
    def begin(self, remote: bool, tiny: bool) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.remote = remote
        self.patch = pytest.MonkeyPatch()
        if tiny:  # so that segments are merged, and scratch files renewed, all the time
            for name, value in (
                ("_MOVED_BYTES", 700),
                ("_SMALL_BYTES", 1500),
                ("_MOST_SMALL", 3),
                ("_SLACK_BYTES", 900),
            ):
                self.patch.setattr(client_store, name, value)
        self.step = 0
        self.now: dict[int, bytes] = {}
        self.saved: dict[int, dict[int, bytes]] = {}
        self.process(None)

    def process(self, step: int | None) -> None:
        self.store = CheckpointStore(self.folder / "checkpoints", KEEP)
        if self.remote:
            self.store._fs = fs.SubTreeFileSystem("/", fs.LocalFileSystem())
            self.store._clients = type(self.store._clients)(self.store._fs, self.store._clients.root)
        self.clients = self.store.client_store(self.folder, step)

    @rule(target=seen, states=STATES)
    def a_step(self, states: dict[int, bytes]) -> int:
        self.step += 1
        self.clients.write(states)
        self.clients.commit()
        self.now |= states
        return next(iter(states), 0)

    @rule(states=STATES, saves=st.booleans())
    def a_step_is_thrown_away_and_the_process_ends(self, states: dict[int, bytes], saves: bool) -> None:
        self.clients.write(states)
        assert all(
            bytes(got) == want for got, want in zip(self.clients.read(list(states)), states.values(), strict=True)
        )
        if saves:
            self.save()
        self.killed(0)

    @rule()
    def save(self) -> None:
        self.store.save(RunState(self.step, {"w": torch.zeros(1)}, {}), self.clients)
        older = {step: states for step, states in self.saved.items() if step <= self.step}
        self.saved = dict(sorted((older | {self.step: dict(self.now)}).items())[-KEEP:]) | {
            step: states for step, states in self.saved.items() if step > self.step
        }
        assert self.store.steps() == sorted(self.saved)

    @rule(back=st.integers(0, KEEP - 1))
    def killed(self, back: int) -> None:
        self.clients.close()
        steps = sorted(self.saved)
        at = steps[max(0, len(steps) - 1 - back)] if steps else None
        self.process(at)
        self.step, self.now = (at, dict(self.saved[at])) if at is not None else (0, {})

    @rule(client=seen)
    def ask(self, client: int) -> None:
        self.check([client, client + 1, client])

    @invariant()
    def all_are_as_remembered(self) -> None:
        if hasattr(self, "clients"):
            self.check([*self.now, 3, 99])
            assert len(self.clients) == len(self.now)

    def check(self, asked: list[int]) -> None:
        states = self.clients.read(asked)
        assert [None if state is None else bytes(state) for state in states] == [self.now.get(c) for c in asked]

    def teardown(self) -> None:
        if hasattr(self, "clients"):
            for step, states in self.saved.items():
                kept = self.store.client_store(self.folder, step)
                assert [bytes(state) for state in kept.read(list(states))] == list(states.values())
                assert len(kept) == len(states)
            self.clients.close()
            self.patch.undo()
            shutil.rmtree(self.folder)


TestClientsOfARun = ClientsOfARun.TestCase
TestClientsOfARun.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
