from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
import torch
from victim_entries import benchmark, entry, reading

from banaudit.bench.embedding import tsne
from banaudit.bench.figures import FIGURES, draw_figure
from banaudit.bench.figures.svg import Panel, figure
from banaudit.bench.results_files import write_results
from banaudit.bench.roc import JOINT, Curve, curves
from banaudit.bench.tables import benchmark_tables
from banaudit.cli import main
from banaudit.errors import UsageError


@pytest.fixture
def results():
    return benchmark(
        entry(1, reading("m/<a>", 3.0), reading("m/b", 0.2), backdoored=True),
        entry(2, reading("m/<a>", 0.6), reading("m/b", 0.9), backdoored=True),
        entry(3, reading("m/<a>", 0.5), reading("m/b", 1.4, fired=False)),
        entry(4, reading("m/<a>", 0.7), reading("m/b", 0.1)),
    )


def test_curves_of_readings_and_of_the_joint_verdict(results):
    joint, first, second = curves(results.entries, own_kind=True)
    assert (joint.name, first.name, second.name) == (JOINT, "m/<a>", "m/b")
    # Joint scores: 3.0 and 0.9 against 0.5 (the other reading lacked something) and 0.7.
    assert joint.positives.tolist() == [3.0, 0.9]
    assert joint.negatives.tolist() == [0.5, 0.7]
    assert (joint.area, first.area, second.area) == (1.0, 0.75, 0.5)
    assert first.points() == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    assert joint.at(1.0) == (0.0, 0.5)
    assert joint.interval[0] < 0.7


def test_detection_at_a_rate_of_false_alarms():
    curve = Curve("c", torch.tensor([1.0, 5.0, 9.0]), torch.arange(20.0) / 2)
    assert curve.detected_at(0.0) == (0, 3)
    assert curve.detected_at(0.05) == (0, 3)
    assert curve.detected_at(0.1) == (1, 3)
    assert curve.detected_at(0.5) == (2, 3)


def test_a_roc_needs_both_sides(results):
    with pytest.raises(UsageError, match="hold 2 and 0"):
        curves(results.entries[:2], own_kind=True)


def test_the_ranking_is_in_the_tables(results):
    lines = benchmark_tables(results).splitlines()
    row = next(line for line in lines if line.startswith("| joint verdict | 1.000 ["))
    assert "2/2 = 100% [16%, 100%]" in row
    assert "(2 against 2)" in row


def test_a_figure_is_xml_whatever_the_names(results, tmp_path):
    path = tmp_path / "development.json"
    write_results(path, results)
    assert main(["bench", "figure", str(path)]) == 0
    text = (tmp_path / "development-roc.svg").read_text()
    assert text == draw_figure("roc", path)
    root = ElementTree.fromstring(text)
    words = [item.text for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any(word.startswith("m/<a>: AUROC 0.750") for word in words)
    assert len(root.findall(".//{http://www.w3.org/2000/svg}polyline")) == 8
    assert main(["bench", "figure", str(path), "--kind", "noise"]) == 2
    with pytest.raises(UsageError, match="no such file"):
        draw_figure("roc", tmp_path / "none.json")
    assert set(FIGURES) == {"roc", "noise", "masked-accuracy", "mask-losses"}


def test_values_become_pixels():
    panel = Panel("t", "x", "y", (0, 2), (0, 10), width=100, height=100)
    panel.line([(0, 0), (2, 10)], "#000000")
    panel.bar(1, 1, 5, "#000000")
    text = figure([[panel]], [("#000000", "a & b")], title="one")
    assert 'points="56.0,130.0 156.0,30.0"' in text
    assert 'x="81.0" y="80.0" width="50.0" height="50.0"' in text
    assert "a &amp; b" in text
    ElementTree.fromstring(text)


def test_tsne_keeps_groups_together_and_draws_no_random_numbers():
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(60) % 3
    points = torch.randn(60, 8, generator=generator) + 20 * torch.nn.functional.one_hot(groups, 8)
    state = torch.random.get_rng_state()
    places = tsne(points, perplexity=10)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(places, tsne(points, perplexity=10))
    distances = torch.cdist(places, places) + 1e9 * torch.eye(60)
    assert bool((groups[distances.argmin(dim=1)] == groups).all())
    same = groups[:, None] == groups
    assert float(torch.cdist(places, places)[same].mean()) < 0.5 * float(torch.cdist(places, places)[~same].mean())
