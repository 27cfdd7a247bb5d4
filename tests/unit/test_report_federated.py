"""The report of a federated run: what is recorded of rounds, and what the page makes of it."""

import io
import json
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import orchestrator
from orchestrator.progress import Progress
from orchestrator.report import traffic_page, write_report
from orchestrator.report.fairness import at_share, even_gini, spread
from orchestrator.report.reading import read
from orchestrator.rundir import RunDirectory
from strategies.federated import SERVER_RULES, server_rule

FLAT = "name: flat\nstrategy:\n  algorithm: {name: fedavg}\n"


class Reader(HTMLParser):
    """Collects the sections of a page and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def shown(path: Path) -> Reader:
    return Reader(write_report(path).read_text())


def trained(root: Path, strategy: Mapping[str, Any], **changes: Any) -> RunDirectory:
    """A real run of six steps over eight clients, in this process."""
    config = {
        "name": "small",
        "data": {"name": "digits", "partition": {"kind": "iid", "clients": 8}, "limit": 200},
        "model": {"name": "mlp", "hidden": [8]},
        "strategy": {"algorithm": {"name": "fedavg", "rounds": 6, "cohort": 4}, **strategy},
        "cluster": {"workers": 0},
        "tracking": {"enabled": False},
        **changes,
    }
    return RunDirectory.open(orchestrator.run(config, root=root, quiet=True).run_dir)


def made(root: Path, config: str = FLAT, *, clients: int = 10, partition: int | None = None) -> RunDirectory:
    """A run that was never trained: four rounds of three clients, in virtual time that goes as the square."""
    run = RunDirectory.create(root, "made", config, {"status": "FINISHED", "num_steps": 4, "step": 4})
    (run.path / "partition.json").write_text(json.dumps({"num_clients": partition or clients, "clients": []}))
    for step in range(1, 5):
        run.event("round", step=step, clients=[step, step + 1, step + 2], virtual_s=float(step**2))
        run.log(step, step, step**2, {"train/num_clients": 3.0, "train/num_started": 4.0, "test/accuracy": step / 5})
    return run


def rounds_of(run: RunDirectory) -> list[dict[str, Any]]:
    return [event for event in run.events() if event["kind"] == "round"]


# ----------------------------------------------------------------------------------------------- what is recorded


def test_an_anarchic_run_records_how_stale_each_update_was_and_shows_it(tmp_path: Path) -> None:
    behaviour = {"speed": {"kind": "classes", "classes": [{"speed": 5}, {"speed": 1}]}, "dropout": 0.3}
    algorithm = {"name": "afa-cs", "rounds": 12}
    run = trained(
        tmp_path, {"algorithm": algorithm, "pacing": {"kind": "anarchic", "buffer": 3}, "behaviour": behaviour}
    )
    told = rounds_of(run)
    late = [event for event in told if "staleness" in event]
    assert late
    assert "staleness" not in told[0]
    facts = read(run)
    by_step = dict(zip(*(facts.series["train/staleness"][part] for part in (0, 3)), strict=True))
    for event in told:
        ages = event.get("staleness", [0] * len(event["clients"]))
        assert len(ages) == len(event["clients"])
        assert np.mean(ages) == pytest.approx(by_step[event["step"]])
    lost = facts.series["train/num_lost"].value
    assert sum(lost) == sum(facts.series["train/num_dropped"].value) > 0
    seen = shown(run.path)
    assert {"staleness", "lost"} <= set(seen.ids)
    updates = sum(len(event["clients"]) for event in told)
    assert f"Of {updates} updates" in seen.text
    assert f"{sum(lost):.0f} of {updates + sum(lost):.0f} that ended" in seen.text
    assert "Vanished: their clients went away" in seen.text


def test_a_compressed_run_shows_how_much_smaller_its_real_payloads_are(tmp_path: Path) -> None:
    run = trained(tmp_path, {"compression": [{"name": "fedzip", "keep": 0.1}], "error_feedback": True})
    facts = read(run)
    saved = traffic_page.compression(facts)
    assert saved is not None
    up, down = (sum(facts.series[f"comm/{way}_bytes"].value) for way in ("uplink", "downlink"))
    assert saved.overall == pytest.approx(down / up)
    assert saved.overall > 3
    assert rounds_of(run)[0].keys() == {"time", "kind", "step", "clients", "virtual_s"}
    seen = shown(run.path)
    assert "Compression of updates" in seen.text
    assert not {"staleness", "lost"} & set(seen.ids)


def test_a_personalised_run_is_measured_at_its_clients(tmp_path: Path) -> None:
    held = {"clients": {"held_out": 0.25}}
    run = trained(tmp_path, {"aggregate_keys": r"^1\."}, evaluate=held)
    assert "test/accuracy" not in read(run).series
    seen = shown(run.path)
    for text in ("Accuracy at clients over bytes", "Loss at clients and train loss", "lowest tenth:", "at clients lo"):
        assert text in seen.text


# --------------------------------------------------------------------------------------------------- the sections


def test_accuracy_and_loss_are_drawn_over_rounds_virtual_time_and_bytes(tmp_path: Path) -> None:
    run = made(tmp_path)
    for step in range(1, 5):
        run.log(step, step, step**2, {"test/loss": 1 / step, "comm/uplink_bytes": 5e5, "comm/downlink_bytes": 5e5})
    seen = shown(run.path)
    for measure in ("Test accuracy", "Loss"):
        for over in ("virtual time", "bytes"):
            assert f"{measure} over {over}" in seen.text
    html = (run.path / "report.html").read_text()
    assert 'class="figures three"' in html
    assert "sent, up and down 4 MB: 80 %" in html


def test_rounds_of_equal_length_are_not_drawn_over_virtual_time(tmp_path: Path) -> None:
    run = made(tmp_path)
    for step in range(1, 5):
        run.log(step, step, 2.0 * step, {"test/accuracy": step / 5, "train/num_clients": 3.0})
    assert "over virtual time" not in shown(run.path).text


def test_each_reason_for_a_loss_is_counted_and_explained(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.log(2, 2, 4, {"train/num_late": 3.0, "train/num_dropped": 0.0, "train/num_stale": 0.0, "train/num_failed": 1.0})
    seen = shown(run.path)
    assert "Late: the server had acted before they came. Failed: training them ended in an error." in seen.text
    assert "4 of 15 that ended" in seen.text  # of twelve that took part one failed
    assert "late 75 % 3" in seen.text
    assert "anished" not in seen.text.split("Lost participations")[-1]


def test_staleness_of_rounds_that_were_trained_again_counts_once(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.event("round", step=5, clients=[1, 2], staleness=[9, 9])
    run.truncate_metrics(4)
    run.event("round", step=5, clients=[1, 2], staleness=[0, 7])
    seen = shown(run.path)
    assert "Of 14 updates 92.9 % were fresh" in seen.text
    assert "the largest is 7" in seen.text


@pytest.mark.parametrize(
    "algorithm, up, down, what",
    [
        ("fedavg", True, False, "update"), ("fedavg", False, True, "model"), ("fedavg", True, True, None),
        ("fedavg", False, False, None), ("scaffold", True, False, None),
    ],
)  # fmt: skip
def test_a_ratio_is_told_only_where_the_plain_size_is_known(
    tmp_path: Path, algorithm: str, up: bool, down: bool, what: str | None
) -> None:
    codecs = [f"  {way}: [{{name: zstd}}]\n" for way, on in (("compression", up), ("downlink", down)) if on]
    run = made(tmp_path, f"name: x\nstrategy:\n  algorithm: {{name: {algorithm}}}\n" + "".join(codecs))
    sizes = {"comm/uplink_bytes": 3 * (100.0 if up else 2000.0), "comm/downlink_bytes": 4 * (250.0 if down else 2000.0)}
    for step in range(1, 5):
        run.log(step, step, step**2, sizes)
    saved = traffic_page.compression(read(run))
    assert (saved and saved.what) == what
    if saved:
        assert saved.overall == {"update": 20, "model": 8}[saved.what]
        assert f"{saved.what}s compressed {saved.overall:.0f}" in shown(run.path).text


def test_every_rule_that_sends_more_than_the_model_is_known_to_the_page() -> None:
    model = {"weight": torch.zeros(3)}
    sending = set()
    for name in SERVER_RULES:
        rule = server_rule(name, num_clients=4)
        if rule.send(rule.init(model)):
            sending.add(name)
    assert sending == traffic_page.SENDS_MORE


# ------------------------------------------------------------------------------------------------------- fairness


@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [0, 0, 0, 8], [3, 0, 2, 2, 7, 1, 1, 0, 0, 5, 4, 4], [2]])
def test_the_gini_coefficient_is_the_mean_difference_over_twice_the_mean(counts: list[int]) -> None:
    known = spread({client: count for client, count in enumerate(counts) if count}, len(counts))
    pairs = np.abs(np.subtract.outer(counts, counts)).mean()
    assert known.gini == pytest.approx(pairs / (2 * np.mean(counts)))
    num_busiest = -(-len(counts) // 10)
    assert known.busiest == pytest.approx(sum(sorted(counts)[-num_busiest:]) / sum(counts))
    assert at_share(known.groups, 0.5) == np.quantile(counts, 0.5, method="lower")
    assert (at_share(known.groups, 0), at_share(known.groups, 1)) == (min(counts), max(counts))


@pytest.mark.parametrize("num_clients, cohort, num_rounds", [(10, 3, 40), (200, 20, 5), (2000, 10, 30)])
def test_rounds_drawn_evenly_have_the_gini_coefficient_that_is_said(
    num_clients: int, cohort: int, num_rounds: int
) -> None:
    rng = np.random.default_rng(5)
    ginis = []
    for _ in range(60):
        drawn = [rng.choice(num_clients, cohort, replace=False) for _ in range(num_rounds)]
        counts = np.bincount(np.concatenate(drawn))
        ginis.append(spread({client: int(n) for client, n in enumerate(counts) if n}, num_clients).gini)
    assert even_gini(num_clients, num_rounds, cohort * num_rounds) == pytest.approx(np.mean(ginis), rel=0.03)


def test_where_everybody_takes_part_an_even_draw_has_no_spread() -> None:
    assert even_gini(10, 7, 70) == 0
    assert even_gini(10, 7, 71) is None


def test_a_page_of_a_million_clients_is_about_those_that_were_seen(tmp_path: Path) -> None:
    run = made(tmp_path, clients=10, partition=1_000_000)
    seen = shown(run.path)
    assert "Clients seen 6 of 1,000,000 (0.0006 %)" in seen.text
    assert "without the 999,994 that never did" in seen.text
    assert "Gini coefficient, 0 is even 1.00" in seen.text
    assert (run.path / "report.html").stat().st_size < 60_000


# ------------------------------------------------------------------------------------------------------- progress


def test_progress_shows_the_accuracy_at_clients_where_there_is_no_global_model() -> None:
    stream = io.StringIO()
    progress = Progress(500, console=Console(file=stream, soft_wrap=True, highlight=False))
    progress.begin(0)
    progress.step(1, {"clients/accuracy": 0.25, "clients/loss": 1.5, "comm/uplink_bytes": 2048.0}, 61.0)
    progress.step(2, {"clients/accuracy": 0.25, "test/accuracy": 0.5, "test/loss": 2.0}, 0.0)
    first, second = stream.getvalue().splitlines()
    assert first.startswith("round   1/500  at clients 0.2500  loss 1.5000  up 2.0 KiB  virtual 1 min 01 s")
    assert second.startswith("round   2/500  accuracy 0.5000  loss 2.0000")
