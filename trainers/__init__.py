"""The programs that workers run: client cohorts, models, data sets and the wire format.

A worker is a plain class, built and called by an executor it never sees. Nothing here knows of Ray, of MLflow
or of the run it is part of.
"""
