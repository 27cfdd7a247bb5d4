"""A priority queue that is a value: pushing and popping return a new queue and leave the old one as it was.

A step of the server can therefore be planned, thrown away and planned again, and its state kept for a checkpoint,
without copying the hundred thousand tickets of an anarchic run: `push` and `pop` share all but O(log n) nodes.

Source: leftist heaps, Okasaki 1998, "Purely functional data structures", section 3.1. Nodes are plain tuples
`(rank, item, left, right)`; None is the empty queue. Items come out in order, whatever the shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

Node = tuple[int, Any, "Node | None", "Node | None"]
Queue = Node | None


def build(items: Iterable[Any]) -> Queue:
    """Return the queue of all items, in O(n log n)."""
    ordered = sorted(items)
    nodes: list[Queue] = [None] * (2 * len(ordered) + 2)
    for index in range(len(ordered) - 1, -1, -1):  # a sorted list is a heap: the children of i are 2i + 1 and 2i + 2
        nodes[index] = _node(ordered[index], nodes[2 * index + 1], nodes[2 * index + 2])
    return nodes[0]


def push(queue: Queue, item: Any) -> Queue:
    """Return the queue with one item more."""
    return _merge(queue, (1, item, None, None))


def pop(queue: Node) -> tuple[Any, Queue]:
    """Return the smallest item and the queue without it."""
    return queue[1], _merge(queue[2], queue[3])


def items(queue: Queue) -> Iterator[Any]:
    """Yield all items, in no particular order."""
    stack = [queue]
    while stack:
        node = stack.pop()
        if node is not None:
            yield node[1]
            stack += (node[2], node[3])


def _merge(one: Queue, other: Queue) -> Queue:
    if one is None:
        return other
    if other is None:
        return one
    if other[1] < one[1]:
        one, other = other, one
    return _node(one[1], one[2], _merge(one[3], other))  # right spines are O(log n) long, and so is the recursion


def _node(item: Any, left: Queue, right: Queue) -> Node:
    low, high = (left[0] if left else 0), (right[0] if right else 0)
    return (high + 1, item, left, right) if low >= high else (low + 1, item, right, left)
