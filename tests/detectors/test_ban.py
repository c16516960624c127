import pytest
import torch
from toys import TARGET

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.detectors import ban
from banaudit.detectors.ban import BAN, FEWEST_MISTAKES, WARM_UP_BATCHES
from banaudit.meter import Meter
from banaudit.neurons import NoisyModel
from banaudit.results import Reading, Verdict


class Answers(SplitNetwork):
    """Features are the logits."""

    def features(self, inputs):
        return inputs.flatten(1)

    def head(self, features):
        return features


def answering(*labels, classes=3):
    """A model and features that it answers with these labels."""
    return SplitModel(Answers(), (0.0,), (1.0,)), torch.eye(classes)[list(labels)]


LABELS = torch.tensor([0, 0, 0, 0, 1, 1])


def test_confusion_is_in_shares_of_each_class():
    model, features = answering(0, 1, 1, 2, 1, 0)
    confusion = ban._confusion(model, features, LABELS, 3)
    assert confusion.tolist() == [[0.25, 0.5, 0.25], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]


def test_a_class_does_not_count_towards_itself():
    confusion = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    # Class 2 has no images. Into 0: half of class 1; into 1: half of class 0; into 2: a quarter of 0, nothing of 1.
    assert ban._into_each_class(confusion).tolist() == [0.5, 0.5, 0.125]


def test_a_network_that_is_right_sends_nothing_anywhere():
    assert ban._into_each_class(torch.eye(4)).tolist() == [0.0] * 4


def test_favourites_are_other_classes_with_images():
    confusion = torch.tensor([[0.25, 0.5, 0.25], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert ban._favourites(confusion) == {0: (0.5, 1), 1: (0.0, 0)}


def test_shares_of_the_mistakes():
    model, features = answering(0, 1, 1, 2, 1, 0)
    shares = ban._error_shares(model, features, LABELS, 3)
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.5, 0.25]))


def test_a_few_mistakes_do_not_pile_up():
    # One mistake among 100 images is all mistakes in one class, on any network.
    labels = torch.zeros(100, dtype=torch.long)
    model, features = answering(*[0] * 99, 1)
    assert ban._error_shares(model, features, labels, 3).tolist() == pytest.approx([0.0, 0.01 / FEWEST_MISTAKES, 0.0])
    model, features = answering(*[0] * 80, *[1] * 20)
    assert ban._error_shares(model, features, labels, 3).tolist() == [0.0, 1.0, 0.0]


def test_released_is_the_authors_procedure():
    released = BAN.released()
    changed = {key: value for key, value in released.settings().items() if value != BAN().settings()[key]}
    assert changed == {
        "noise_images": 128,
        "clip": False,
        "drift": True,
        "clamp_late": True,
        "restarts": 1,
        "search_images": 500,
        "read_images": 5000,
        "share_threshold": 0.5,
        "errors_threshold": 1.0,
        "null_margin": None,
        "distinct_threshold": 1.0,
    }
    assert (released.eps, released.noise_steps, released.mask_weight, released.share_threshold) == (0.3, 30, 0.75, 0.5)


def test_released_plans_its_warm_up():
    noise, features, readings = 30 * 128 * (1 + WARM_UP_BATCHES), 500, 2 * 500
    assert BAN.released().planned_images(10, 1000) == noise + features + readings


@pytest.mark.parametrize(("clip", "largest"), [(True, 0.3), (False, 0.6)])
def test_without_clipping_start_and_steps_add_up(clip, largest, sleeping, tiled_data, monkeypatch):
    radii = []

    def ascend(self, images, labels, noise, *, step, radius, what):
        radii.append(radius)
        assert step == pytest.approx(0.3 / 30)
        return noise

    monkeypatch.setattr(ban.NoisyModel, "ascend", ascend)
    BAN(clip=clip, mask_steps=1)(sleeping, tiled_data)
    assert radii == [pytest.approx(largest)] * 2 * 30


def test_statistics_drift_only_where_asked(sleeping, tiled_data):
    for drift in (False, True):
        model = sleeping
        before = model.network.norm.running_mean.clone()
        detector = BAN(drift=drift, mask_steps=1, noise_steps=2)
        detector.search(model, halves(tiled_data), torch.Generator().manual_seed(0), Meter())
        assert torch.equal(model.network.norm.running_mean, before) is not drift


def halves(data):
    from banaudit.detectors.base import Samples

    return Samples(*data.split(0.5, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("seed", [0, 1])
def test_finds_the_planted_backdoor(seed, sleeping, tiled_data):
    finding = BAN(mask_steps=100)(sleeping, tiled_data, seed=seed)
    assert finding.verdict is Verdict.BACKDOORED
    negative_mask, _, noise_alone = finding.evidence
    assert (noise_alone.reading, noise_alone.target, noise_alone.agreement) == (Reading.ALL_TO_ONE, TARGET, 1.0)
    assert noise_alone.fired
    assert noise_alone.score > 0.8
    # The mask finds the sleepers, but under random noise as well: their weight alone makes it wrong in their class.
    assert negative_mask.target == TARGET
    assert negative_mask.score > negative_mask.threshold
    assert not negative_mask.fired
    assert negative_mask.null > negative_mask.score - BAN().null_margin


@pytest.mark.parametrize("seed", [0, 1])
def test_does_not_accuse_the_clean_twin(seed, unplanted, tiled_data):
    assert BAN(mask_steps=100)(unplanted, tiled_data, seed=seed).verdict is Verdict.NO_EVIDENCE


def test_does_not_accuse_a_trained_network_of_its_few_mistakes(clean_twin, clean_data):
    assert BAN(mask_steps=100)(clean_twin, clean_data).verdict is Verdict.NO_EVIDENCE


def test_released_accuses_the_planted_backdoor(sleeping, tiled_data):
    finding = BAN.released()(sleeping, tiled_data)
    assert finding.verdict is Verdict.BACKDOORED
    assert [item.fired for item in finding.evidence] == [True, False, False]
    assert finding.evidence[0].target == TARGET


def restart(masked, null=None):
    """What a restart read, as confusions of four classes."""
    masked = torch.tensor(masked)
    null = torch.tensor(null) if null is not None else torch.eye(4)
    return ban._Restart(masked=masked, null=null, errors=torch.zeros(4), errors_null=torch.zeros(4))


CYCLE = [[0.2, 0.8, 0, 0], [0, 0.2, 0.8, 0], [0, 0, 0.2, 0.8], [0.8, 0, 0, 0.2]]
TO_FIRST = [[1.0, 0, 0, 0], [0.8, 0.2, 0, 0], [0.8, 0, 0.2, 0], [0.8, 0, 0, 0.2]]
OTHER_CYCLE = [[0.2, 0, 0, 0.8], [0.8, 0.2, 0, 0], [0, 0.8, 0.2, 0], [0, 0, 0.8, 0.2]]


@pytest.mark.parametrize(
    ("confusions", "fired", "mapping"),
    [
        ((CYCLE, CYCLE), True, {0: 1, 1: 2, 2: 3, 3: 0}),
        ((TO_FIRST, TO_FIRST), False, {1: 0, 2: 0, 3: 0}),  # one class draws all: no map, and class 0 goes nowhere
        ((CYCLE, OTHER_CYCLE), False, {0: 1, 1: 2, 2: 3, 3: 0}),  # the restarts disagree
    ],
)
def test_a_map_is_of_classes_that_differ(confusions, fired, mapping):
    evidence = BAN()._all_to_all([restart(confusion) for confusion in confusions])
    assert evidence.fired is fired
    assert evidence.mapping == mapping


def test_classes_without_images_do_not_thin_the_map():
    confusion = [*CYCLE[:3], [0.0, 0.0, 0.0, 0.0]]
    evidence = BAN()._all_to_all([restart(confusion)])
    assert evidence.score == pytest.approx(0.8)
    assert evidence.mapping == {0: 1, 1: 2, 2: 3}
    assert evidence.fired


@pytest.mark.parametrize(
    ("detector", "shares", "null", "fired"),
    [
        (BAN(), (0.9, 0.8), 0.1, True),
        (BAN(), (0.9, 0.4), 0.1, False),  # the weakest restart counts
        (BAN(), (0.9, 0.8), 0.7, False),  # random noise does it too
        (BAN.released(), (0.8,), 0.9, True),  # which the authors do not ask
    ],
)
def test_one_class_must_clear_threshold_and_null(detector, shares, null, fired, tiled_data):
    def into_first(share):
        return torch.tensor([[1.0, 0, 0, 0]] + [[share] + [(1 - share) / 3] * 3] * 3)

    restarts = [restart(into_first(share).tolist(), into_first(null).tolist()) for share in shares]
    four = type(tiled_data)(tiled_data.images[:0], tiled_data.labels[:0], tuple("abcd"))
    evidence = detector._all_to_one(ban.Samples(four, four), restarts)
    assert evidence.fired is fired
    assert evidence.target == 0
    assert evidence.score == pytest.approx(min(shares))
    assert evidence.null == pytest.approx(null)


@pytest.mark.parametrize("clip", [True, False])
def test_null_is_random_noise_as_large_as_the_search_may_go(clip, sleeping, tiled_data, monkeypatch):
    read = []
    plain = ban.noisy_features

    def spy(noisy, images, noise, what):
        read.append(noise)
        return plain(noisy, images, noise, what)

    monkeypatch.setattr(ban, "noisy_features", spy)
    detector = BAN(clip=clip, noise_steps=2, mask_steps=2, restarts=1)
    detector(sleeping, tiled_data)
    nothing, found, random = read
    assert not nothing.any()
    assert float(found.abs().max()) <= detector.radius + 1e-6
    assert random.abs().unique().tolist() == pytest.approx([0.3 if clip else 0.6])
    assert 0.3 < float((random > 0).double().mean()) < 0.7


def test_a_small_last_batch_has_no_statistics_of_its_own(sleeping, tiled_data):
    sizes = []
    noisy = NoisyModel(sleeping, form="relative")
    plain = noisy.features
    noisy.features = lambda images, noise, what: sizes.append(len(images)) or plain(images, noise, what=what)
    images = tiled_data.images[:1].expand(257, -1, -1, -1)
    assert len(ban.noisy_features(noisy, images, noisy.no_noise(), "test")) == 257
    assert sizes == [129, 128]
