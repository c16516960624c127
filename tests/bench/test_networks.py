import pytest
import torch

from banaudit.bench.networks import NETWORKS, build_network
from banaudit.errors import UsageError


@pytest.mark.parametrize("architecture", sorted(NETWORKS))
@pytest.mark.parametrize(("channels", "num_classes"), [(3, 10), (1, 43)])
def test_every_network_classifies_at_a_small_width(architecture, channels, num_classes):
    network = build_network(architecture, 8, channels, num_classes).eval()
    with torch.no_grad():
        logits = network(torch.rand(2, channels, 32, 32))
    assert logits.shape == (2, num_classes)


def test_full_width_resnet18_has_the_usual_number_of_weights():
    assert sum(p.numel() for p in build_network("resnet18", 64, 3, 10).parameters()) == 11_173_962


def test_full_width_mobilenetv2_has_the_usual_number_of_weights():
    # Sandler et al.'s network with a 10-class head and projected shortcuts where stride 1 changes the width.
    assert sum(p.numel() for p in build_network("mobilenetv2", 32, 3, 10).parameters()) == 2_296_922


def test_unknown_architecture_is_an_error():
    with pytest.raises(UsageError, match="not known"):
        build_network("alexnet", 16, 3, 10)
