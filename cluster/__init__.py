"""Ray, and only Ray: connecting, inventory, placement, worker pools, job submission and fault injection.

Nothing here knows what is trained. A worker is any class named as `module:Class`; what it is asked and what it
answers are opaque. `cluster.executor` states the one interface that the engines use, and `cluster.inline` is
that interface without Ray.
"""
