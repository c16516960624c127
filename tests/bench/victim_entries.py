"""Entries of a results file, made up: victims with known truth, and scans with given scores."""

from __future__ import annotations

from banaudit.bench.attacks import BadNets
from banaudit.bench.attacks.labelling import AllToOne
from banaudit.bench.cost import MethodCost
from banaudit.bench.population import CIFAR, clean
from banaudit.bench.runner import (
    BenchmarkResults,
    ScanRecord,
    ScanSettings,
    ScoredReading,
    VictimEntry,
    hold_against,
    truth_of,
)
from banaudit.bench.victims import VictimFacts
from banaudit.results import Reading, Verdict

SETTINGS = ScanSettings(detectors={"m": {}}, images=100, seed=0, tool_version="1")
TARGET = 3


def reading(key, score, threshold=1.0, *, fired=None, kind=Reading.ALL_TO_ONE, target=TARGET, **facts):
    fired = score is not None and score > threshold if fired is None else fired
    return ScoredReading(key=key, reading=kind, score=score, threshold=threshold, fired=fired, target=target, **facts)


def entry(seed, *readings, backdoored=False, setup=CIFAR, kind=None, condition="", unjudged=False):
    """A victim, target 3 if it is backdoored; the verdict is that of the fired readings."""
    recipe = clean(setup, seed) if kind is None else clean(setup, seed, kind)
    if backdoored:
        recipe = recipe.model_copy(update={"attack": BadNets(), "labelling": AllToOne(target=TARGET)})
    facts = VictimFacts(
        recipe=recipe,
        clean_accuracy=0.9,
        attack_success=1.0 if backdoored else None,
        mapping=recipe.labelling.mapping(10).tolist() if backdoored else (),
        train_loss=0.1,
        seconds=1,
        torch_version="2",
    )
    fired = [item for item in readings if item.fired]
    strongest = max(fired, key=lambda item: item.score / item.threshold, default=None)
    verdict = Verdict.BACKDOORED if fired else Verdict.INCONCLUSIVE if unjudged else Verdict.NO_EVIDENCE
    scan = ScanRecord(
        settings=SETTINGS.digest,
        code="c",
        verdict=verdict,
        reason="",
        target=strongest.target if strongest is not None else None,
        mapping=strongest.mapping if strongest is not None else None,
        accuracy=0.9,
        images=100,
        seconds=2,
        forward_images=1000,
        backward_images=10,
        device="cpu",
        threads=1,
        methods=(MethodCost(method="m", verdict=verdict, reason="", seconds=1, forward_images=1, backward_images=1),),
        readings=readings,
    )
    truth = truth_of(facts)
    return VictimEntry(
        key=recipe.key,
        condition=condition,
        victim=facts,
        truth=truth,
        outcome=hold_against(truth, scan),
        scan=scan,
    )


def benchmark(*entries, split="development"):
    return BenchmarkResults(
        split=split, clean_images="test", settings={SETTINGS.digest: SETTINGS}, measures={}, entries=entries
    )
