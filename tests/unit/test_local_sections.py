"""The `rule:` sections say what the rules take, with the same defaults."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from pydantic import TypeAdapter

from orchestrator.config.local_rules import LocalRule
from strategies.local import RULES, rule

SECTIONS = {name: TypeAdapter(LocalRule).validate_python({"name": name}) for name in RULES}


@pytest.mark.parametrize("name", RULES)
def test_a_section_has_the_arguments_and_defaults_of_its_rule(name: str) -> None:
    taken = inspect.signature(RULES[name]).parameters
    defaults: dict[str, Any] = {argument: one.default for argument, one in taken.items()}
    said = SECTIONS[name].arguments(2)
    if "modules" in defaults:
        assert said.pop("modules") == 2 and SECTIONS[name].modules is None
        defaults.pop("modules")
    assert said == defaults
    assert rule(name, **SECTIONS[name].arguments(2)).name == name
