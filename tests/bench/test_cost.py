from __future__ import annotations

import torch

from banaudit.bench.cost import MethodCost, measured, memory_note
from banaudit.results import Finding, Verdict

CPU = torch.device("cpu")
HELD = 2**28
"""Bytes; well above what anything else here takes."""


def test_passes_and_memory_are_those_of_the_work():
    def work(meter):
        meter.spend("work", forward=7, backward=3)
        return torch.zeros(HELD // 4).sum()

    result, cost = measured(work, CPU)
    assert result == 0
    assert (cost.forward_images, cost.backward_images) == (7, 3)
    assert cost.seconds > 0
    assert cost.peak_bytes > HELD
    if "each part" in memory_note(CPU):
        assert measured(lambda meter: None, CPU)[1].peak_bytes < cost.peak_bytes - HELD // 2


def test_a_methods_cost_is_read_from_its_finding():
    finding = Finding(
        method="m",
        title="t",
        verdict=Verdict.NO_EVIDENCE,
        reason="r",
        evidence=(),
        settings={},
        seconds=1.5,
        forward_images=2,
        backward_images=1,
    )
    cost = MethodCost.of(finding)
    assert (cost.method, cost.verdict, cost.reason) == ("m", Verdict.NO_EVIDENCE, "r")
    assert (cost.seconds, cost.forward_images, cost.backward_images) == (1.5, 2, 1)
