import json
import os
import warnings
from argparse import Namespace
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import prune

from banaudit.checkpoints import read_checkpoint
from banaudit.checkpoints.writer import as_stored, beside, check_out, rewrite, write_checkpoint
from banaudit.errors import CheckpointError, UnsafeCheckpointError, UsageError

ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 4))


def moved(weights):
    """Other weights of the same kind; zeros stay."""
    return {name: tensor * 1.25 if tensor.is_floating_point() else tensor + 7 for name, tensor in weights.items()}


def repair(path, *, state_key=None, out=None):
    """Rewrite a file with other weights; the new file, the weights and what was dropped."""
    before = path.read_bytes()
    checkpoint = read_checkpoint(path, state_key=state_key)
    weights = as_stored(checkpoint, moved(checkpoint.weights))
    result = rewrite(path, checkpoint, weights, state_key=state_key, provenance={"parent": checkpoint.facts.sha256})
    out = out or path.with_name(f"repaired{path.suffix}")
    write_checkpoint(out, result, "{}", force=False)
    assert path.read_bytes() == before
    return out, weights, result


def plain_load(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, weights_only=True, map_location="cpu")


def header(path):
    data = path.read_bytes()
    entries = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {key: entry for key, entry in entries.items() if key != "__metadata__"}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bare_state_dict(tmp_path, zipped, dtype):
    source = network().to(dtype).state_dict()
    torch.save(source, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    out, weights, result = repair(tmp_path / "m.pt")
    loaded = plain_load(out)
    assert type(loaded) is OrderedDict
    assert loaded._metadata == source._metadata
    assert list(loaded) == list(source)
    assert all(loaded[key].dtype == source[key].dtype and torch.equal(loaded[key], weights[key]) for key in source)
    network().to(dtype).load_state_dict(loaded, strict=True)
    assert read_checkpoint(out).facts.format == read_checkpoint(tmp_path / "m.pt").facts.format
    assert (result.replaced, result.dropped) == ((), ())


def test_wrapper_keeps_its_other_entries(tmp_path):
    state = OrderedDict((f"module.{key}", value) for key, value in network().state_dict().items())
    wrapper = {"epoch": 7, "acc": 0.9, "net": state, "args": Namespace(lr=0.1, names=["a"]), "small": torch.rand(3)}
    torch.save(wrapper, tmp_path / "m.pth.tar")
    out, weights, result = repair(tmp_path / "m.pth.tar")
    with torch.serialization.safe_globals([Namespace]):
        loaded = plain_load(out)
    assert list(loaded) == list(wrapper)
    assert (loaded["epoch"], loaded["acc"], loaded["args"]) == (7, 0.9, wrapper["args"])
    assert torch.equal(loaded["small"], wrapper["small"])
    assert list(loaded["net"]) == list(state)
    assert all(torch.equal(loaded["net"][f"module.{key}"], weights[key]) for key in weights)
    assert (result.replaced, result.dropped) == ((), ())


def test_safetensors(tmp_path):
    source = {key: value.clone() for key, value in reversed(network().state_dict().items())}
    safetensors.torch.save_file(source, tmp_path / "m.safetensors", metadata={"format": "pt"})
    out, weights, _ = repair(tmp_path / "m.safetensors")
    loaded = safetensors.torch.load_file(out)
    assert list(header(out)) == list(header(tmp_path / "m.safetensors"))
    assert all(torch.equal(loaded[key], weights[key]) for key in source)
    with safetensors.safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["banaudit"])["parent"] == read_checkpoint(tmp_path / "m.safetensors").facts.sha256
    network().load_state_dict(loaded, strict=True)


def test_pruned_pairs_stay_pairs(tmp_path):
    model = network()
    prune.random_unstructured(model[0], "weight", amount=0.5)
    source = model.state_dict()
    torch.save(source, tmp_path / "m.pt")
    out, weights, _ = repair(tmp_path / "m.pt")
    loaded = plain_load(out)
    assert list(loaded) == list(source)
    assert torch.equal(loaded["0.weight_mask"], source["0.weight_mask"])
    assert not loaded["0.weight_orig"][loaded["0.weight_mask"] == 0].any()
    assert torch.equal(loaded["0.weight_orig"], weights["0.weight"])
    model.load_state_dict(loaded, strict=True)


def test_pruned_shifts_stay_zero(tmp_path):
    model = network()
    prune.random_unstructured(model[3], "bias", amount=0.5)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    pruned = checkpoint.weights["3.bias"] == 0
    assert int(pruned.sum()) == 2
    weights = as_stored(checkpoint, {name: tensor + 1 for name, tensor in checkpoint.weights.items()})
    assert torch.equal(weights["3.bias"] == 0, pruned)
    rewrite(tmp_path / "m.pt", checkpoint, weights)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_tensors_lie_as_they_lay(tmp_path, layout):
    source = network().to(memory_format=layout).state_dict()
    torch.save(source, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    trained = {
        name: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in checkpoint.weights.items()
    }
    write_checkpoint(tmp_path / "out.pt", rewrite(tmp_path / "m.pt", checkpoint, trained), "{}", force=False)
    loaded = plain_load(tmp_path / "out.pt")
    assert all(loaded[name].stride() == tensor.stride() for name, tensor in source.items())


def test_other_copies_do_not_carry_the_backdoor_on(tmp_path):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    wrapper = {
        "model": state,
        "ema": {f"module.{key}": value.clone() for key, value in state.items()},
        "alias": state,
        "optimizer": optimizer.state_dict(),
        "averages": {"shadow": [value.clone() for value in state.values()], "decay": 0.99},
        "vector": torch.cat([value.flatten().float() for value in state.values()]),
        "pairs": (1, [torch.rand(100)], {"deep": torch.rand(100), "lr": 0.1}),
        "epoch": 3,
    }
    torch.save(wrapper, tmp_path / "m.pt")
    out, weights, result = repair(tmp_path / "m.pt", state_key="model")
    loaded = plain_load(out)
    assert result.replaced == ("ema",)
    assert result.dropped == (
        "optimizer.state (emptied)",
        "averages.shadow (emptied)",
        "vector",
        "pairs.1 (emptied)",
        "pairs.2.deep",
    )
    assert list(loaded) == [key for key in wrapper if key != "vector"]
    assert all(torch.equal(loaded["ema"][f"module.{key}"], weights[key]) for key in weights)
    assert all(torch.equal(loaded["alias"][key], weights[key]) for key in weights)
    assert loaded["averages"] == {"shadow": [], "decay": 0.99}
    assert loaded["pairs"] == (1, [], {"lr": 0.1})
    optimizer.load_state_dict(loaded["optimizer"])
    olds = [value for key, value in state.items() if value.ndim > 1]
    news = [value for part in ("model", "ema") for value in loaded[part].values()]
    assert not any(old.shape == new.shape and torch.equal(old, new) for old in olds for new in news)


def flat_with_average(prefixes):
    """One mapping with a network under each prefix, a loss's weights and the average's decay."""
    states = [network().state_dict() for _ in prefixes]
    flat = {
        f"{prefix}{key}": value.clone()
        for prefix, state in zip(prefixes, states, strict=True)
        for key, value in state.items()
    }
    return flat | {"model_ema.decay": torch.tensor(0.99), "criterion.weight": torch.rand(100)}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("average", ["model_ema.", "model_ema.module."])
def test_an_average_in_the_same_flat_mapping(tmp_path, suffix, average):
    flat, path = flat_with_average(("model.", average)), tmp_path / f"m{suffix}"
    if suffix == ".pt":
        torch.save(flat, path)
    else:
        safetensors.torch.save_file(flat, path)
    with pytest.raises(CheckpointError, match="found 2 sets of weights") as refusal:
        read_checkpoint(path)
    assert "model (" in str(refusal.value)
    assert "--state-key" in str(refusal.value)
    read = read_checkpoint(path, state_key="model")
    assert set(read.weights) == set(network().state_dict())
    assert (read.facts.state_key, read.facts.stripped_prefixes[0]) == ("model", "model.")
    assert {"model_ema", "criterion"} <= set(read.facts.ignored)
    out, weights, result = repair(path, state_key="model")
    loaded = plain_load(out) if suffix == ".pt" else safetensors.torch.load_file(out)
    assert result.replaced == ("model_ema",)
    assert result.dropped == ("criterion.weight",)
    assert set(loaded) == set(flat) - {"criterion.weight"}
    for prefix in ("model.", average):
        assert all(torch.equal(loaded[f"{prefix}{key}"], tensor) for key, tensor in weights.items())
    again = read_checkpoint(path, state_key="model_ema")
    assert set(again.weights) == set(network().state_dict())


def test_equal_blocks_of_one_network_are_no_copies(tmp_path):
    blocks = nn.ModuleDict({f"block{number}": network() for number in (1, 2)})
    torch.save(blocks.state_dict(), tmp_path / "m.pt")
    assert len(read_checkpoint(tmp_path / "m.pt").weights) == 2 * len(network().state_dict())


def test_what_the_file_holds_twice_is_emptied_twice(tmp_path):
    state = network().state_dict()
    for kind in (list, tuple):
        old = kind(value.clone() for value in state.values())
        torch.save({"net": state, "ema": old, "shadow": old}, tmp_path / f"{kind.__name__}.pt")
        loaded = plain_load(repair(tmp_path / f"{kind.__name__}.pt", out=tmp_path / f"{kind.__name__}-new.pt")[0])
        assert not loaded["ema"]
        assert not loaded["shadow"]


def test_a_small_view_brings_no_large_storage_along(tmp_path):
    flat = torch.cat([value.flatten().float() for value in network().state_dict().values()])
    torch.save({"net": network().state_dict(), "last": flat[-10:]}, tmp_path / "m.pt")
    loaded = plain_load(repair(tmp_path / "m.pt")[0])
    assert torch.equal(loaded["last"], flat[-10:])
    assert loaded["last"].untyped_storage().nbytes() == 40


@pytest.mark.parametrize("names", [("avg_branch", "max_branch"), ("schema", "other")])
def test_branches_of_one_network_are_no_copies(tmp_path, names):
    branches = nn.ModuleDict({**{name: network() for name in names}, "head": nn.Linear(4, 4)})
    torch.save(branches.state_dict(), tmp_path / "m.pt")
    assert len(read_checkpoint(tmp_path / "m.pt").weights) == 2 * len(network().state_dict()) + 2


def test_copies_in_other_forms_are_dropped(tmp_path):
    state, numbers = network().state_dict(), torch.rand(20_000)
    beside = {
        "as numbers": numbers.tolist(),
        "as bytes": numbers.view(torch.uint8).clone(),
        "as whole numbers": (1e6 * numbers).int(),
        "in pieces": {str(at): piece for at, piece in enumerate(numbers.split(50))},
        "as text": ",".join(map(str, numbers.tolist())),
        "in many lists": [numbers[at : at + 5].tolist() for at in range(0, 20_000, 5)] * 2,
        "in many mappings": {str(at): {"n": numbers[at : at + 5].tolist()} for at in range(0, 20_000, 5)},
        "as keys": dict.fromkeys(torch.rand(40000).tolist()),
        "as a set": set(torch.rand(40_000).tolist()),
        "as long numbers": [7**700] * 1000,
        "as numpy numbers": list(numbers.numpy()),
        "as numpy texts": np.array([piece.numpy().tobytes().hex() for piece in numbers.split(500)]),
    }
    harmless = {"losses": [0.1] * 300, "classes": {f"class {number}": number for number in range(1000)}, "epoch": 3}
    torch.save({"net": state, **beside, **harmless}, tmp_path / "m.pt")
    out, _, result = repair(tmp_path / "m.pt")
    loaded = plain_load(out)
    assert {place.partition(".")[0].removesuffix(" (emptied)") for place in result.dropped} == set(beside)
    assert {key: loaded[key] for key in harmless} == harmless
    assert not any(loaded.get(key) for key in beside)


@pytest.mark.parametrize("leaf", [[], {"n": 1}])
def test_what_is_held_twice_on_every_level_is_looked_at_once(tmp_path, leaf):
    for _ in range(40):
        leaf = [leaf, leaf] if isinstance(leaf, list) else {"a": leaf, "b": leaf}
    torch.save({"net": network().state_dict(), "deep": leaf}, tmp_path / "m.pt")
    out, _, result = repair(tmp_path / "m.pt")
    assert plain_load(out).keys() == {"net", "deep"}
    assert result.dropped == ()


def test_attributes_of_a_state_dict_are_no_hiding_place(tmp_path):
    state = network().state_dict()
    state.old = torch.rand(1000)
    torch.save({"net": state}, tmp_path / "attribute.pt")
    out, _, result = repair(tmp_path / "attribute.pt", out=tmp_path / "1.pt")
    assert vars(plain_load(out)["net"]).keys() == {"_metadata"}
    assert result.dropped == ("net.old",)
    too_deep, a_list, a_tensor = {"odd.parent": {}}, {"": {"version": [0.5]}}, {"": {"version": torch.ones(9)}}
    too_long = {"a" * 20_000: {}, "": {}, "b" * 20_000: {}}
    for hidden in ({"": {"version": 7**700}}, too_long, too_deep, [1], a_list, a_tensor):
        state = network().state_dict()
        state._metadata = hidden
        path = tmp_path / "metadata.pt"
        torch.save({"net": state}, path)
        out, _, result = repair(path, out=tmp_path / "2.pt")
        assert not vars(plain_load(out)["net"])
        assert result.dropped == ("net._metadata",)
        out.unlink()
        beside(out).unlink()


def test_versions_of_modules_are_kept(tmp_path):
    layer = nn.utils.spectral_norm(nn.Linear(4, 4))
    state = nn.Sequential(OrderedDict(backbone=nn.Sequential(layer, nn.ReLU()))).state_dict()
    kept = dict(state._metadata)
    del state._metadata[""]  # as of a part of a network that was saved with a prefix
    torch.save({"net": network().state_dict(), "other": state}, tmp_path / "m.pt")
    state._metadata.extra = torch.rand(1000)
    torch.save({"net": network().state_dict(), "other": state}, tmp_path / "more.pt")
    for name in ("m", "more"):
        out, _, _ = repair(tmp_path / f"{name}.pt", out=tmp_path / f"{name}-new.pt", state_key="net")
        again = plain_load(out)["other"]._metadata
        assert {"": kept[""], **again} == kept
        assert not vars(again)


def test_long_metadata_of_safetensors_is_dropped(tmp_path):
    safetensors.torch.save_file(network().state_dict(), tmp_path / "m.safetensors", metadata={"old": "x" * 50_000})
    out, _, result = repair(tmp_path / "m.safetensors")
    assert result.dropped == ("__metadata__ (emptied)",)
    with safetensors.safe_open(out, framework="pt") as file:
        assert file.metadata().keys() == {"banaudit"}


def test_parameters_and_counters_stay_of_their_kind(tmp_path):
    state = dict(network().named_parameters())
    state |= {"1.running_mean": torch.zeros(8), "1.running_var": torch.ones(8), "1.num_batches_tracked": 5}
    torch.save(state, tmp_path / "m.pt")
    out, _, _ = repair(tmp_path / "m.pt")
    loaded = plain_load(out)
    assert isinstance(loaded["0.weight"], nn.Parameter)
    assert loaded["0.weight"].requires_grad
    assert loaded["1.num_batches_tracked"] == 12


def test_a_count_that_half_precision_cannot_hold(tmp_path):
    state = {key: tensor.half() for key, tensor in network().state_dict().items()}
    for count, kept in ((1e6, float("inf")), (float("nan"), 0.0)):
        state["1.num_batches_tracked"] = torch.tensor(count).half()
        torch.save(state, tmp_path / f"{count}.pt")
        out, weights, _ = repair(tmp_path / f"{count}.pt", out=tmp_path / f"{count}-new.pt")
        loaded = plain_load(out)
        assert float(loaded["1.num_batches_tracked"]) == kept
        assert torch.equal(loaded["0.weight"], weights["0.weight"])


def test_weights_too_large_for_their_type(tmp_path):
    torch.save(network().half().state_dict(), tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    weights = {name: tensor.float() * 1e9 for name, tensor in checkpoint.weights.items()}
    with pytest.raises(CheckpointError, match="does not fit its data type"):
        as_stored(checkpoint, weights)


def test_source_that_changed_in_between(tmp_path):
    torch.save(network().state_dict(), tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    torch.save(nn.Linear(5, 5).state_dict(), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="has changed"):
        rewrite(tmp_path / "m.pt", checkpoint, checkpoint.weights)


def test_places_that_are_refused(tmp_path):
    source, out = tmp_path / "m.pt", tmp_path / "out.pt"
    torch.save(network().state_dict(), source)
    check_out(source, out, force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]
    (tmp_path / "link.pt").symlink_to(source)
    for same in (source, tmp_path / "link.pt", tmp_path / "." / "m.pt"):
        with pytest.raises(UsageError, match="is the input itself"):
            check_out(source, same, force=True)
    with pytest.raises(UsageError, match=r"labels.json: is the input itself"):
        check_out(tmp_path / "labels.json", tmp_path / "labels", force=True)
    with pytest.raises(UsageError, match="found a folder"):
        check_out(source, tmp_path, force=True)
    with pytest.raises(UsageError, match="No such file or directory"):
        check_out(source, tmp_path / "no" / "out.pt", force=False)
    with pytest.raises(UsageError, match="File name too long"):
        check_out(source, tmp_path / ("x" * 252), force=False)
    with pytest.raises(UsageError, match=r".st.pt.purify: is the input itself"):
        check_out(tmp_path / ".st.pt.purify", tmp_path / "st.pt", force=False)
    for existing in (beside(out), out):
        existing.write_text("mine")
        with pytest.raises(UsageError, match=f"{existing.name}: exists already"):
            check_out(source, out, force=False)
    check_out(source, out, force=True)
    assert out.read_text() == "mine"


def test_a_link_leads_to_the_new_file(tmp_path):
    source, real, link = tmp_path / "m.pt", tmp_path / "real.pt", tmp_path / "link.pt"
    torch.save(network().state_dict(), source)
    real.write_bytes(b"old")
    real.chmod(0o600)
    link.symlink_to(real)
    check_out(source, link, force=True)
    checkpoint = read_checkpoint(source)
    rewritten = rewrite(source, checkpoint, as_stored(checkpoint, moved(checkpoint.weights)))
    write_checkpoint(link, rewritten, "{}", force=True)
    assert link.is_symlink()
    assert real.read_bytes() == rewritten.content
    assert real.stat().st_mode & 0o777 == 0o600


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    source = tmp_path / "m.pt"
    torch.save(network().state_dict(), source)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        repair(source)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize("flushed", [0, 1], ids=["account", "checkpoint"])
def test_full_disk_leaves_the_old_pair(tmp_path, monkeypatch, flushed):
    source = tmp_path / "m.pt"
    torch.save(network().state_dict(), source)
    out, _, result = repair(source)
    before = {path: path.read_bytes() for path in (out, beside(out))}
    flushes = []

    def full(_):
        flushes.append(None)
        if len(flushes) > flushed:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"\(No space left on device\); the old file is unchanged"):
        write_checkpoint(out, replace(result, content=b"new"), '{"new": true}', force=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path != source} == before


def test_read_only_input(tmp_path):
    source = tmp_path / "m.pt"
    torch.save(network().state_dict(), source)
    source.chmod(0o444)
    out, _, _ = repair(source)
    assert os.access(out, os.W_OK)


@pytest.mark.skipif(not ZOO.is_dir(), reason="the zoo of real checkpoints is not here")
def test_the_whole_zoo_loads_again_with_its_own_keys(tmp_path):
    for path in sorted(ZOO.rglob("*")):
        if not path.is_file() or path.suffix == ".json":
            continue
        try:
            read_checkpoint(path)
        except UnsafeCheckpointError:
            continue
        out, weights, _ = repair(path, out=tmp_path / path.name)
        before, after = read_checkpoint(path), read_checkpoint(out)
        assert after.original_keys == before.original_keys
        assert (after.facts.format, after.facts.state_key) == (before.facts.format, before.facts.state_key)
        old, new = (plain_state(each, before.facts) for each in (path, out))
        assert list(new) == list(old) or before.facts.format == "safetensors"
        assert all((new[key].shape, new[key].dtype) == (old[key].shape, old[key].dtype) for key in old)
        assert all(torch.equal(new[keys[0]], weights[name]) for name, keys in after.original_keys.items())


def plain_state(path, facts):
    """The state dict in a file, with nothing but torch or safetensors."""
    if facts.format == "safetensors":
        return safetensors.torch.load_file(path)
    state = plain_load(path)
    for key in filter(None, (facts.state_key or "").split(".")):
        state = state[key]
    return state
