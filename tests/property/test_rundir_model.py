"""Whatever happens to a run directory, its metrics are those that were logged: a model of a list and a filter."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.files import to_json
from orchestrator.rundir import RunDirectory

steps = st.integers(0, 6)
names = st.sampled_from(["test/accuracy", "comm/uplink_bytes", "a/b/c", "é/ü"])
values = st.floats(allow_nan=True, allow_infinity=True)


class Writer(RuleBasedStateMachine):
    """Log, flush, truncate, crash in the middle of each, come back."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="rundir-"))
        self.run = RunDirectory.create(self.folder, "x", "", {})
        self.rows: list[tuple] = []
        self.kinds: list[str] = []

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(step=steps, logged=st.dictionaries(names, values, max_size=3))
    def log(self, step: int, logged: dict[str, float]) -> None:
        self.run.log(step, step / 3, step / 7, logged)
        self.kinds.append("metrics")
        for name, value in logged.items():
            scope, _, rest = name.partition("/")
            self.rows.append((step, step / 3, step / 7, scope, rest, value))

    @rule()
    def event(self) -> None:
        self.run.event("other", text="{\n")
        self.kinds.append("other")

    @rule()
    def flush(self) -> None:
        self.run.flush_metrics()

    @rule(step=steps)
    def truncate(self, step: int) -> None:
        self.run.truncate_metrics(step)
        self._truncated(step)

    @rule(step=steps)
    def crash_while_truncating(self, step: int) -> None:
        """The process dies after the event and before the Parquet file is replaced."""
        self.run.event("metrics_truncated", step=step)
        self._truncated(step)

    def _truncated(self, step: int) -> None:
        self.rows = [row for row in self.rows if row[0] <= step]
        self.kinds.append("metrics_truncated")

    @rule(step=steps, share=st.floats(0, 1))
    def crash_while_logging(self, step: int, share: float) -> None:
        fields = {"step": step, "wall_s": 0, "virtual_s": 0, "values": {"a/b": 1}}
        line = to_json({"time": 0.0, "kind": "metrics", **fields})
        with (self.run.path / "events.jsonl").open("rb+") as file:
            content = file.read()
            if content and not content.endswith(b"\n"):
                return  # already torn: a dead process does not write again
            file.write(line.encode()[: int(share * (len(line) - 1))])

    @rule()
    def crash_while_flushing(self) -> None:
        (self.run.path / ".metrics.parquet.0.tmp").write_bytes(b"PAR1")

    @rule()
    def come_back(self) -> None:
        self.run = RunDirectory.open(self.run.path)

    @rule()
    @precondition(lambda self: (self.run.path / "metrics.parquet").exists())
    def lose_the_parquet_file(self) -> None:
        (self.run.path / "metrics.parquet").unlink()

    @invariant()
    def the_table_is_the_list(self) -> None:
        table = [tuple(row.values()) for row in self.run.metrics().to_pylist()]
        assert repr(table) == repr(self.rows)  # repr: NaN equals itself, and -0.0 differs from 0.0

    @invariant()
    def the_events_are_those_appended(self) -> None:
        assert [event["kind"] for event in self.run.events()] == self.kinds


TestWriter = Writer.TestCase
TestWriter.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(fields=st.dictionaries(st.text(min_size=1).filter(lambda key: key != "updated"), json_values, max_size=5))
@settings(max_examples=60, deadline=None)
def test_manifest_fields_come_back_as_they_were(fields: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(Path(folder), "x", "", {})
        before = run.manifest
        fields = {key: value for key, value in fields.items() if key not in before and key != "metrics"}
        run.update_manifest(**fields)
        after = RunDirectory.open(run.path).manifest
        assert {**before, **fields, "updated": after["updated"]} == after


@given(fields=st.dictionaries(st.text(min_size=1).filter(lambda key: key not in ("kind", "time")), json_values))
@settings(max_examples=60, deadline=None)
def test_event_fields_come_back_as_they_were(fields: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(Path(folder), "x", "", {})
        run.event("any", **fields)
        (event,) = run.events()
        assert {key: value for key, value in event.items() if key not in ("kind", "time")} == fields


@given(value=st.floats(allow_nan=True, allow_infinity=True))
def test_strict_json_never_holds_a_bare_nan(value: float) -> None:
    import json

    json.loads(to_json({"value": value, "list": [value]}), parse_constant=pytest.fail)
