"""What any module returns, and how it is split."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from banaudit.architectures import FinalLinearSplit, OutputSplit, recognise_outputs, split_module
from banaudit.errors import UnsupportedModelError


class Classifier(nn.Module):
    """A small classifier whose ``after`` decides what becomes of the logits."""

    def __init__(self, after: str) -> None:
        super().__init__()
        self.after = after
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.hidden = nn.Linear(4, 6)
        self.last = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> object:
        features = F.relu(self.hidden(self.body(images).mean((2, 3))))
        logits = self.last(features)
        return {
            "nothing": lambda: logits,
            "softmax": lambda: logits.softmax(1),
            "log-softmax": lambda: logits.log_softmax(1),
            "tuple": lambda: (features, logits, "word"),
            "mapping": lambda: {"embedding": features, "logits": logits},
            "nested": lambda: ([features.view(-1, 2, 3)], (logits.softmax(1),)),
            "noise": lambda: logits + torch.randn_like(logits),
            "clamp": lambda: logits.clamp_min(0.01),
            "clamped softmax": lambda: logits.clamp_min(0.01).softmax(1),
            "argmax": lambda: logits.argmax(1),
        }[self.after]()


def probe() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def classifier(after: str) -> Classifier:
    torch.manual_seed(0)
    return Classifier(after).eval()


@pytest.mark.parametrize(
    ("after", "kind", "note"),
    [
        ("nothing", "logits", ""),
        ("softmax", "probabilities", ""),
        ("log-softmax", "log-probabilities", ""),
        ("tuple", "logits", "element 1 of 3"),
        ("mapping", "logits", "'logits'"),
        ("nested", "probabilities", "element 0 of 1 of element 1 of 2"),
    ],
)
def test_outputs_are_recognised_and_split_before_the_softmax(after: str, kind: str, note: str) -> None:
    module = classifier(after)
    split = FinalLinearSplit.find(module, probe(), classes=5)
    assert split.linear == "last"
    for network in (module, split):
        outputs = recognise_outputs(network, probe(), classes=5)
        assert (outputs.kind, outputs.classes, outputs.deterministic) == (kind, 5, True)
        assert note in outputs.note
        assert bool(outputs.note) == bool(note)
    logits = classifier("nothing")(probe())
    features = split.features(probe())
    assert features.shape == (4, 6)
    assert torch.equal(split(probe()), logits)
    assert torch.equal(split.head(features), logits)
    assert torch.equal(copy.deepcopy(split)(probe()), logits)
    assert torch.autograd.grad(split(probe()).sum(), module.body[1].weight)[0].abs().sum() > 0


def test_a_tuple_without_a_known_class_count_is_split_at_what_a_linear_layer_made() -> None:
    assert FinalLinearSplit.find(classifier("tuple"), probe()).linear == "last"


def test_probabilities_keep_their_logits_up_to_a_constant() -> None:
    split = split_module(classifier("clamped softmax"), probe())
    assert isinstance(split, OutputSplit)
    assert split.kind == "probabilities"
    assert torch.allclose(split(probe()).softmax(1), classifier("clamped softmax")(probe()), atol=1e-6)


def test_a_module_without_a_last_linear_layer_is_used_whole() -> None:
    module = classifier("clamp")
    with pytest.raises(UnsupportedModelError, match="among the 2 that were called"):
        FinalLinearSplit.find(module, probe())
    split = split_module(module, probe())
    assert isinstance(split, OutputSplit)
    assert torch.equal(split(probe()), module(probe()))


def test_a_layer_used_twice_is_no_split() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(self.layer(images.mean((2, 3))))

    assert isinstance(split_module(Twice().eval(), probe()), OutputSplit)


def test_a_network_that_is_not_deterministic_is_told() -> None:
    before = torch.random.get_rng_state()
    outputs = recognise_outputs(classifier("noise"), probe())
    torch.manual_seed(0)
    assert not outputs.deterministic
    assert "two different outputs" in outputs.note
    assert len(before)


def test_looking_changes_neither_mode_nor_random_state() -> None:
    module = classifier("noise").train()
    module.hidden.eval()
    statistics = module.body[1].running_mean.clone()
    before = torch.random.get_rng_state()
    recognise_outputs(module, probe())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert module.training
    assert not module.hidden.training
    assert torch.equal(module.body[1].running_mean, statistics)


def test_what_is_no_classifier_is_said() -> None:
    with pytest.raises(UnsupportedModelError, match=r"class scores \[4, K\] for 4 images, found a tensor \[4\]"):
        recognise_outputs(classifier("argmax"), probe())
    with pytest.raises(UnsupportedModelError, match=r"\[4, 7\]"):
        split_module(classifier("nothing"), probe(), classes=7)
    with pytest.raises(UnsupportedModelError, match="a single score for each image"):
        recognise_outputs(nn.Sequential(nn.Flatten(), nn.LazyLinear(1)), probe())
