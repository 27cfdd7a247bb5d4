"""Stages of a model: layers cut from it, what a rank does with them, and how ranks talk.

layers, tracing   a model as a chain of layers
chunk             consecutive layers: forward, backward and recomputation of micro-batches
interpreter       a rank's list of actions, run
rank              one optimizer step, evaluation and state of a stage
inline, program   all ranks in one process; one rank of a gang
"""
