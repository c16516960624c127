import torch
from toys import TARGET

from banaudit.detectors.neural_cleanse import NeuralCleanse
from banaudit.meter import Meter
from banaudit.results import Verdict


def test_finds_the_planted_backdoor(planted, clean_data):
    # Of six classes, and by a patch no smaller than this, none can be further ahead; the clean twin's first is at 0.5.
    finding = NeuralCleanse(threshold=4.9)(planted, clean_data)
    assert finding.verdict is Verdict.BACKDOORED
    assert finding.evidence[0].target == TARGET


def test_does_not_accuse_the_clean_twin(clean_twin, clean_data):
    assert NeuralCleanse()(clean_twin, clean_data).verdict is Verdict.NO_EVIDENCE


def test_recovers_the_place_of_the_trigger(planted, clean_data):
    recovered = NeuralCleanse().invert(planted, clean_data, torch.Generator().manual_seed(0), Meter())
    mask = recovered.triggers.masks[TARGET, 0]
    assert mask[-4:, -4:].sum() > 0.5 * mask.sum()


def test_plans_what_it_takes(clean_twin, clean_data):
    detector = NeuralCleanse(steps=5, success=0.01)
    finding = detector(clean_twin, clean_data)
    planned = detector.planned_images(clean_data.num_classes, len(clean_data))
    assert 0.8 * planned < finding.forward_images <= planned


def test_two_classes_are_too_few_to_compare(clean_twin, clean_data):
    chosen = (clean_data.labels < 2).nonzero().flatten()
    two = clean_data.subset(chosen)
    two = type(two)(two.images, two.labels, ("a", "b"))
    finding = NeuralCleanse(steps=3)(clean_twin, two)
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert "at least 4" in finding.reason
