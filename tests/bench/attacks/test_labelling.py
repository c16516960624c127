import pytest
import torch
from pydantic import TypeAdapter

from banaudit.bench.attacks.labelling import AllToAll, AllToOne, AnyLabelling, Derangement, SourceTarget
from banaudit.errors import UsageError


def test_all_to_one_maps_every_label_to_the_target():
    assert AllToOne(target=2).mapping(4).tolist() == [2, 2, 2, 2]


def test_all_to_all_maps_to_the_next_label_and_the_last_to_the_first():
    assert AllToAll().mapping(4).tolist() == [1, 2, 3, 0]
    assert AllToAll().target_of(torch.tensor([3, 0, 2]), 4).tolist() == [0, 1, 3]


@pytest.mark.parametrize("num_classes", [2, 3, 10, 43])
def test_derangement_is_a_permutation_without_fixed_point(num_classes):
    mapping = Derangement(seed=5).mapping(num_classes)
    assert sorted(mapping.tolist()) == list(range(num_classes))
    assert not (mapping == torch.arange(num_classes)).any()
    assert torch.equal(mapping, Derangement(seed=5).mapping(num_classes))


def test_derangements_differ_between_seeds():
    assert not torch.equal(Derangement(seed=1).mapping(10), Derangement(seed=2).mapping(10))


def test_source_target_changes_the_source_alone():
    assert SourceTarget(source=3, target=1).mapping(5).tolist() == [0, 1, 2, 1, 4]


@pytest.mark.parametrize(
    ("labelling", "num_classes"),
    [
        (AllToOne(target=10), 10),
        (SourceTarget(source=10, target=0), 10),
        (SourceTarget(source=0, target=10), 10),
        (SourceTarget(source=2, target=2), 10),
        (Derangement(), 1),
    ],
)
def test_a_rule_that_does_not_fit_the_classes_is_refused(labelling, num_classes):
    with pytest.raises(UsageError):
        labelling.mapping(num_classes)


@pytest.mark.parametrize("labelling", [AllToOne(target=3), AllToAll(), Derangement(seed=9), SourceTarget()])
def test_json_round_trip_keeps_the_kind(labelling):
    assert TypeAdapter(AnyLabelling).validate_json(labelling.model_dump_json()) == labelling


def test_slugs_tell_rules_apart():
    rules = [AllToOne(target=3), AllToAll(), Derangement(seed=9), SourceTarget(source=3, target=4)]
    assert [rule.slug for rule in rules] == ["t3", "a2a", "perm9", "s3t4"]
