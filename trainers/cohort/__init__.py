"""The worker of the rounds engine, and the messages between the two."""

from trainers.cohort.messages import ClientReport, EvalReport, PersonalReport, SpanReport, Work
from trainers.cohort.worker import CohortWorker

__all__ = ["ClientReport", "CohortWorker", "EvalReport", "PersonalReport", "SpanReport", "Work"]
