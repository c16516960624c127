import pytest
import torch
from torch import nn

from banaudit import preflight
from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.data import CleanData
from banaudit.errors import TimeLimitReached, UnsupportedModelError
from banaudit.meter import Meter
from banaudit.preflight import (
    NO_ANSWER,
    best_permutation,
    clean_accuracy,
    default_floor,
    judge_predictions,
    likely_cause,
    misreading,
    predictions,
)


class _Reader(SplitNetwork):
    """Answers with the class that the first pixel encodes, renamed."""

    def __init__(self, renaming: list[int]) -> None:
        super().__init__()
        self.register_buffer("renaming", torch.tensor(renaming))
        self.norm = nn.BatchNorm2d(1, affine=False)

    def features(self, inputs):
        self.norm(inputs)  # in training mode this would move the running statistics
        return (inputs[:, 0, 0, 0] * 100).round().long().unsqueeze(1)

    def head(self, features):
        return nn.functional.one_hot(self.renaming[features[:, 0]], len(self.renaming)).float()


def _clean(labels: torch.Tensor, classes: int) -> CleanData:
    images = (labels.float() / 100).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return CleanData(images, labels, tuple(f"c{label}" for label in range(classes)))


def _model(renaming: list[int]) -> SplitModel:
    return SplitModel(_Reader(renaming), (0.0,), (1.0,))


def _labels_only(labels: torch.Tensor, classes: int) -> CleanData:
    return CleanData(torch.zeros(len(labels), 1, 1, 1), labels, tuple(f"c{label}" for label in range(classes)))


@pytest.mark.parametrize(("classes", "floor"), [(2, 0.6), (3, 0.6), (10, 0.5), (20, 0.25), (43, 0.2), (1000, 0.2)])
def test_default_floor(classes, floor):
    assert default_floor(classes) == pytest.approx(floor)


def test_accuracy_of_a_right_network():
    found = clean_accuracy(_model(list(range(10))), _clean(torch.arange(10).repeat(30), 10))
    assert (found.accuracy, found.images, found.floor, found.label_permutation) == (1.0, 300, 0.5, None)


def test_predictions_leave_the_model_as_it_was():
    model = _model(list(range(4)))
    model.train()
    model.network.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    meter = Meter()
    clean = _clean(torch.arange(4).repeat(5), 4)
    assert predictions(model, clean.images, batch_size=8, meter=meter).tolist() == clean.labels.tolist()
    assert meter.forward_images == 20
    assert model.training
    assert not model.network.norm.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_predictions_stop_when_the_time_is_spent():
    meter = Meter(time_limit=-1)
    model = _model([0, 1]).train()
    with pytest.raises(TimeLimitReached, match="clean accuracy"):
        predictions(model, torch.zeros(3, 1, 2, 2), meter=meter)
    assert model.training


def test_logits_that_are_not_finite_are_no_answer(monkeypatch):
    model = _model([0, 1])
    monkeypatch.setattr(model.network, "head", lambda features: torch.tensor([[float("nan"), 0.0]] * len(features)))
    predicted = predictions(model, torch.zeros(30, 1, 2, 2))
    assert set(predicted.tolist()) == {NO_ANSWER}
    clean = _labels_only(torch.arange(2).repeat(15), 2)
    found = judge_predictions(predicted, clean)
    assert found.accuracy == 0
    assert "not finite" in likely_cause(found, predicted, clean.class_names)


def test_wrong_class_order_is_found_and_printed():
    renaming = [1, 0, 2, 4, 5, 3, 6, 9, 7, 8]
    clean = _clean(torch.arange(10).repeat(20), 10)
    found = clean_accuracy(_model(renaming), clean)
    assert found.accuracy == pytest.approx(0.2)
    assert found.label_permutation == dict(enumerate(renaming))
    assert found.permuted_accuracy == 1.0
    cause = likely_cause(found, torch.tensor(renaming).repeat(20), clean.class_names)
    assert "class order looks wrong: images of 0 'c0' are answered 1 'c1', images of 1 'c1' are answered 0" in cause
    assert "'c2'" not in cause
    assert "100.0% instead of 20.0%" in cause
    assert "--classes" in cause
    assert "\n" not in cause


def test_wrong_class_order_in_a_weak_network_with_many_classes():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(43).repeat(6)
    renaming = torch.randperm(43, generator=generator)
    predicted = torch.where(
        torch.rand(len(labels), generator=generator) < 0.8,
        renaming[labels],
        torch.randint(43, (len(labels),), generator=generator),
    )
    found = judge_predictions(predicted, _labels_only(labels, 43))
    assert found.label_permutation is not None
    assert sum(found.label_permutation[label] == int(renaming[label]) for label in range(43)) >= 41
    assert found.permuted_accuracy == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("each", [1, 2, 20])
def test_chance_is_not_taken_for_a_class_order(each):
    generator = torch.Generator().manual_seed(each)
    labels = torch.arange(43).repeat(each)
    predicted = torch.randint(43, (len(labels),), generator=generator)
    found = judge_predictions(predicted, _labels_only(labels, 43))
    assert found.label_permutation is None
    assert "near chance" in likely_cause(found, predicted, _labels_only(labels, 43).class_names)


def test_a_network_that_gives_one_answer():
    labels = torch.arange(10).repeat(10)
    predicted = torch.full((100,), 3)
    found = judge_predictions(predicted, _labels_only(labels, 10))
    assert "100% of all answers are 3 'c3'" in likely_cause(found, predicted, _labels_only(labels, 10).class_names)


def test_a_weak_network():
    labels = torch.arange(10).repeat(10)
    predicted = torch.where(torch.arange(100) < 40, labels, (labels + torch.arange(100) // 10) % 10)
    found = judge_predictions(predicted, _labels_only(labels, 10))
    assert found.label_permutation is None
    assert "better than chance, but low" in likely_cause(found, predicted, _labels_only(labels, 10).class_names)


def _answers(labels: torch.Tensor, shares: dict[int, dict[int, float]]) -> torch.Tensor:
    """Answers in which the images of each label named here go where its shares say, drawn at random; others are right.

    Args:
        labels: [N].
        shares: Label -> answer -> share; the shares of a label add up to one.
    """
    generator = torch.Generator().manual_seed(len(labels))
    predicted = labels.clone()
    for label, goes in shares.items():
        members = (labels == label).nonzero().flatten()
        drawn = torch.multinomial(torch.tensor(list(goes.values())), len(members), True, generator=generator)
        predicted[members] = torch.tensor(list(goes))[drawn]
    return predicted


EXCHANGED = {1: {2: 1.0}, 2: {1: 1.0}}


@pytest.mark.parametrize(
    ("each", "shares", "renamed"),
    [
        (20, EXCHANGED, {1: 2, 2: 1}),
        (100, {1: {2: 0.9, 5: 0.1}, 2: {1: 0.6, 3: 0.2, 2: 0.2}}, {1: 2, 2: 1}),
        (10, {1: {2: 0.8, 0: 0.2}, 2: {1: 0.8, 4: 0.2}}, {1: 2, 2: 1}),
        (20, {1: {2: 1.0}, 2: {4: 1.0}, 4: {1: 0.7, 4: 0.3}}, {1: 2, 2: 4, 4: 1}),
        (20, {**EXCHANGED, 7: {8: 1.0}, 8: {7: 1.0}}, {1: 2, 2: 1, 7: 8, 8: 7}),
    ],
)
def test_classes_exchanged_above_the_floor_are_found(each, shares, renamed):
    labels = torch.arange(10).repeat(each)
    predicted = _answers(labels, shares)
    clean = _labels_only(labels, 10)
    found = judge_predictions(predicted, clean)
    assert found.accuracy > found.floor
    assert found.label_permutation == {label: renamed.get(label, label) for label in range(10)}
    assert found.permuted_accuracy > found.accuracy
    told = misreading(found, clean.class_names)
    assert told.startswith("the class order looks wrong: images of 1 'c1' are answered 2 'c2'")
    assert told == misreading(found, clean.class_names, predicted)


@pytest.mark.parametrize("floor", [None, 0.0])
@pytest.mark.parametrize("each", [3, 5, 20, 100])
@pytest.mark.parametrize(
    "shares",
    [
        {3: {3: 0.5, 5: 0.5}, 5: {5: 0.55, 3: 0.45}},
        {3: {3: 0.4, 5: 0.4, 2: 0.2}, 5: {5: 0.4, 3: 0.4, 4: 0.2}},
        {3: {5: 1.0}},
        {3: {5: 1.0}, 5: {5: 0.95, 3: 0.05}},
        {3: {5: 0.9, 3: 0.1}, 5: {7: 0.9, 5: 0.1}},
    ],
    ids=["confused", "confused with a third", "taken over", "taken over, nearly", "a chain"],
)
def test_confusion_is_not_taken_for_a_class_order(shares, each, floor):
    labels = torch.arange(10).repeat(each)
    clean = _labels_only(labels, 10)
    found = judge_predictions(_answers(labels, shares), clean, floor)
    assert (found.label_permutation, found.permuted_accuracy) == (None, None)
    assert misreading(found, clean.class_names) == ""


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("accuracy", [0.1, 0.3, 0.6])
def test_an_under_trained_network_has_no_other_class_order(classes, accuracy):
    """Four in ten of its mistakes go to one other class."""
    generator = torch.Generator().manual_seed(classes)
    for _ in range(20):
        labels = torch.arange(classes).repeat(1000 // classes)
        neighbour = torch.randint(classes, (classes,), generator=generator)[labels]
        anywhere = torch.randint(classes, (len(labels),), generator=generator)
        mistake = torch.where(torch.rand(len(labels), generator=generator) < 0.4, neighbour, anywhere)
        predicted = torch.where(torch.rand(len(labels), generator=generator) < accuracy, labels, mistake)
        assert judge_predictions(predicted, _labels_only(labels, classes)).label_permutation is None


def test_a_class_that_hides_behind_a_larger_one_is_weighed_like_it():
    labels = torch.cat([torch.zeros(120, dtype=torch.long), torch.arange(1, 5).repeat(8)])
    clean = _labels_only(labels, 5)
    predicted = torch.zeros_like(labels)
    found = judge_predictions(predicted, clean)
    assert found.accuracy == pytest.approx(120 / 152)
    assert found.balanced_accuracy == pytest.approx(0.2)
    assert found.accuracy > found.floor
    told = misreading(found, clean.class_names, predicted)
    assert told.startswith("clean accuracy averaged over the classes, 20.0%, is below the floor of 60% (78.9% of all")
    assert "100% of all answers are 0 'c0'" in told


def test_one_answer_to_everything_is_a_reason_at_any_floor():
    labels = torch.arange(4).repeat(30)
    predicted = torch.where(torch.arange(120) < 110, 2, labels)
    clean = _labels_only(labels, 4)
    found = judge_predictions(predicted, clean, floor=0.0)
    assert found.one_answer == 2
    assert misreading(found, clean.class_names).startswith("nearly all answers are 2 'c2', whatever the images show")


def test_one_answer_is_right_where_nearly_all_images_are_of_one_class():
    labels = torch.cat([torch.zeros(190, dtype=torch.long), torch.ones(10, dtype=torch.long)])
    found = judge_predictions(labels, _labels_only(labels, 2))
    assert (found.one_answer, found.balanced_accuracy) == (None, 1.0)
    assert misreading(found, ("c0", "c1")) == ""


def test_classes_that_have_no_images_do_not_count_in_the_average():
    labels = torch.tensor([0, 0, 3, 3])
    found = judge_predictions(torch.tensor([0, 0, 3, NO_ANSWER]), _labels_only(labels, 5))
    assert found.unanswered == 1
    assert found.balanced_accuracy == 0.75


def test_many_classes_take_no_memory(monkeypatch):
    """A file of ten megabytes can claim 40,000 classes; a table of all against all would be gigabytes."""
    sizes = []
    assign = preflight._assign

    def seen(costs):
        sizes.append(costs.size)
        return assign(costs)

    monkeypatch.setattr(preflight, "_assign", seen)
    classes = 40_000
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (200,), generator=generator).repeat(2)
    found = judge_predictions(torch.randint(classes, (400,), generator=generator), _labels_only(labels, classes))
    assert found.label_permutation is None
    assert max(sizes) <= 400 * 800
    exchanged = torch.where(labels == labels[0], labels[1], torch.where(labels == labels[1], labels[0], labels))
    permutation = best_permutation(labels, exchanged, classes)
    assert permutation.sort().values.equal(torch.arange(classes))
    assert permutation[labels].equal(exchanged)


def test_a_floor_of_the_users_own():
    labels = torch.arange(10).repeat(10)
    predicted = torch.where(torch.arange(100) < 95, labels, (labels + 1) % 10)
    assert judge_predictions(predicted, _labels_only(labels, 10), floor=0.99).floor == 0.99


def test_a_network_with_more_classes_than_the_data():
    with pytest.raises(UnsupportedModelError, match="predicts class 7, the data have 5 classes"):
        judge_predictions(torch.tensor([0, 7]), _labels_only(torch.tensor([0, 1]), 5))


@pytest.mark.parametrize("size", [1, 2, 5, 30])
def test_assignment_agrees_with_scipy(size):
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(5):
        costs = torch.rand(size, size, generator=torch.Generator().manual_seed(seed)).mul(10).round().double().numpy()
        rows, columns = optimize.linear_sum_assignment(costs)
        assigned = preflight._assign(costs)
        assert sorted(assigned) == list(range(size))
        assert costs[rows, assigned].sum() == pytest.approx(costs[rows, columns].sum())


@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (5, 9), (20, 30)])
def test_assignment_with_columns_to_spare_agrees_with_scipy(rows, columns):
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        costs = torch.rand(rows, columns, generator=generator).mul(10).round().double().numpy()
        assigned = preflight._assign(costs)
        assert len(set(assigned.tolist())) == rows
        expected = costs[optimize.linear_sum_assignment(costs)].sum()
        assert costs[range(rows), assigned].sum() == pytest.approx(expected)


def test_labels_without_images_keep_their_place():
    permutation = best_permutation(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, NO_ANSWER]), 4)
    assert permutation.tolist() == [1, 0, 2, 3]
    displaced = best_permutation(torch.tensor([0, 0, 1, 1]), torch.tensor([2, 2, 0, 0]), 4)
    assert displaced.tolist() == [2, 0, 1, 3]
