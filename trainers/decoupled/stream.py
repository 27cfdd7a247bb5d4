"""Messages between two processes over a socket that may break: either side may be lost and come again.

    outbox    listens, and sends whoever reads what it wants, out of `held.Held`
    inbox     finds the worker before, says what it has had, and reads; when the connection ends, it looks for that
              worker again, which may be another process by then

The reader connects, so a sender needs to know nobody. A reader says which message it has begun with, which is what lets
the sender go on; nothing else goes back. Whoever connects shows the word that the sender announced with its address.
"""

from __future__ import annotations

import json
import secrets
import select
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from trainers.decoupled.held import Held, Message, Place
from trainers.decoupled.links import Mark
from trainers.loop import Context

_HEAD = struct.Struct("!6qI")  # place, mark, length of the tensors' description
_HELLO = struct.Struct("!16s6q")  # word; last message had, last message begun with
_TAKEN = struct.Struct("!3q")
LOOK_S = 1.0
"""How often an inbox that hears nothing asks whether the worker before is another process now."""
CONNECT_S = 10.0
"""How long an inbox waits for a worker's node to answer, before it asks again where that worker is."""


class Address(Protocol):
    """Where a rank listens. `life` counts the processes that have been this rank; `word` is for who connects."""

    @property
    def life(self) -> int: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def word(self) -> bytes: ...


class Line(Context, Protocol):
    """What a gang of ranks that may be lost one by one gives each."""

    host: str
    patience_s: float

    def announce(self, port: int, word: bytes) -> None:
        """Say where this rank listens."""
        ...

    def find(self, rank: int, life: int, wait_s: float) -> Address | None:
        """Return where a rank listens that has lived more often than `life`; None when it does not come in time."""
        ...

    def kept(self, whole: int, known: int) -> tuple[int, int]:
        """Wait until nobody will begin before a later step than `whole`, or later steps are known; return both."""
        ...


class Outbox:
    """The sending end: a place to listen, and a thread that sends."""

    def __init__(self, line: Line, held: Held) -> None:
        self.held = held
        self._line = line
        self._changed = threading.Condition()
        self._reader: socket.socket | None = None
        self._failure: BaseException | None = None
        self._word = secrets.token_bytes(16)
        self._listener = socket.create_server((line.host, 0))
        line.announce(self._listener.getsockname()[1], self._word)
        for run in (self._accept, self._send, self._prune):
            threading.Thread(target=self._guarded, args=(run,), name=f"outbox{run.__name__}", daemon=True).start()

    def put(self, message: Message) -> None:
        """Hand a message over; waits for room.

        Raises:
            TimeoutError: when there is none for as long as the driver would wait.
        """
        with self._changed:
            fits = self._changed.wait_for(lambda: self._failure or self.held.fits(message.place), self._line.patience_s)
            if not fits:
                raise TimeoutError(f"the next worker took nothing within {self._line.patience_s:g} s")
            if self._failure:
                raise self._failure
            self.held.put(message)
            self._changed.notify_all()

    def is_new(self, step: int) -> bool:
        """Return whether batch `step` is one that the next worker did not have from another process before."""
        with self._changed:
            return self.held.is_new(step)

    def _guarded(self, run: Any) -> None:
        try:
            run()
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _accept(self) -> None:
        while True:
            reader, _ = self._listener.accept()
            threading.Thread(target=self._hear, args=(reader,), name="outbox_hear", daemon=True).start()

    def _hear(self, reader: socket.socket) -> None:
        """Take in what a reader says, until it says no more."""
        try:
            word, *places = _HELLO.unpack(_read(reader, _HELLO.size))
            if not secrets.compare_digest(word, self._word):
                reader.close()
                return
            reader.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                before, self._reader = self._reader, reader
                self.held.read_by(Place(*places[:3]), Place(*places[3:]))
                self._changed.notify_all()
            if before is not None:
                _end(before)  # a sender that waits for it to read
            while True:
                place = Place(*_TAKEN.unpack(_read(reader, _TAKEN.size)))
                with self._changed:
                    if self._reader is reader:
                        self.held.taken(place)
                        self._changed.notify_all()
        except OSError:  # it is gone, and comes again or another does
            with self._changed:
                if self._reader is reader:
                    self._reader = None
            _end(reader)

    def _send(self) -> None:
        while True:
            with self._changed:
                message = None
                while message is None:
                    message = self.held.next() if self._reader is not None else None
                    if message is None:
                        self._changed.wait()
                reader = self._reader
            assert reader is not None
            try:
                _write(reader, message)
            except OSError:  # what it has had it says when it comes again
                with self._changed:
                    if self._reader is reader:
                        self._reader = None

    def _prune(self) -> None:
        whole = known = -1
        while True:
            whole, known = self._line.kept(whole, known)
            with self._changed:
                self.held.keep(whole, known)
                self._changed.notify_all()


class Inbox:
    """The receiving end: a thread that reads from the worker before.

    Args:
        rank: of that worker. begin: the place after which messages are wanted.
    """

    def __init__(self, line: Line, rank: int, begin: Place) -> None:
        self._line, self._rank = line, rank
        self._changed = threading.Condition()
        self._arrived: deque[Message] = deque()
        self._had = self._taken = begin
        self._sender: socket.socket | None = None
        self._failure: BaseException | None = None
        threading.Thread(target=self._guarded, name="inbox", daemon=True).start()

    def take(self, place: Place) -> Message:
        """Wait for a message; those before it are passed over.

        Raises:
            TimeoutError: when it does not come for as long as the driver would wait.
        """
        deadline = time.monotonic() + self._line.patience_s
        while True:
            with self._changed:
                left_s = deadline - time.monotonic()
                if not self._changed.wait_for(lambda: self._failure or self._arrived, left_s):
                    raise TimeoutError(f"rank {self._rank} sent nothing within {self._line.patience_s:g} s")
                if not self._arrived:
                    assert self._failure is not None
                    raise self._failure
                message = self._arrived.popleft()
                self._taken, sender = message.place, self._sender
            if sender is not None:
                try:
                    sender.sendall(_TAKEN.pack(*message.place))
                except OSError:  # the thread that reads sees it too, and says it to the next one
                    _end(sender)
            if message.place == place:
                return message
            if message.place > place:
                raise RuntimeError(f"{message.place} came from rank {self._rank} where {place} was to come")

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _run(self) -> None:
        address = self._look(None)
        while True:
            try:
                address = self._listen(address)
            except OSError:  # it is gone, or this connection is
                with self._changed:
                    self._sender = None
                address = self._look(address)

    def _look(self, before: Address | None) -> Address:
        """Return where the worker before is now: another process than before, or after a moment the same."""
        found = self._line.find(self._rank, before.life if before else 0, LOOK_S if before else self._line.patience_s)
        if found is None and before is None:
            raise TimeoutError(f"rank {self._rank} did not listen within {self._line.patience_s:g} s")
        return found or before  # type: ignore[return-value]

    def _listen(self, address: Address) -> Address:
        """Read from one process until there is another, whose address is returned."""
        with socket.create_connection((address.host, address.port), timeout=CONNECT_S) as sender:
            sender.settimeout(None)
            sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                sender.sendall(_HELLO.pack(address.word, *self._had, *self._taken))
                self._sender = sender
            while True:
                if not select.select([sender], [], [], LOOK_S)[0]:
                    found = self._line.find(self._rank, address.life, 0.0)
                    if found is not None:
                        return found
                    continue
                message = _message(sender)
                with self._changed:
                    self._arrived.append(message)
                    self._had = message.place
                    self._changed.notify_all()


def _write(reader: socket.socket, message: Message) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in message.carry.items()}
    told = json.dumps([[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()])
    reader.sendall(_HEAD.pack(*message.place, *message.mark, len(told)) + told.encode())
    for tensor in tensors.values():
        if tensor.numel():
            reader.sendall(_bytes(tensor))


def _message(sender: socket.socket) -> Message:
    *numbers, length = _HEAD.unpack(_read(sender, _HEAD.size))
    carry = {}
    for name, dtype, shape in json.loads(_read(sender, length)):
        carry[name] = tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        if tensor.numel():
            _fill(sender, _bytes(tensor))
    return Message(Place(*numbers[:3]), Mark(*numbers[3:]), carry)


def _bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's memory."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _read(source: socket.socket, length: int) -> bytes:
    found = bytearray(length)
    _fill(source, memoryview(found))
    return bytes(found)


def _fill(source: socket.socket, room: memoryview) -> None:
    while room:
        count = source.recv_into(room)
        if not count:
            raise ConnectionError("the other end closed the connection")
        room = room[count:]


def _end(connection: socket.socket) -> None:
    """Close a connection, also for a thread that waits in it."""
    with suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
