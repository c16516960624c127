"""Distillation under neuron noise: the loss by hand, and what the teacher is."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from banaudit.data import CleanData
from banaudit.detectors.inversion import Triggers
from banaudit.errors import DivergedError, UnsupportedModelError
from banaudit.meter import Meter
from banaudit.mitigations import BANDistillation, ban_distillation
from banaudit.mitigations.ban_distillation import STRONGER, avoidance_loss, distillation_loss
from banaudit.mitigations.unlearned import Standouts, Unlearned
from banaudit.neurons import train_under_noise, worst_noise
from banaudit.results import RepairEpoch
from banaudit.training import Augmentation, Tuned
from mitigations.tiny import make_data, make_job, make_model, same_weights


def test_distillation_by_hand():
    # At T = 2 the logits (2 ln 3, 0) become (3/4, 1/4); the student says (1/2, 1/2): KL = 3/4 ln 3/2 + 1/4 ln 1/2.
    teacher = torch.tensor([[2 * math.log(3), 0.0]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = distillation_loss(torch.zeros(1, 2), teacher, 2.0)
    assert float(found) == pytest.approx(4 * divergence, abs=1e-6)
    assert float(distillation_loss(teacher, teacher, 2.0)) == pytest.approx(0.0, abs=1e-6)


def test_avoidance_by_hand():
    # The softmax of (ln 3, 0, 0) is (3/5, 1/5, 1/5).
    logits = torch.tensor([[math.log(3), 0.0, 0.0], [0.0, math.log(3), 0.0], [math.log(3), 0.0, 0.0]])
    labels = torch.tensor([1, 0, 0])
    expected = -(math.log(1 - 3 / 5) + 0 + 0) / 3  # images of the target itself are left alone
    assert float(avoidance_loss(logits, labels, 0)) == pytest.approx(expected, abs=1e-6)
    expected = -(0 + math.log(1 - 3 / 5) + math.log(1 - 1 / 5)) / 3
    assert float(avoidance_loss(logits, labels, 1)) == pytest.approx(expected, abs=1e-6)
    certain = torch.tensor([[200.0, 0.0, 0.0]])
    assert float(avoidance_loss(certain, torch.tensor([1]), 0)) == pytest.approx(200 - math.log(2), abs=1e-3)


def test_the_loss_is_the_three_terms_together():
    model, data = make_model(), make_data()
    teacher = make_model().eval()
    with torch.no_grad():
        teacher.network.linear.weight.mul_(2)
    method = BANDistillation(distillation=0.25, temperature=3.0, noise_weight=0.7)
    model.train()
    found = method.loss(model, teacher, data.images, data.labels, torch.Generator().manual_seed(3))
    noise = worst_noise(
        model,
        data.images,
        data.labels,
        eps=method.eps,
        steps=1,
        clip=False,
        form="relative",
        generator=torch.Generator().manual_seed(3),
    )
    clean = model(data.images)
    expected = (
        0.75 * F.cross_entropy(clean, data.labels)
        + 0.25 * distillation_loss(clean, teacher(data.images), 3.0)
        + 0.7 * F.cross_entropy(train_under_noise(model, data.images, noise, form="relative"), data.labels)
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_the_teacher_is_the_model_as_it_came(monkeypatch):
    seen = []
    plain = BANDistillation.loss

    def spy(self, model, teacher, *rest):
        seen.append({name: tensor.clone() for name, tensor in teacher.state_dict().items()})
        return plain(self, model, teacher, *rest)

    monkeypatch.setattr(BANDistillation, "loss", spy)
    model = make_model()
    BANDistillation(epochs=2, batch_size=16)(model, make_data(), max_drop=1.0)
    assert len(seen) > 2
    for state in seen:
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())


SHIFT = torch.zeros(1, 3, 8, 8)
SHIFT[..., 6:] = 0.5
PATCH = Triggers(torch.tensor([2]), torch.zeros(1, 1, 8, 8), torch.ones(1, 3, 8, 8))
PATCH.masks[..., :2, :2] = 1
CHANGES = {
    "patch": (Standouts(patch=PATCH), lambda images: PATCH.stamp(images)[0]),
    "perturbation": (
        Standouts(target=2, steps=1, perturbations=SHIFT),
        lambda images: (images + SHIFT).clamp(0, 1),
    ),
}


@pytest.fixture
def no_later_search(monkeypatch):
    monkeypatch.setattr(Unlearned, "before_epoch", lambda *_: None)


@pytest.mark.parametrize("change", CHANGES)
def test_what_stands_out_is_unlearned(monkeypatch, no_later_search, change):
    """The loss of the changed share enters with its weight: CE with the true labels, or avoidance of the target."""
    found, changed = CHANGES[change]
    monkeypatch.setattr(ban_distillation, "first_search", lambda *_: found)
    monkeypatch.setattr(BANDistillation, "loss", lambda self, model, *rest: 0 * model.network.linear.bias.sum())
    data = make_data()

    def left(weight):
        weights = {"patch_weight": 0.0, "avoidance_weight": 0.0}
        weights["patch_weight" if change == "patch" else "avoidance_weight"] = weight
        settings = BANDistillation(epochs=3, batch_size=16, gentle=True, changed_share=0.5, **weights)
        model = settings(make_model(), data, max_drop=1.0).model.train()
        logits = model(changed(data.images))
        if found.target is not None:
            return float(avoidance_loss(logits, data.labels, found.target))
        return float(F.cross_entropy(logits, data.labels))

    assert left(1.0) < left(0.0) - 0.1


def test_patch_and_perturbation_are_on_images_of_their_own(monkeypatch, no_later_search):
    both = Standouts(patch=PATCH, target=2, steps=1, perturbations=SHIFT)
    monkeypatch.setattr(ban_distillation, "first_search", lambda *_: both)
    monkeypatch.setattr(BANDistillation, "loss", lambda self, model, *rest: 0 * model.network.linear.bias.sum())
    shown = []

    def spy(model, images, noise, *, form):
        assert not noise.any()
        shown.append(images)
        return model(images)

    monkeypatch.setattr(ban_distillation, "train_under_noise", spy)
    black = CleanData(torch.zeros(60, 3, 8, 8), make_data().labels, tuple("abc"))
    BANDistillation(epochs=1, batch_size=16, gentle=True)(make_model(), black, max_drop=1.0)
    for images in shown:
        batch, part = {14 + 8: (14, 4), 13 + 6: (13, 3)}[len(images)]  # a quarter, rounded
        assert not images[:batch].any()  # the batch as it is, for the statistics
        assert torch.equal(images[batch : batch + part], PATCH.stamp(torch.zeros(part, 3, 8, 8))[0])
        assert torch.equal(images[batch + part :], SHIFT.expand(part, -1, -1, -1))


@pytest.mark.parametrize("gentle", [True, False])
def test_what_was_unlearned_is_told(monkeypatch, no_later_search, gentle):
    both = Standouts(patch=PATCH, target=2, steps=1, perturbations=SHIFT)
    for found in (both, Standouts()):
        monkeypatch.setattr(ban_distillation, "first_search", lambda *_, found=found: found)
        repaired = BANDistillation(epochs=1, gentle=gentle)(make_model(), make_data(), max_drop=1.0)
        told = [("patch", int(PATCH.labels[0])), ("perturbation", 2)] if found is both else []
        assert [(change.kind, change.target) for change in repaired.unlearned] == told


@pytest.mark.parametrize("change", CHANGES)
def test_changed_images_leave_the_running_statistics_alone(monkeypatch, no_later_search, change):
    def run(found):
        monkeypatch.setattr(ban_distillation, "first_search", lambda *_: found)
        weights = {"patch_weight": 1e-12, "avoidance_weight": 1e-12}
        settings = BANDistillation(
            epochs=1, batch_size=64, gentle=True, **weights
        )  # one batch: what it draws is the same
        return settings(make_model(), make_data(), max_drop=1.0)

    changed, plain = run(CHANGES[change][0]), run(Standouts())
    for (name, one), other in zip(
        changed.model.named_buffers(), dict(plain.model.named_buffers()).values(), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5), name


def test_the_strengths_that_are_tried():
    def seen(stronger):
        return [
            (s.batch_size, s.noise_weight, s.learning_rate, s.epochs) for s in BANDistillation().strengths(stronger)
        ]

    others = [
        (128, 0.25, 0.05, 10),
        (32, 0.25, pytest.approx(0.02), 20),
        (32, 0.25, pytest.approx(0.005), 25),
    ]
    assert seen(()) == others
    assert seen(STRONGER) == [(32, 0.5, 0.05, 10), (64, 1.0, pytest.approx(0.03), 20), *others]
    assert BANDistillation().strengths(())[0] == BANDistillation()
    assert [s.batch_size for s in BANDistillation(batch_size=4).strengths(STRONGER)] == [1, 2, 4, 1, 1]


@pytest.mark.parametrize(
    ("settings", "epochs", "within", "costs", "wanted"),
    [
        ({}, (10,), "y", (0.01,), 1),
        ({}, (10,), "y", (-0.02,), 1),
        ({}, (10, 20), "yy", (0.015, 0.01), 2),  # what looks free goes before what costs something
        ({"free_drop": 0.02}, (10,), "y", (0.015,), 1),
        ({}, (10, 20), "yy", (0.015, 0.02), 1),  # where nothing looks free, the cheaper one
        ({}, (10, 20), "yy", (0.02, 0.015), 2),
        ({}, (10, 20), "yy", (0.02, 0.02), 1),  # of equals the stronger one
        ({}, (10, 20), "ny", (0.0, 0.02), 2),  # on the images as they are it kept to no budget
        ({"stronger_drop": 0.01}, (10, 20, 10), "yyy", (0.015, 0.015), 3),
        ({"max_drop": 0.005}, (10, 20), "yy", (0.01, 0.005), 2),  # not more than a repair may cost at all
        ({"max_drop": 0.005}, (10, 20, 10), "yyy", (0.015, 0.015), 3),
        ({}, (9, 20), "yy", (0.0, 0.02), 2),  # an earlier epoch of the strongest is no strong repair
        ({}, (10, 20, 10), "nny", (0.5, 0.5), 3),  # within the budget, the settings as they are will do
        ({}, (10, 20, 10, 20), "nnny", (0.5, 0.5), 4),  # else a weaker one
        ({}, (10, 20, 10, 20, 25), "nnnnn", (0.5, 0.5), 5),  # the most accurate, whatever it costs; of equals the last
        ({}, (1, 1, 1, 1, 1), "nynnn", (0.5, 0.5), 2),  # an affordable epoch of a stronger one
        ({}, (1, 1, 1, 1, 1), "yynnn", (0.5, 0.4), 2),  # of two the cheaper one
    ],
)
def test_which_strength_is_kept(monkeypatch, settings, epochs, within, costs, wanted):
    settings = dict(settings)
    max_drop = settings.pop("max_drop", 0.02)
    seen = []

    def once(self, job, original, first, *, name):
        number = len(seen)
        seen.append((self.batch_size, job.model is original))
        job.model.mark = number
        told = [
            RepairEpoch(epoch=epoch, loss=0.0, accuracy=0.5, seconds=0.0) for epoch in {epochs[number], self.epochs}
        ]
        return Tuned(
            {},
            tuple(sorted(told, key=lambda item: item.epoch)),
            epochs[number],
            within_budget=within[number] == "y",
            accuracy_before=0.9,
        )

    measured = []

    def accuracy(model, *_):
        measured.append(getattr(model, "mark", None))  # of which strength it is; none: as it came
        return 0.9 - (costs[model.mark] if hasattr(model, "mark") else 0)

    monkeypatch.setattr(BANDistillation, "repair_once", once)
    monkeypatch.setattr(ban_distillation, "accuracy", accuracy)
    monkeypatch.setattr(ban_distillation, "COPIES", 1)
    job = replace(make_job(), max_drop=max_drop)
    tuned = BANDistillation(**settings).repair(job)
    tried = len(epochs)
    assert measured == [None, 0, 1][: 1 + min(tried, 2)]
    assert [size for size, _ in seen] == [32, 64, 128, 32, 32][:tried]
    # Each begins with the weights as they came.
    assert [same for _, same in seen] == [False, False, False, False, True][:tried]
    assert tuned.kept_epoch == epochs[wanted - 1]
    assert tuned.epochs[0].what.startswith(f"strength {wanted} of 5, epoch ")
    assert len(tuned.attempts) == tried
    assert [" kept, " in line for line in tuned.attempts] == [number == wanted for number in range(1, tried + 1)]
    assert tuned.attempts[0].startswith("strength 1 of 5 (batch_size=32, noise_weight=0.5): ")
    words = {0.0: "+0.0", 0.01: "-1.0", 0.02: "-2.0", -0.02: "+2.0"}
    for cost, line in zip(costs, tuned.attempts, strict=False):
        assert line.endswith(f"; on shifted copies {words.get(cost, '')} points") or cost not in words
    assert all(line.endswith(", 90.0% before") for line in tuned.attempts[2:])


@pytest.mark.parametrize(
    ("within", "wanted"),
    [("y", 1), ("ny", 2), ("nny", 3), ("nnn", 3)],  # of equals over the budget the last
)
def test_where_a_perturbation_is_unlearned_no_stronger_repair_is_tried(monkeypatch, within, wanted):
    led = Standouts(target=2, steps=1, perturbations=SHIFT)
    monkeypatch.setattr(ban_distillation, "first_search", lambda *_: led)
    seen = []

    def once(self, job, original, first, *, name):
        assert first is led
        seen.append((self.batch_size, self.learning_rate))
        last = RepairEpoch(epoch=self.epochs, loss=0.0, accuracy=0.9, seconds=0.0)
        return Tuned({}, (last,), self.epochs, within_budget=within[len(seen) - 1] == "y", accuracy_before=0.9)

    monkeypatch.setattr(BANDistillation, "repair_once", once)
    monkeypatch.setattr(ban_distillation, "accuracy", None)  # nor is there a cost to measure
    tuned = BANDistillation().repair(make_job())
    assert seen == [(128, 0.05), (32, pytest.approx(0.02)), (32, pytest.approx(0.005))][: len(within)]
    assert tuned.epochs[0].what.startswith(f"strength {wanted} of 3, epoch ")
    assert tuned.attempts[0] == "the stronger ones were left out, since changes of all pixels are unlearned"
    assert tuned.attempts[1].startswith("strength 1 of 3 (the settings as they are): ")


def test_a_patch_that_cannot_be_searched_is_told_with_a_way_out(monkeypatch):
    def search(*_):
        raise UnsupportedModelError("the search ended in outputs that are not finite")

    monkeypatch.setattr(ban_distillation, "first_search", search)
    told = r"a patch to unlearn: .* not finite; --set ban-distillation.patch_weight=0 does without it"
    with pytest.raises(UnsupportedModelError, match=told):
        BANDistillation()(make_model(), make_data(), max_drop=1.0)


@pytest.mark.parametrize("diverging", [(1,), (1, 2), (1, 2, 3, 4), (1, 2, 3, 4, 5)])
def test_a_strength_that_diverges_is_given_up(monkeypatch, tmp_path, diverging):
    tried = []

    def once(self, job, original, first, *, name):
        tried.append(name)
        if len(tried) in diverging:
            raise DivergedError("the repair diverged")
        if len(tried) == 1 + len(diverging):
            raise KeyboardInterrupt
        last = RepairEpoch(epoch=self.epochs, loss=0.0, accuracy=0.9, seconds=0.0)
        return Tuned({}, (last,), self.epochs, within_budget=True, accuracy_before=0.9)

    monkeypatch.setattr(BANDistillation, "repair_once", once)
    monkeypatch.setattr(ban_distillation, "accuracy", lambda *_: 0.9)
    state = tmp_path / "state"
    if len(diverging) == 5:
        with pytest.raises(DivergedError):
            BANDistillation().repair(make_job(state=state))
        return
    with pytest.raises(KeyboardInterrupt):
        BANDistillation().repair(make_job(state=state))
    tuned = BANDistillation().repair(make_job(state=state))
    assert len(tried) == len(diverging) + 2  # the call that goes on knows what diverged
    assert tried[-1] == tried[-2]
    assert [line.endswith("given up, it diverged") for line in tuned.attempts] == [True] * len(diverging) + [False]


def test_what_is_told_of_a_strength_is_of_the_epoch_whose_cost_was_measured(monkeypatch):
    def once(self, job, original, first, *, name):
        told = [RepairEpoch(epoch=epoch, loss=0.0, accuracy=0.9 - epoch / 100, seconds=0.0) for epoch in (1, 2)]
        return Tuned({}, tuple(told), 1, within_budget=True, accuracy_before=0.9)

    monkeypatch.setattr(BANDistillation, "repair_once", once)
    monkeypatch.setattr(ban_distillation, "accuracy", lambda *_: 0.9)
    tuned = BANDistillation(epochs=2).repair(make_job())
    assert "given up, accuracy 89.0% after epoch 1 of 2 on" in tuned.attempts[0]


def test_the_cost_is_measured_on_copies_that_are_shifted_further_than_in_training(monkeypatch):
    shown = []

    def accuracy(model, data, meter, what):
        shown.append(data)
        return 0.9

    monkeypatch.setattr(ban_distillation, "accuracy", accuracy)
    data = CleanData(torch.rand(5, 3, 32, 32) * 0.5 + 0.5, torch.tensor([0, 1, 2, 0, 1]), ("a", "b", "c"))
    job = replace(make_job(data=data), augmentation=Augmentation(margin=4, flips=False))
    assert BANDistillation()._accuracy_when_shifted(job, job.model, "as it came") == pytest.approx(0.9)
    assert len(shown) == 8
    assert all(torch.equal(copies.labels, data.labels) for copies in shown)
    black = torch.stack([(copies.images.sum(1) == 0) for copies in shown])  # [8, B, H, W]
    widths = black.all(2).sum(-1)  # columns of a copy that were shifted in
    assert int(widths.max()) == 6
    assert len({tuple(item.flatten().tolist()) for item in widths}) > 1  # each copy is another one


def test_an_interrupted_repair_goes_on_with_the_perturbations_it_had(monkeypatch, tmp_path):
    shift = torch.full((1, 3, 8, 8), 0.2)
    monkeypatch.setattr(ban_distillation, "first_search", lambda *_: Standouts(target=2, steps=2, perturbations=shift))
    method, data = BANDistillation(epochs=4, batch_size=8, gentle=True), make_data()

    def stop(what, _):
        if "epoch 4/4" in what and "loss" in what:
            raise KeyboardInterrupt

    whole = method(make_model(), data, max_drop=1.0)
    with pytest.raises(KeyboardInterrupt):
        method(make_model(), data, max_drop=1.0, meter=Meter(listener=stop), state=tmp_path / "state")
    resumed = method(make_model(), data, max_drop=1.0, state=tmp_path / "state")
    assert resumed.epochs[2].earlier
    assert same_weights(whole.model.state_dict(), resumed.model.state_dict())
    assert (resumed.forward_images, resumed.backward_images) == (whole.forward_images, whole.backward_images)


def test_passes_of_changed_images_are_booked(monkeypatch, no_later_search):
    def passes(found):
        monkeypatch.setattr(ban_distillation, "first_search", lambda *_: found)
        repaired = BANDistillation(epochs=1, batch_size=60, gentle=True)(make_model(), make_data(), max_drop=1.0)
        return repaired.forward_images, repaired.backward_images

    plain, patch = passes(Standouts()), passes(Standouts(patch=PATCH))
    both = passes(Standouts(patch=PATCH, target=2, steps=1, perturbations=SHIFT))
    batch, quarter = 54, round(0.25 * 54)  # of 20 images of each of three classes two choose
    for found, parts in ((patch, 1), (both, 2)):
        assert tuple(more - less for less, more in zip(plain, found, strict=True)) == (batch + parts * quarter,) * 2


def test_an_interrupted_repair_goes_on_at_its_strength(monkeypatch, tmp_path):
    monkeypatch.setattr(ban_distillation.Tried, "affordable", lambda *_: False)
    method, data = BANDistillation(epochs=2, batch_size=8), make_data()
    told = []

    def stop(what, _):
        if "strength 2 of 5, epoch 2/4" in what and "loss" in what:  # the second strength takes twice as many
            raise KeyboardInterrupt
        told.append(what)

    whole = method(make_model(), data, max_drop=1.0)
    with pytest.raises(KeyboardInterrupt):
        method(make_model(), data, max_drop=1.0, meter=Meter(listener=stop), state=tmp_path / "state")
    assert any(what.startswith("strength 1 of 5, epoch 2/2") for what in told)
    told.clear()
    meter = Meter(listener=lambda what, _: told.append(what))
    resumed = method(make_model(), data, max_drop=1.0, meter=meter, state=tmp_path / "state")
    assert next(what for what in told if "epoch" in what).startswith("strength 2 of 5, epoch 2/4")
    assert same_weights(whole.model.state_dict(), resumed.model.state_dict())
    assert resumed.epochs[0].what == whole.epochs[0].what == "strength 3 of 5, epoch 1"
    assert resumed.seconds > resumed.earlier_seconds > 0
    assert (resumed.forward_images, resumed.backward_images) == (whole.forward_images, whole.backward_images)
