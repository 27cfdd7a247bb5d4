"""The algorithms of distributed training, as values and pure functions.

Nothing here knows of Ray, files, sockets, wall clocks or global random state: an algorithm is handed all it
needs and returns all it decides, so that it can be read next to its paper and tested on a laptop in
milliseconds. The programs that call these functions live in `trainers` and `orchestrator`.
"""
