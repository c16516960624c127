import pytest
import torch
from torch import nn

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.bench.attacks.base import Batch, BatchPoisoner
from banaudit.bench.trainer import TrainingSettings, adversarial_images, augment, train


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class SmallNetwork(SplitNetwork):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 2)

    def features(self, inputs):
        return self.norm(self.convolution(inputs)).relu().mean(dim=(2, 3))

    def head(self, features):
        return self.linear(features)


def small_model():
    return SplitModel(SmallNetwork(), (0.0,), (1.0,))


def bright_and_dark(count=256):
    labels = torch.arange(count) % 2
    pixels = torch.randint(100, (count, 1, 8, 8), generator=seeded(), dtype=torch.uint8)
    return pixels + (120 * labels).to(torch.uint8).view(-1, 1, 1, 1), labels


@pytest.mark.parametrize("augmentation", ["none", "standard", "strong"])
@pytest.mark.parametrize("eps", [0.0, 0.02])
def test_a_small_model_learns_bright_from_dark(augmentation, eps):
    pixels, labels = bright_and_dark()
    settings = TrainingSettings(
        epochs=6, batch_size=32, learning_rate=0.2, augmentation=augmentation, adversarial_eps=eps, label_smoothing=0.1
    )
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small_model()
    train(
        model,
        pixels,
        labels,
        settings,
        flips=True,
        poisoner=None,
        generator=seeded(),
        listener=lambda epoch, loss: losses.append(loss),
    )
    assert not model.training
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    with torch.no_grad():
        assert (model(pixels.float() / 255).argmax(1) == labels).float().mean() > 0.9


def test_training_repeats_under_a_seed():
    pixels, labels = bright_and_dark(64)
    weights = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = small_model()
        settings = TrainingSettings(epochs=2, batch_size=16)
        train(model, pixels, labels, settings, flips=True, poisoner=None, generator=seeded(4))
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


class Persuader(BatchPoisoner):
    """Leaves the images alone and asks that the classifier's logits of label 1 be large."""

    def poison(self, images, labels):
        def objective(model, logits):
            assert model.training
            assert logits.shape == (len(images), 2)
            return -20 * logits[:, 1].float().mean()

        return Batch(images, labels, objective=objective)


def test_what_an_attacker_adds_to_the_loss_trains_the_classifier():
    pixels, labels = bright_and_dark(64)
    logits = []
    for poisoner in (None, Persuader({})):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = small_model()
        losses = []
        train(
            model,
            pixels,
            labels,
            TrainingSettings(epochs=2, batch_size=16),
            flips=True,
            poisoner=poisoner,
            generator=seeded(4),
            listener=lambda epoch, loss, told=losses: told.append(loss),
        )
        assert min(losses) > 0  # the classifier's own loss alone is told
        with torch.no_grad():
            logits.append(model(pixels.float() / 255)[:, 1].mean())
    assert logits[1] > logits[0] + 1


def test_standard_augmentation_shifts_and_mirrors():
    images = torch.zeros(200, 1, 32, 32)
    images[:, :, 16, 10] = 1
    changed = augment(images, "standard", True, seeded())
    assert changed.shape == images.shape
    assert changed.sum() == 200  # the one white pixel never leaves the image
    rows, columns = changed[:, 0].flatten(1).argmax(1) // 32, changed[:, 0].flatten(1).argmax(1) % 32
    assert set(rows.tolist()) == set(range(12, 21))
    assert set(columns.tolist()) == set(range(6, 15)) | set(range(17, 26))


def test_without_flips_nothing_is_mirrored():
    images = torch.zeros(200, 1, 32, 32)
    images[:, :, 16, 4] = 1
    changed = augment(images, "standard", False, seeded())
    assert set((changed[:, 0].flatten(1).argmax(1) % 32).tolist()) == set(range(9))


def test_no_augmentation_changes_nothing():
    images = torch.rand(4, 3, 32, 32, generator=seeded())
    assert torch.equal(augment(images, "none", True, seeded()), images)


def test_strong_augmentation_greys_out_a_square():
    images = torch.ones(50, 3, 32, 32)
    changed = augment(images, "strong", True, seeded())
    assert ((changed == 0.5).sum(dim=(1, 2, 3)) >= 3 * 64).all()
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_adversarial_images_stay_near_and_raise_the_loss():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    images, labels = torch.rand(32, 1, 8, 8, generator=seeded()), torch.arange(32) % 2
    moved = adversarial_images(model, images, labels, 0.05, seeded())
    assert (moved - images).abs().max() <= 0.05 + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    loss = nn.CrossEntropyLoss()
    assert loss(model(moved), labels) > loss(model(images), labels)
