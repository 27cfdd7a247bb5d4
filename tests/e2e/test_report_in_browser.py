"""Reports as a browser shows them: of a real run, of a search, and of one that tries to break out of its page."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import orchestrator
from orchestrator.report import write_report
from orchestrator.rundir import RunDirectory

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--disable-dev-shm-usage",
    "--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=5000",
)  # fmt: skip

# Loads a page in a frame of a given width and tells how it came out; the page itself has no script.
MEASURE = """<!DOCTYPE html><body><iframe id=f width=%d height=900 src="%s"></iframe><script>
f.onload = () => {
  const page = f.contentDocument, told = {width: page.documentElement.scrollWidth, flat: [], sections: []};
  for (const svg of page.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect();
    if (!svg.closest("details:not([open])") && (box.width < 150 || box.height < 60)) told.flat.push(svg.ariaLabel);
  }
  for (const section of page.querySelectorAll("main > section")) told.sections.push(section.id);
  document.body.textContent = "MEASURED " + JSON.stringify(told) + " END";
};
</script>"""


class Seen(NamedTuple):
    """What a browser made of a page."""

    dom: str
    console: list[str]


Browser = Callable[[Path], Seen]


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser's path; skipped where there is none, except in CI, which installs it."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None and not os.environ.get("CI"):
        pytest.skip("install Chromium (Debian package chromium) to look at reports in a browser")
    assert found, "CI installs Chromium before the tests"
    return found


@pytest.fixture
def browse(chromium: str, tmp_path: Path) -> Browser:
    def open_page(path: Path) -> Seen:
        home = tmp_path / "browser"
        home.mkdir(exist_ok=True)
        command = [chromium, *FLAGS, f"--user-data-dir={home / 'profile'}", "--dump-dom", path.as_uri()]
        environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
            try:
                dom, log = process.communicate(timeout=120)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, log
        return Seen(dom, re.findall(r".*CONSOLE[:(].*", log))

    return open_page


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a real run of four rounds, trained in this process."""
    settings = {
        "name": "digits",
        "data": {"name": "digits", "partition": {"kind": "dirichlet", "clients": 12, "alpha": 0.5}},
        "model": {"name": "logistic"},
        "strategy": {"algorithm": {"name": "fedavg", "rounds": 4, "cohort": 5}, "behaviour": {"step_s": 0.1}},
        "cluster": {"workers": 0},
        "tracking": {"enabled": False},
        "storage": {"root": str(tmp_path_factory.mktemp("runs"))},
    }
    return orchestrator.run(settings).run_dir


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a real run of four steps over two stages, which take turns in this process."""
    settings = {
        "name": "stages",
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [32, 32, 32]},
        "strategy": {"kind": "pipeline", "stages": 2, "microbatches": 4, "schedule": "zero-bubble", "steps": 4},
        "cluster": {"workers": 0},
        "tracking": {"enabled": False},
        "storage": {"root": str(tmp_path_factory.mktemp("runs"))},
    }
    return orchestrator.run(settings).run_dir


def measured(browse: Browser, page: Path, width: int) -> dict:
    frame = page.with_name("measure.html")
    frame.write_text(MEASURE % (width, page.name))
    told = re.search(r"MEASURED (\{.*\}) END", browse(frame).dom)
    assert told, "the page did not load in its frame"
    return json.loads(told.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def test_a_real_runs_report_shows_its_sections_and_pictures_without_a_word_on_the_console(
    finished: Path, browse: Browser
) -> None:
    seen = browse(finished / "report.html")
    assert seen.console == []
    for section in ("curves", "clients", "bytes", "time", "partition", "numbers", "events", "config", "environment"):
        assert f'<section id="{section}">' in seen.dom
    assert seen.dom.count("<svg") >= 10
    assert "FINISHED" in seen.dom
    assert not re.findall(r"""(?:src|href|data|action)\s*=\s*["']?(?:https?:)?//""", seen.dom)
    assert "<script" not in seen.dom


@pytest.mark.parametrize("width", [400, 1280])
def test_a_report_fits_its_window_and_no_picture_is_flat(finished: Path, browse: Browser, width: int) -> None:
    told = measured(browse, finished / "report.html", width)
    assert told["width"] <= width
    assert told["flat"] == []
    assert len(told["sections"]) == 9


def test_a_pipelines_report_shows_its_timeline_without_a_word_on_the_console(pipeline: Path, browse: Browser) -> None:
    seen = browse(pipeline / "report.html")
    assert seen.console == []
    for text in ("Step 4 as measured and as predicted", "steps", "of 4", "weight gradients", "0 (Flatten)"):
        assert text in seen.dom
    assert seen.dom.count('class="bar ') == 2 * 2 * 4 * 3
    assert "round" not in re.sub(r"<style>.*?</style>|<pre.*?</pre>", "", seen.dom, flags=re.DOTALL)
    assert json.loads((pipeline / "timeline.trace.json").read_text())["otherData"]["step"] == 4


@pytest.mark.parametrize("width", [400, 1280])
def test_a_pipelines_report_fits_its_window(pipeline: Path, browse: Browser, width: int) -> None:
    told = measured(browse, pipeline / "report.html", width)
    assert told["width"] <= width
    assert told["flat"] == []
    assert told["sections"] == ["curves", "pipeline", "time", "numbers", "events", "config", "environment"]


def test_a_report_rebuilt_from_a_copy_of_the_folder_is_the_same_page(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "report.html").unlink()
    first = write_report(finished).read_bytes()
    assert write_report(copy).read_bytes() == first


def test_markup_in_names_stays_text_in_a_browser(tmp_path: Path, browse: Browser) -> None:
    evil = "</title></svg></style></pre><script>document.title='taken'</script><img src=//x.invalid onerror=alert(1)>"
    manifest = {"status": "FAILED", "seed": 1, "error": {"type": "E", "message": evil, "traceback": evil}}
    run = RunDirectory.create_at(tmp_path / "evil", "evil", f"name: '{evil}'\n", manifest)
    run.update_manifest(name=evil)
    run.event("worker_lost", reason=evil)
    run.log(1, 0, 0, {f"test/{evil}": 1.0, "test/accuracy": 0.5})
    seen = browse(write_report(run.path))
    assert seen.console == []
    assert "<script" not in seen.dom
    assert "<img" not in seen.dom
    assert "&lt;script&gt;document.title='taken'&lt;/script&gt;" in seen.dom


def test_the_console_would_tell_of_a_page_that_loads_something(finished: Path, tmp_path: Path, browse: Browser) -> None:
    """The check above can fail: the page's own policy refuses what a later change might add."""
    page = (finished / "report.html").read_text()
    (tmp_path / "loads.html").write_text(
        page.replace("</main>", '<script src="https://x.invalid/a.js"></script></main>')
    )
    assert any("Content Security Policy" in line for line in browse(tmp_path / "loads.html").console)


def test_a_searchs_report_shows_trials_curves_and_the_best_configuration(tmp_path: Path, browse: Browser) -> None:
    search = {"metric": "test/accuracy", "mode": "max", "space": {"strategy.client.optimizer.lr": {"grid": [0.1, 1.0]}}}
    run = RunDirectory.create_at(
        tmp_path / "s", "s", "name: s\n", {"kind": "sweep", "status": "FINISHED", "search": search}
    )
    for number, rate in enumerate((0.1, 1.0)):
        trial = {"number": number, "params": {"strategy.client.optimizer.lr": rate}}
        path = run.path / "trials" / str(number)
        made = RunDirectory.create_at(path, f"t{number}", f"name: t{number}\n", {"status": "FINISHED", "trial": trial})
        for step in range(5):
            made.log(step, step, step, {"test/accuracy": 1 - 0.5 ** (1 + step * rate)})
        write_report(made.path)
    page = write_report(run.path)
    seen = browse(page)
    assert seen.console == []
    assert "Best configuration: trial 1" in seen.dom
    assert seen.dom.count("<svg") == 2
    assert measured(browse, page, 400)["width"] <= 400
