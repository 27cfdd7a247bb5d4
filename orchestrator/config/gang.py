"""What the `strategy:` sections of all gangs have: a number of ranks, and steps that all of them make together."""

from __future__ import annotations

from abc import abstractmethod

from orchestrator.config.fields import Section


class GangSection(Section):
    """A strategy of ranks that talk to each other directly. It says `steps`, or overrides what is named after them."""

    @property
    @abstractmethod
    def num_ranks(self) -> int:
        """Processes that the strategy needs."""

    @property
    def replaces(self) -> bool:
        """Whether a rank that is lost is started again alone."""
        return False

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return int(self.steps)  # type: ignore[attr-defined]

    @property
    def unit(self) -> str:
        """What a step is called."""
        return "step"

    @property
    def steps_field(self) -> str:
        """Where `num_steps` is said."""
        return "strategy.steps"
