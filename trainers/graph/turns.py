"""Ranks of a graph pipeline in one process: threads of which one runs at a time, each until it waits for another.

A layer may need rows of another rank in the middle of its forward or backward, where no generator can yield, so ranks
are threads. As only one of them ever runs, and each finds torch's random stream as it left it, a run in one process
draws and computes what ranks in processes of their own do. A wait that nobody can end is an error that says who waits
for what.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from trainers.pipeline.collective import LocalCollective, Pending
from trainers.pipeline.transport import Key, Spec

T = TypeVar("T")


class Stuck(RuntimeError):
    """All ranks wait for one another."""


class _Abandoned(BaseException):
    """Another rank has failed."""


class Turns:
    """Hands one baton round."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._holder = 0
        self._waits: dict[int, str] = {}
        self._alive: list[int] = []
        self._fruitless = 0
        self._failure: BaseException | None = None
        self._me = threading.local()

    def run(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Run all to their ends and return what they returned; the first failure is raised.

        Each begins with torch's random stream as it is now, and so it is left. An interruption of the calling thread
        ends all at their next wait.
        """
        results: dict[int, T] = {}
        self._alive, self._holder, self._failure, self._waits = list(range(len(works))), 0, None, {}
        self._fruitless = 0
        threads, grad, random = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_rng_state()

        def body(number: int) -> None:
            self._me.number = number
            torch.set_num_threads(threads)  # a setting of each thread
            torch.set_grad_enabled(grad)
            with self._condition:
                self._condition.wait_for(lambda: self._holder == number or self._failure is not None)
            try:
                if self._failure is None:
                    self._fruitless = 0  # what it does until it waits may be what others wait for
                    torch.set_rng_state(random)
                    results[number] = works[number]()
            except _Abandoned:
                pass
            except BaseException as error:
                self._failure = self._failure or error
            finally:
                self._pass_on(gone=True)

        running = [threading.Thread(target=body, args=(number,), daemon=True) for number in range(len(works))]
        try:
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
        except BaseException as error:
            self._failure = self._failure or error
            with self._condition:
                self._condition.notify_all()
            for thread in running:
                if thread.ident is not None:  # it has been started
                    thread.join()
        finally:
            torch.set_rng_state(random)
        if self._failure is not None:
            raise self._failure
        return [results[number] for number in range(len(works))]

    def wait(self, ready: Callable[[], bool], what: Callable[[], str]) -> None:
        """Let others run until `ready`.

        Raises:
            Stuck: when all that are left wait in vain.
        """
        if self._failure is not None:
            raise _Abandoned
        if ready():
            self._fruitless = 0
            return
        number = self._me.number
        random = torch.get_rng_state()
        while not ready():
            self._waits[number] = what()
            self._fruitless += 1
            if self._fruitless > len(self._alive):
                told = "; ".join(f"rank {rank} waits for {self._waits[rank]}" for rank in sorted(self._waits))
                self._failure = Stuck(f"no rank can go on: {told}")
            self._pass_on()
            with self._condition:
                self._condition.wait_for(lambda: self._holder == number or self._failure is not None)
            if self._failure is not None:
                raise _Abandoned
        self._fruitless = 0
        self._waits.pop(number, None)
        torch.set_rng_state(random)

    def _pass_on(self, gone: bool = False) -> None:
        with self._condition:
            place = self._alive.index(self._me.number)
            following = self._alive[(place + 1) % len(self._alive)]
            if gone:
                self._alive.pop(place)
                self._fruitless = 0
            self._holder = following
            self._condition.notify_all()


class TurnTransport:
    """Messages between ranks that take turns.

    Args:
        board: shared by all ranks. scope: which of their groups. rank: this one's number in it.
    """

    def __init__(self, turns: Turns, board: dict[tuple[str, int, Key], dict[str, Tensor]], scope: str, rank: int):
        self._turns, self._board, self._scope, self._rank = turns, board, scope, rank
        self.sent_bytes = 0

    def expect(self, key: Key, specs: Sequence[Spec], source: int) -> None:
        """Nothing to post: a message needs no buffer."""

    def ready(self, key: Key) -> bool:
        """Wait until the message is there."""
        place = (self._scope, self._rank, key)
        self._turns.wait(lambda: place in self._board, lambda: f"{key} of {self._scope}")
        return True

    def receive(self, key: Key) -> dict[str, Tensor]:
        self.ready(key)
        return self._board.pop((self._scope, self._rank, key))

    def give_back(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to use again: tensors are the sender's."""

    def let_go(self, tensors: Sequence[Tensor]) -> None:
        """Nothing is held."""

    def send(self, key: Key, tensors: dict[str, Tensor], target: int) -> None:
        place = (self._scope, target, key)
        assert place not in self._board, f"{key} is sent twice"
        if target != self._rank:
            self.sent_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        self._board[place] = tensors

    def flush(self) -> None:
        """Nothing is on its way: what is sent is there."""


class TurnCollective(LocalCollective):
    """Sums over ranks that take turns: whoever asks for one waits for it."""

    def __init__(
        self,
        turns: Turns,
        sizes: dict[str, int],
        board: dict[tuple[str, int], dict[int, Tensor]],
        member: int,
    ) -> None:
        super().__init__(sizes, board, member)
        self._turns = turns

    def sum(self, group: str, tensor: Tensor) -> Pending:
        pending = super().sum(group, tensor)

        def ready() -> bool:
            self._turns.wait(pending.ready, lambda: f"a sum over {group}")
            return True

        return Pending(ready, pending.result)
