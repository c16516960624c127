"""Finding, renaming, folding and checking weights."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from banaudit.checkpoints.weights import TOP_LEVEL, choose_state_dict, find_state_dicts, tidy
from banaudit.errors import CheckpointError


def weights(prefix: str = "") -> dict[str, torch.Tensor]:
    plain = {"conv.weight": torch.ones(2, 2), "bn.weight": torch.ones(2), "bn.num_batches_tracked": torch.tensor(3)}
    return {prefix + key: value for key, value in plain.items()}


def tidied(content: object, state_key: str | None = None):
    return tidy(choose_state_dict(content, state_key, "m.pt"), "m.pt")


@pytest.mark.parametrize(
    ("prefix", "stripped"),
    [
        ("", ()),
        ("module.", ("module.",)),
        ("_orig_mod.", ("_orig_mod.",)),
        ("module._orig_mod.module.", ("module.", "_orig_mod.", "module.")),
        ("model.", ("model.",)),
        ("module.net.backbone.", ("module.", "net.", "backbone.")),
        ("1.", ("1.",)),
        ("resnet.", ()),
    ],
)
def test_prefixes(prefix, stripped):
    result = tidied(weights(prefix))
    kept = prefix if not stripped else ""
    assert list(result.weights) == list(weights(kept))
    assert result.stripped_prefixes == stripped
    assert result.original_keys[f"{kept}conv.weight"] == (f"{prefix}conv.weight",)


def test_wrapper_prefix_stays_where_not_all_keys_have_it():
    content = weights("model.") | {"criterion.weight": torch.ones(3)}
    assert list(tidied(content).weights) == list(content)


def test_layers_of_a_sequential_are_no_wrapper():
    content = {"1.weight": torch.ones(2, 2), "1.bias": torch.ones(2)}
    assert list(tidied(content).weights) == ["1.weight", "1.bias"]


def test_no_two_keys_become_one():
    content = weights() | weights("module.")
    assert list(tidied(content).weights) == list(content)


def test_compiled_part():
    assert "body.conv.weight" in tidied({f"body.{key}": value for key, value in weights("_orig_mod.").items()}).weights


def test_averaged_model():
    result = tidied(torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2)).state_dict())
    assert list(result.weights) == ["weight", "bias"]
    assert result.ignored == ("n_averaged (tensor)",)


def test_pruned_pairs_are_folded_in_place():
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    prune.random_unstructured(module[0], "weight", 0.5)
    expected = module[0].weight.detach()
    result = tidied(module.state_dict())
    assert sorted(result.weights) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert torch.equal(result.weights["0.weight"], expected)
    assert result.folded == ("0.weight",)
    assert result.original_keys["0.weight"] == ("0.weight_orig", "0.weight_mask")


def test_lone_orig_and_norm_parts_are_kept():
    content = {"a.weight_orig": torch.ones(2, 2), "b.weight_g": torch.ones(2), "b.weight_v": torch.ones(2, 2)}
    assert list(tidied(content).weights) == list(content)
    assert tidied(content).folded == ()


def test_two_candidates_ask_for_the_key():
    content = {"netC": weights(), "netG": weights("module."), "optimizerC": {"state": {}, "param_groups": []}}
    with pytest.raises(CheckpointError, match=r"netC \(3 tensors\), netG \(3 tensors\).*--state-key netC"):
        tidied(content)
    assert list(tidied(content, "netG").weights) == list(weights())
    with pytest.raises(CheckpointError, match=r"netX is not in the file; weights there: netC"):
        tidied(content, "netX")
    with pytest.raises(CheckpointError, match="is a single tensor"):
        tidied(content, "netC.conv.weight")


def test_dotted_state_key():
    content = {"a": {"b.c": weights(), "d": weights()}}
    assert tidied(content, "a.b.c").weights
    assert [candidate.key for candidate in find_state_dicts(content)] == ["a.b.c", "a.d"]
    assert tidied(weights(), TOP_LEVEL).weights


def test_optimizers_and_losses_are_no_candidates():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "net": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "moments": optimizer.state_dict()["state"],
        "loss": {"weight": torch.ones(10)},
        "grid": torch.zeros(3, 3),
    }
    assert [candidate.key for candidate in find_state_dicts(content)] == ["net"]


def test_unusual_names_are_found_when_nothing_else_is():
    assert list(tidied({"step": 3, "params": {"w1": torch.ones(2, 2), "b1": torch.ones(2)}}).weights) == ["w1", "b1"]


def test_one_mapping_under_many_names_is_looked_at_once():
    shared = dict.fromkeys(range(40_000), 1)
    started = time.monotonic()
    assert find_state_dicts({"net": weights(), **{str(number): shared for number in range(40_000)}})
    assert time.monotonic() - started < 20  # a copy for each name took many minutes


def test_cycles_end():
    content: dict[str, object] = {"net": weights()}
    content["self"] = content
    assert [candidate.key for candidate in find_state_dicts(content)] == ["net"]


@pytest.mark.parametrize(("value", "expected"), [(float("nan"), "1 NaN and 0 inf"), (float("inf"), "0 NaN and 1 inf")])
def test_not_finite(value, expected):
    content = weights() | {"fc.weight": torch.ones(2, 2)}
    content["fc.weight"][0, 1] = value
    with pytest.raises(CheckpointError, match=rf"fc\.weight has {expected}inite values of 4 \(1 of 4"):
        tidied(content)


def test_plain_numbers_are_tolerated_and_reported():
    content = weights() | {"bn2.num_batches_tracked": 5, "best": 0.5}
    result = tidied(content)
    assert torch.equal(result.weights["bn2.num_batches_tracked"], torch.tensor(5))
    assert result.ignored == ("best (float)",)
    with pytest.raises(CheckpointError, match="expected a tensor for extra, found a list"):
        tidied(weights() | {"extra": [1.0]})


def test_nothing_there():
    with pytest.raises(CheckpointError, match="an empty mapping"):
        tidied({})
    with pytest.raises(CheckpointError, match="has no tensors"):
        tidied({"model": {}}, "model")
    with pytest.raises(CheckpointError, match="expected readable text"):
        tidied({0: torch.ones(2, 2)}, TOP_LEVEL)


@pytest.mark.parametrize("count", [2**63, 2**70, -(2**63) - 1])
def test_a_count_beyond_64_bits(count):
    with pytest.raises(CheckpointError, match=r"^m\.pt: expected a 64-bit count for bn\.num_batches_tracked"):
        tidied({**weights(), "bn.num_batches_tracked": count})


@pytest.mark.parametrize("parts", [("conv.weight",), ("conv.weight", "bn.weight")])
def test_complex_numbers_are_no_weights(parts):
    content = weights() | {key: weights()[key].to(torch.complex64) for key in parts}
    with pytest.raises(CheckpointError, match=r"expected a dense tensor for conv\.weight, found complex numbers"):
        tidied(content)


def network(value):
    return {"conv.weight": torch.full((4, 3, 3, 3), value), "linear.weight": torch.full((2, 4), value)}


@pytest.mark.parametrize(
    "tree",
    [
        {**network(1.0), "ema": network(2.0)},
        {"checkpoint": {"net": network(1.0), "state": {}, "param_groups": []}, "best": network(2.0)},
        {"optimizer": {"state": network(1.0), "param_groups": []}, "best": network(2.0)},
        {"model": {**network(1.0), "exp_avg": torch.zeros(1)}, "best": network(2.0)},
        {"model": {**network(1.0), "more": {"w": torch.zeros(2, 2)}}, "best": network(2.0)},
        {"model": {**network(1.0), **{str(number): number for number in range(50)}}, "best": network(2.0)},
        {"all": [*range(100), network(1.0)], "best": network(2.0)},
        {"model": {**network(1.0), 0: 0}, "best": network(2.0)},
        {**network(1.0), 0: 0, "best": network(2.0)},
    ],
)
def test_no_set_of_weights_hides_behind_another(tree):
    assert len(find_state_dicts(tree)) == 2
    with pytest.raises(CheckpointError, match="found 2 sets of weights"):
        choose_state_dict(tree, None, "m.pt")


def test_optimizer_state_is_no_set_of_weights():
    adam = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(4, 4), "exp_avg_sq": torch.zeros(4, 4)}}}
    tree = {"net": network(1.0), "optimizer": {**adam, "param_groups": [{"lr": 0.1, "params": [0]}]}}
    assert [candidate.key for candidate in find_state_dicts(tree)] == ["net"]
