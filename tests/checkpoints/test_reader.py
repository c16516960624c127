"""Containers, wrappers and everything that must be refused."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import pickle
import random
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from banaudit.checkpoints import inspect_checkpoint, read_checkpoint
from banaudit.checkpoints.pickles import follow_pickle
from banaudit.checkpoints.reader import read_contents
from banaudit.errors import CheckpointError, UnknownFormatError, UnsafeCheckpointError, UsageError

ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        collections.OrderedDict(
            conv1=nn.Conv2d(3, 4, 3), bn1=nn.BatchNorm2d(4), flat=nn.Flatten(), linear=nn.Linear(4 * 36, 10)
        )
    )


def state_dict() -> dict[str, torch.Tensor]:
    return network().state_dict()


def save(content: object, path: Path, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def with_pickle(path: Path, data_pkl: bytes, storages: dict[str, bytes] | None = None) -> Path:
    members = {"a/data.pkl": data_pkl, "a/byteorder": b"little", "a/version": b"3\n"}
    return write_zip(path, members | {f"a/data/{key}": content for key, content in (storages or {}).items()})


def same(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return list(weights) == list(expected) and all(torch.equal(weights[key], expected[key]) for key in expected)


def refusal(path: Path, kind: type[CheckpointError] = CheckpointError) -> str:
    """The one line with which both functions refuse the file."""
    with pytest.raises(kind) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    inspection = inspect_checkpoint(path)
    assert not inspection.loadable
    assert inspection.reason == message
    if isinstance(caught.value, UnsafeCheckpointError):
        assert inspection.unsafe_globals == caught.value.offenders
    inspection.model_dump_json()
    return message


# -- what is read --------------------------------------------------------------------------------------------------

WRAPPERS = ["", "state_dict", "model", "net", "netC", "model_state_dict", "net_state_dict", "model_ema", "my.odd name"]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_container_and_wrapper(tmp_path, wrapper, legacy):
    expected = state_dict()
    optimizer = torch.optim.Adam(network().parameters())
    content = {"epoch": 3, wrapper: expected, "optimizer": optimizer.state_dict()} if wrapper else expected
    path = save(content, tmp_path / "model.pth.tar", legacy=legacy)
    checkpoint = read_checkpoint(path)
    assert same(checkpoint.weights, expected)
    assert checkpoint.facts.format == ("torch legacy" if legacy else "torch zip")
    assert checkpoint.facts.state_key == (wrapper or None)
    assert checkpoint.facts.ignored == (("epoch", "optimizer") if wrapper else ())
    assert checkpoint.facts.bytes == path.stat().st_size
    assert checkpoint.facts.tensors == len(expected)
    assert checkpoint.facts.parameters == sum(weight.numel() for weight in network().parameters())
    assert checkpoint.original_keys == {key: (key,) for key in expected}


def test_safetensors_with_any_name(tmp_path):
    expected = {key: value.clone() for key, value in state_dict().items()}
    path = tmp_path / "weights.tar"
    safetensors.torch.save_file(expected, path, metadata={"arch": "resnet18"})
    checkpoint = read_checkpoint(path)
    assert checkpoint.weights.keys() == expected.keys()
    assert all(torch.equal(checkpoint.weights[key], expected[key]) for key in expected)
    assert checkpoint.facts.format == "safetensors"
    assert checkpoint.hints == {"arch": "resnet18"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_data_types_are_kept(tmp_path, dtype):
    weights = {"linear.weight": torch.ones(3, 2).to(dtype), "count": torch.tensor(3)}
    read = read_checkpoint(save(weights, tmp_path / "m.pt")).weights
    assert read["linear.weight"].dtype == dtype
    assert read["count"].dtype == torch.int64


def test_deeply_nested_and_in_a_list(tmp_path):
    path = save({"runs": [{"best": {"weights": state_dict()}}]}, tmp_path / "m.pt")
    assert read_checkpoint(path).facts.state_key == "runs.0.best.weights"


def test_same_weights_under_two_names_are_one_candidate(tmp_path):
    weights = state_dict()
    assert (
        read_checkpoint(save({"model": weights, "state_dict": weights}, tmp_path / "m.pt")).facts.state_key == "model"
    )


def test_parameters_become_plain_tensors(tmp_path):
    path = save(dict(network().named_parameters()), tmp_path / "m.pt")
    assert all(
        type(weight) is torch.Tensor and not weight.requires_grad for weight in read_checkpoint(path).weights.values()
    )


def test_compressed_zip_is_read(tmp_path):
    stored = save(state_dict(), tmp_path / "stored.pt")
    with zipfile.ZipFile(stored) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    packed = write_zip(tmp_path / "packed.pt", members, zipfile.ZIP_DEFLATED)
    assert same(read_checkpoint(packed).weights, state_dict())


def test_numpy_numbers_arrays_and_namespace_beside_the_weights(tmp_path):
    content = {
        "net": state_dict(),
        "best_acc": np.float64(0.9),
        "indices": np.arange(5),
        "names": np.array(["a", "bc"]),
        "mask": np.zeros((2, 3), dtype=np.float32, order="F"),
        "args": argparse.Namespace(model="resnet18", num_classes=10, lr=0.1),
        "milestones": collections.Counter({30: 1}),
        "device": torch.device("cuda:0"),
        "shape": torch.Size([3, 2]),
        "labels": {1, 2},
    }
    checkpoint = read_checkpoint(save(content, tmp_path / "m.pt"))
    assert same(checkpoint.weights, state_dict())
    assert checkpoint.hints == {"model": "resnet18", "num_classes": 10}


def test_old_numpy_spelling(tmp_path):
    path = save({"net": state_dict(), "best": np.float64(1), "list": np.arange(3)}, tmp_path / "new.pt")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    changed = {
        name: content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray") for name, content in members.items()
    }
    assert changed != members
    assert same(read_checkpoint(write_zip(tmp_path / "old.pt", changed)).weights, state_dict())


def test_backdoorbench_attack_result(tmp_path):
    content = {
        "model_name": "preactresnet18",
        "num_classes": 10,
        "model": {f"1.{key}": value for key, value in state_dict().items()},
        "data_path": "../data/cifar10",
        "img_size": (32, 32, 3),
        "clean_data": "cifar10",
        "bd_train": {"bd_data_container": {"data_dict": {}}, "poison_indicator": np.ones(50), "labels": [1, 2]},
        "bd_test": {"original_index_array": np.arange(20)},
    }
    checkpoint = read_checkpoint(save(content, tmp_path / "attack_result.pt"))
    assert same(checkpoint.weights, state_dict())
    assert checkpoint.facts.stripped_prefixes == ("1.",)
    assert checkpoint.hints["model_name"] == "preactresnet18"
    assert checkpoint.hints["num_classes"] == 10
    assert checkpoint.hints["img_size"] == 32


def test_inspect_lists_the_content(tmp_path):
    content = {"state_dict": {f"module.{key}": value for key, value in state_dict().items()}, "epoch": 1}
    inspection = inspect_checkpoint(save(content, tmp_path / "m.pt"))
    assert inspection.loadable
    assert inspection.format == "torch zip"
    assert inspection.state_keys == ("state_dict",)
    assert inspection.stripped_prefixes == ("module.",)
    assert inspection.keys[0] == ("conv1.weight", (4, 3, 3, 3), "float32")
    assert inspection.other_entries == ("epoch",)


def test_inspect_of_several_sets_of_weights(tmp_path):
    content = {"model": state_dict(), "model_ema": {key: value + 1 for key, value in state_dict().items()}}
    path = save(content, tmp_path / "m.pt")
    inspection = inspect_checkpoint(path)
    assert (inspection.loadable, inspection.keys, inspection.state_keys) == (True, (), ("model", "model_ema"))
    assert "--state-key model" in inspection.reason
    chosen = inspect_checkpoint(path, state_key="model_ema")
    assert (chosen.loadable, len(chosen.keys), chosen.state_keys) == (True, len(state_dict()), ("model", "model_ema"))
    missing = inspect_checkpoint(path, state_key="none")
    assert not missing.loadable
    assert "--state-key none is not in the file" in missing.reason


# -- code ----------------------------------------------------------------------------------------------------------


class Shell:
    """Pickles to a call of os.system."""

    def __init__(self, marker: Path) -> None:
        self.command = f"touch {marker}"

    def __reduce__(self):
        return os.system, (self.command,)


def hostile_files(folder: Path, marker: Path) -> list[Path]:
    shell = Shell(marker)
    content = {"state_dict": state_dict(), "extra": shell}
    files = [save(content, folder / "zip.pt"), save(content, folder / "legacy.pt", legacy=True)]
    for protocol in (0, 1, 2, 3, 4, 5):
        data = pickle.dumps({"a": shell, "b": [shell, shell]}, protocol)
        (folder / f"plain{protocol}.pkl").write_bytes(data)
        files += [folder / f"plain{protocol}.pkl", with_pickle(folder / f"zip{protocol}.pt", data)]
    command = f"touch {marker}".encode()
    by_hand = {
        # module and name by way of the memo, as an obfuscator writes them
        "memo": b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x940h\x00h\x01\x93\x8c"
        + bytes([len(command)])
        + command
        + b"\x85R.",
        "inst": b"(S'" + command + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'" + command + b"'\no.",
        "getattr": b"\x80\x02c__builtin__\ngetattr\ncposix\nerror\nX\x06\x00\x00\x00system\x86R.",
        "pops_mark": b"(0cos\nsystem\n(S'" + command + b"'\ntR.",
        "odd_escape": b"\x80\x02cos\\=\nsystem\n(tRcos\nsystem\n(U" + bytes([len(command)]) + command + b"tR.",
        "never_ends": b"\x80\x02cos\nsystem\n(U" + bytes([len(command)]) + command + b"tR\xff\xff",
        "after_magic": pickle.dumps(0x1950A86A20F9469CFC6C, 2)
        + b"cos\nsystem\n(U"
        + bytes([len(command)])
        + command
        + b"tR.",
    }
    for name, data in by_hand.items():
        (folder / f"{name}.pkl").write_bytes(data)
        files += [folder / f"{name}.pkl", with_pickle(folder / f"{name}.pt", data)]
    return files


def test_nothing_is_ever_called(tmp_path):
    marker = tmp_path / "it_ran"
    for path in hostile_files(tmp_path, marker):
        message = refusal(path, CheckpointError)
        assert not marker.exists(), path.name
        if path.name != "after_magic.pt":  # there the call comes after the end
            assert "would call" in message, path.name
            assert "torch.save(model.state_dict()" in message
    torch.load(tmp_path / "zip.pt", weights_only=False)
    assert marker.exists(), "the test's files are harmless"


def test_offenders_are_named(tmp_path):
    with pytest.raises(UnsafeCheckpointError) as caught:
        read_checkpoint(save({"state_dict": state_dict(), "extra": Shell(tmp_path / "marker")}, tmp_path / "m.pt"))
    assert caught.value.offenders == ("posix.system",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_whole_module_names_its_classes(tmp_path, legacy):
    path = save(network(), tmp_path / "m.pt", legacy=legacy)
    message = refusal(path, UnsafeCheckpointError)
    assert "whole pickled module" in message
    assert "torch.nn.modules.container.Sequential" in message


def test_whole_module_that_also_calls_something(tmp_path):
    module = network()
    module.extra = Shell(tmp_path / "marker")
    message = refusal(save(module, tmp_path / "m.pt"), UnsafeCheckpointError)
    assert "whole pickled module" in message
    assert "and call posix.system" in message


def test_objects_beside_the_weights(tmp_path):
    message = refusal(save({"net": state_dict(), "where": Path("x")}, tmp_path / "m.pt"), UnsafeCheckpointError)
    assert "would call pathlib" in message
    message = refusal(
        save({"net": state_dict(), "loss": nn.CrossEntropyLoss()}, tmp_path / "n.pt"), UnsafeCheckpointError
    )
    assert "besides weights" in message


def test_programs_are_refused(tmp_path):
    members = {
        "m/data.pkl": b"\x80\x02}.",
        "m/constants.pkl": b"\x80\x02).",
        "m/code/__torch__.py": b"",
        "m/version": b"3",
    }
    assert "TorchScript" in refusal(write_zip(tmp_path / "script.pt", members), UnsafeCheckpointError)
    members = {"m/archive_format": b"pt2", "m/models/model.json": b"{}", "m/version": b"1"}
    assert "torch.export" in refusal(write_zip(tmp_path / "m.pt2", members), UnsafeCheckpointError)
    members = {"m/.data/extern_modules": b"", "m/.data/version": b"6"}
    assert "torch.package" in refusal(write_zip(tmp_path / "package.pt", members), UnsafeCheckpointError)


def test_names_from_the_file_cannot_write_on_the_terminal(tmp_path):
    data = b"\x80\x04\x8c\x0a\x1b[2Jx\nyy.z\x8c\x01w\x93)R."
    message = refusal(with_pickle(tmp_path / "m.pt", data), UnsafeCheckpointError)
    assert "\x1b" not in message
    message = refusal(save({"conv\x1b[31m.weight": torch.zeros(2, 2)}, tmp_path / "n.pt"))
    assert "\x1b" not in message


def test_needs_a_safe_torch(tmp_path, monkeypatch):
    path = save(state_dict(), tmp_path / "m.pt")
    with monkeypatch.context() as patched:
        patched.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        with pytest.raises(UsageError, match="unset it"):
            read_checkpoint(path)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "__version__", "2.9.1+cpu")
        with pytest.raises(UsageError, match=r"install torch 2\.10"):
            read_checkpoint(path)
    assert read_checkpoint(path).weights


# -- memory --------------------------------------------------------------------------------------------------------


def tensor_pickle(*, elements: int = 4, size: int = 4, stride: int = 1, tail: bytes = b"") -> bytes:
    """Pickle of {'l.weight': tensor [size, 1]} over a storage "0" of that many floats."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + value.to_bytes(8, "little")

    def text(value: bytes) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value

    storage = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + number(elements) + b"tQ"
    shape = number(size) + b"K\x01\x86" + number(stride) + b"K\x01\x86"
    rebuilt = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + shape + b"\x89ccollections\nOrderedDict\n)RtR"
    )
    return b"\x80\x02}" + text(b"l.weight") + rebuilt + b"s" + tail + b"."


def test_handmade_tensor_is_right(tmp_path):
    path = with_pickle(tmp_path / "m.pt", tensor_pickle(), {"0": torch.arange(4.0).numpy().tobytes()})
    assert torch.equal(read_checkpoint(path).weights["l.weight"], torch.arange(4.0)[:, None])


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"elements": 10**11}, "should have 400000000000 bytes, found 16"),
        ({"elements": 10**11, "size": 10**11}, "would take 400000000000 bytes"),
        ({"size": 10**11}, "larger than the storage"),
        ({"size": 5}, "larger than the storage"),
        ({"size": 10**11, "stride": 0}, "would take 400000000000 bytes"),
    ],
)
def test_claims_beyond_the_file(tmp_path, claims, expected):
    assert expected in refusal(with_pickle(tmp_path / "m.pt", tensor_pickle(**claims), {"0": bytes(16)}))


@pytest.mark.parametrize(
    "call",
    [
        b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R",
        b"ctorch\nTensor\n\x8a\x05\x00\x00\x00\x00\x10\x85R",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n\x8a\x05\x00\x00\x00\x00\x10\x85U\x01btR",
        b"cnumpy\nndarray\n\x8a\x05\x00\x00\x00\x00\x10\x85R",
        b"c_codecs\nencode\nU\x01xU\x05zlib_\x86R",
        b"ccollections\nOrderedDict\n)R\x8a\x01\x02b" + b"0",
        b"cnumpy\ndtype\nU\x02V8\x85R",
    ],
)
def test_permitted_names_used_in_other_ways(tmp_path, call):
    refusal(with_pickle(tmp_path / "m.pt", tensor_pickle(tail=call + b"0"), {"0": bytes(16)}))


def dtype_scalar(spelled, order, size, alignment, flags, content):
    """An entry of the mapping in a pickle: a NumPy scalar whose dtype has this state."""

    def text(value):
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    def number(value):
        return b"J" + value.to_bytes(4, "little", signed=True)

    state = b"(" + number(3) + text(order) + b"NNN" + number(size) + number(alignment) + number(flags) + b"t"
    dtype = b"cnumpy\ndtype\n" + text(spelled) + b"\x85R" + state + b"b"
    raw = b"c_codecs\nencode\n" + text(content) + text("latin1") + b"\x86R"
    return text("number") + b"cnumpy._core.multiarray\nscalar\n" + dtype + raw + b"\x86Rs"


@pytest.mark.parametrize(
    ("spelled", "order", "size", "alignment", "flags"),
    [
        ("U4", "<", 16, 4, 32),  # NumPy calls a function that is not there
        ("S4", "|", -1, 1, 0),  # NumPy reads before the content
        ("S4", "|", 16, 0, 0),  # a division by zero
        ("f8", "<", -1, -1, 1),  # numbers that are taken for references
        ("f8", "<", 16, -1, 0),
        ("f8", "!", -1, -1, 0),
    ],
)
def test_states_of_numpy_types_that_numpy_does_not_write(tmp_path, spelled, order, size, alignment, flags):
    entry = dtype_scalar(spelled, order, size, alignment, flags, "A" * 16)
    refused = refusal(with_pickle(tmp_path / "m.pt", tensor_pickle(tail=entry), {"0": bytes(16)}))
    assert "sets the state of an object" in refused


@pytest.mark.parametrize(
    ("spelled", "order", "size", "alignment", "flags", "content"),
    [
        ("f8", "<", -1, -1, 0, "A" * 8),
        ("f8", ">", -1, -1, 0, "A" * 8),
        ("S4", "|", 4, 1, 0, "A" * 4),
        ("U2", "<", 8, 4, 8, "A\0\0\0" * 2),
    ],
)
def test_states_of_numpy_types_as_numpy_writes_them(tmp_path, spelled, order, size, alignment, flags, content):
    entry = dtype_scalar(spelled, order, size, alignment, flags, content)
    path = with_pickle(tmp_path / "m.pt", tensor_pickle(tail=entry), {"0": bytes(16)})
    assert read_contents(path.read_bytes(), "m.pt").tree["number"].dtype.itemsize == len(content)


def test_legacy_claims(tmp_path):
    path = save({"l.weight": torch.zeros(70, 5)}, tmp_path / "m.pt", legacy=True)
    data = path.read_bytes()
    assert data.count(b"M^\x01") == 1  # 350 elements
    path.write_bytes(data.replace(b"M^\x01", b"J\x00\x00\x00\x70"))
    assert "bytes of weights are missing" in refusal(path)
    # A storage missing from the list of keys would be left uninitialised.
    key = max(data.split(b"X")[-1:], key=len)
    start = data.rindex(b"\x80\x02]")
    path.write_bytes(data[:start] + b"\x80\x02]." + key)
    assert "list of storages" in refusal(path)


def test_one_tensor_under_very_many_names(tmp_path):
    weight = torch.zeros(1024, 1024)
    path = save({f"l{index}.weight": weight for index in range(100)}, tmp_path / "m.pt")
    assert "of memory" in refusal(path)


def test_zip_bombs(tmp_path):
    zeros = bytes(30 * 2**20)
    path = write_zip(tmp_path / "ratio.pt", {"a/data.pkl": zeros}, zipfile.ZIP_DEFLATED)
    assert "zip bomb" in refusal(path, UnknownFormatError)
    path = write_zip(
        tmp_path / "total.pt", {"a/data.pkl": b"\x80\x02}."} | {f"a/{n}": zeros for n in range(3)}, zipfile.ZIP_DEFLATED
    )
    assert "zip bomb" in refusal(path, UnknownFormatError)
    path = write_zip(tmp_path / "twice.pt", {"a/data.pkl": b"\x80\x02}.", "a/data.pkx": b"\x80\x02]."})
    path.write_bytes(path.read_bytes().replace(b"data.pkx", b"data.pkl"))
    assert "same name" in refusal(tmp_path / "twice.pt", UnknownFormatError)


def test_zip_entries_that_overlap(tmp_path):
    path = with_pickle(tmp_path / "m.pt", tensor_pickle(), {"0": bytes(16), "1": bytes(16)})
    data = bytearray(path.read_bytes())
    entries = [index for index in range(len(data)) if data[index : index + 4] == b"PK\x01\x02"]
    data[entries[-1] + 42 : entries[-1] + 46] = data[entries[-2] + 42 : entries[-2] + 46]
    path.write_bytes(bytes(data))
    assert "overlap" in refusal(path, UnknownFormatError)


def test_safetensors_header_bombs(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    assert "header" in refusal(path, UnknownFormatError)
    entry = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(entry % index for index in range(100_001)) + "}").encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "tensors" in refusal(path, UnknownFormatError)
    header = b'{"a":' + b"[" * 5000 + b"}"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refusal(path, UnknownFormatError)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    refusal(path, UnknownFormatError)


# -- damage and other files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_anywhere(tmp_path, kind):
    whole = tmp_path / "whole"
    if kind == "safetensors":
        safetensors.torch.save_file({key: value.clone() for key, value in state_dict().items()}, whole)
    else:
        save(state_dict(), whole, legacy=kind == "legacy")
    data = whole.read_bytes()
    path = tmp_path / "cut"
    for length in {1, 2, 7, 9, 13, 40, 300, 900, len(data) // 2, len(data) - 100, len(data) - 4, len(data) - 1}:
        path.write_bytes(data[:length])
        refusal(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_random_damage_never_escapes_as_another_error(tmp_path, legacy):
    path = save(
        {"net": state_dict(), "best": np.float64(1), "args": argparse.Namespace(a=1)}, tmp_path / "m", legacy=legacy
    )
    data = path.read_bytes()
    if not legacy:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    rng = random.Random(0)
    for _ in range(150):
        if legacy:
            damaged = bytearray(data)
            damaged[rng.randrange(2000)] = rng.randrange(256)
            path.write_bytes(bytes(damaged))
        else:
            pickled = bytearray(members["m/data.pkl"])
            pickled[rng.randrange(len(pickled))] = rng.randrange(256)
            write_zip(path, members | {"m/data.pkl": bytes(pickled)})
        with contextlib.suppress(CheckpointError):
            read_checkpoint(path)
        assert "\n" not in inspect_checkpoint(path).reason


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an empty file"),
        (b"import torch\nprint(torch)\n", "neither"),
        (bytes(1000), "zero bytes"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(300), "JPEG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\x08\x07\x12\x07pytorch" + bytes(100), "ONNX"),
        (pickle.dumps({"a": [1, 2]}), "Python pickle"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2), "damaged or cut short"),
        (random.Random(1).randbytes(5000), "neither"),
    ],
)
def test_no_checkpoint(tmp_path, content, expected):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert expected in refusal(path, UnknownFormatError)


def test_other_archives(tmp_path):
    assert "without a torch checkpoint" in refusal(write_zip(tmp_path / "m.pt", {"a.txt": b"x"}), UnknownFormatError)
    np.savez(tmp_path / "m.npz", a=np.zeros(3))
    assert "NumPy archive" in refusal(tmp_path / "m.npz", UnknownFormatError)
    for name, expected in (("storages", "0.1.10"), ("readme", "tar archive")):
        with tarfile.open(tmp_path / "m.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        assert expected in refusal(tmp_path / "m.tar", UnknownFormatError)


def test_later_pickle_protocol(tmp_path):
    torch.save(state_dict(), tmp_path / "m.pt", pickle_protocol=4)
    assert "default pickle protocol" in refusal(tmp_path / "m.pt")


def test_other_tensors(tmp_path):
    assert "sparse" in refusal(save({"l.weight": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt"))
    assert "meta" in refusal(save({"l.weight": torch.zeros(3, 3, device="meta")}, tmp_path / "meta.pt"))
    assert "single tensor" in refusal(save(torch.zeros(3, 3), tmp_path / "tensor.pt"))
    assert "empty mapping" in refusal(save({}, tmp_path / "empty.pt"))


def test_paths_that_cannot_be_read(tmp_path, monkeypatch):
    for function in (read_checkpoint, inspect_checkpoint):
        with pytest.raises(CheckpointError, match="found a directory"):
            function(tmp_path)
        with pytest.raises(CheckpointError, match="no such file"):
            function(tmp_path / "missing")
        os.mkfifo(tmp_path / f"{function.__name__}.pipe")
        with pytest.raises(CheckpointError, match="regular file"):
            function(tmp_path / f"{function.__name__}.pipe")

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = save(state_dict(), tmp_path / "m.pt")
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(CheckpointError, match="Permission denied"):
        read_checkpoint(path)


# -- real files ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not ZOO.is_dir(), reason="the zoo of real checkpoints is not here")
def test_the_whole_zoo():
    paths = [path for path in sorted(ZOO.rglob("*")) if path.is_file() and path.suffix != ".json"]
    assert paths
    for path in paths:
        if "WHOLE_MODULE" in path.name:
            message = refusal(path, UnsafeCheckpointError)
            assert "model.DefaultModel" in message
            continue
        checkpoint = read_checkpoint(path)
        assert not any(key.startswith(("module.", "_orig_mod.")) for key in checkpoint.weights)
        assert inspect_checkpoint(path).parameters == checkpoint.facts.parameters > 100_000


def directory_and_end(data: bytes) -> tuple[int, int, int]:
    """Where the directory of a zip file begins, its size, and where the end record is."""
    end = data.rfind(b"PK\x05\x06")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.start_dir, int.from_bytes(data[end + 12 : end + 16], "little"), end


def test_two_archives_in_one_file_are_refused(tmp_path):
    """Python's reader takes the directory that is right before the end, torch's the one that the end record names."""
    files = []
    for value in (1.0, 2.0):
        stream = io.BytesIO()
        torch.save({name: torch.full_like(tensor, value) for name, tensor in state_dict().items()}, stream)
        files.append(stream.getvalue())
    bodies, directories = [], []
    for data in files:
        start, size, _ = directory_and_end(data)
        bodies.append(data[:start])
        directories.append(bytearray(data[start : start + size]))
    at = 0
    while at < len(directories[0]):  # the shown entries lie behind the hidden ones; Python adds a directory's length
        place = int.from_bytes(directories[0][at + 42 : at + 46], "little")
        moved = place + len(bodies[1]) - len(directories[0])
        directories[0][at + 42 : at + 46] = (moved % 2**32).to_bytes(4, "little")
        at += 46 + sum(int.from_bytes(directories[0][at + part : at + part + 2], "little") for part in (28, 30, 32))
    end = bytearray(files[0][-22:])
    end[16:20] = (len(bodies[0]) + len(bodies[1])).to_bytes(4, "little")
    path = tmp_path / "two.pt"
    path.write_bytes(bodies[1] + bodies[0] + bytes(directories[1]) + bytes(directories[0]) + bytes(end))
    with pytest.raises(UnknownFormatError, match="another reader may find other entries"):
        read_checkpoint(path)
    assert not inspect_checkpoint(path).loadable


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"more",
        lambda data: data[:-2] + (4).to_bytes(2, "little") + b"note",
        lambda data: data[:-6] + (int.from_bytes(data[-6:-2], "little") + 1).to_bytes(4, "little") + data[-2:],
    ],
    ids=["trailing", "comment", "offset"],
)
def test_a_zip_that_does_not_end_as_torch_ends_it_is_refused(tmp_path, change):
    path = save(state_dict(), tmp_path / "m.pt")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UnknownFormatError):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "names", [("a/data.pkl", "b/version"), ("a/data.pkl", "a/DATA.PKL"), ("x/other", "a/data.pkl")]
)
def test_entries_that_readers_tell_apart_differently_are_refused(tmp_path, names):
    path = write_zip(tmp_path / "m.pt", {name: pickle.dumps({}, protocol=2) for name in names})
    with pytest.raises(UnknownFormatError, match="another reader"):
        read_checkpoint(path)


def test_safetensors_that_are_a_pickle_too_are_none(tmp_path):
    payload = b"K\x01."  # to a reader of pickles the header is a text, which begins with a V; it goes on behind it
    header = {"v": {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}}
    length = 0x100 + ord("V")
    text = json.dumps(header).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + text + b" " * (length - len(text) - 1) + b"\n" + payload)
    with pytest.raises(UnknownFormatError, match="safetensors to one reader, a pickle to another"):
        read_checkpoint(path)


def test_a_key_that_takes_for_ever_to_hash_is_refused(tmp_path):
    nested = b"K\x01\x85" + b"".join(b"q%ch%c\x86" % (depth, depth) for depth in range(60))
    with pytest.raises(CheckpointError, match="nests tuples so often"):
        read_checkpoint(with_pickle(tmp_path / "m.pt", b"\x80\x02}" + nested + b"K\x01s."))


def test_keys_that_together_take_for_ever_to_hash_are_refused(tmp_path):
    nested = b"K\x01\x85" + b"".join(b"q%ch%c\x86" % (depth, depth) for depth in range(18))  # by itself not too much
    keyed = b"\x80\x02}(" + nested + b"q\x64K\x01" + b"}h\x64K\x01s" * 40 + b"u."
    with pytest.raises(CheckpointError, match="nests tuples so often"):
        read_checkpoint(with_pickle(tmp_path / "m.pt", keyed))


def test_a_long_name_that_many_globals_share_is_not_kept_for_each():
    module = "m" * 100_000
    spelled = b"\x80\x04(X" + len(module).to_bytes(4, "little") + module.encode() + b"q\x00"
    listing = follow_pickle(spelled + b"".join(b"h\x00\x8c\x03%03d\x93" % number for number in range(50)) + b"t.")
    assert list(listing.offenders) == ["(a name of 100,003 characters)"]


def test_a_long_tuple_that_many_tensors_claim_as_their_shape_is_not_counted_for_each():
    shape = b"(" + b"K\x01" * 200_000 + b"tq\x00"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(K\x00K\x00h\x00h\x00tR"
    started = time.process_time()
    listing = follow_pickle(b"\x80\x02(" + shape + call * 10 + b"t.")
    assert listing.problem is not None
    assert time.process_time() - started < 5


def test_a_tuple_too_deep_to_hash_is_refused(tmp_path):
    deep = b"\x80\x02}N" + b"\x85" * 900_000 + b"K\x01s."
    with pytest.raises(CheckpointError, match="nests tuples so often"):
        read_checkpoint(with_pickle(tmp_path / "m.pt", deep))


def test_a_header_whose_length_is_a_pickle_is_still_safetensors(tmp_path):
    weights = state_dict()
    header = len(safetensors.torch.save(weights, {"note": ""})) - sum(
        tensor.numel() * tensor.element_size() for tensor in weights.values()
    )
    path = tmp_path / "m.safetensors"
    for filled in range(11_912 - header, 11_912 + 16):  # bytes 88 2e: a pickle of True
        path.write_bytes(safetensors.torch.save(weights, {"note": "x" * filled}))
        if path.read_bytes()[:2] == b"\x88\x2e":
            break
    assert path.read_bytes()[:2] == b"\x88\x2e"
    assert same(dict(sorted(read_checkpoint(path).weights.items())), dict(sorted(weights.items())))
