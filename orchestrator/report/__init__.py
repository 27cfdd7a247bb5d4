"""One self-contained HTML page per run and per sweep, made from the run directory alone.

`write_report` is all that the rest of the system needs. The page has no scripts and loads nothing; the same
files on disk give the same bytes.
"""

from __future__ import annotations

from pathlib import Path


def write_report(run_dir: Path | str) -> Path:
    """Write `report.html` into a run directory or sweep, and return its path.

    Raises:
        ResumeError: when this is no run directory or one of its files is damaged.
        OrchestratorError: when the page cannot be written.
    """
    from orchestrator.files import write_whole
    from orchestrator.report import page, reading, run_page, sweep_page
    from orchestrator.rundir import RunDirectory

    run = RunDirectory.open(run_dir)
    made = sweep_page.page(run) if run.manifest.get("kind") == "sweep" else run_page.page(reading.read(run))
    target = run.path / "report.html"
    write_whole(target, page.render(made))
    return target
