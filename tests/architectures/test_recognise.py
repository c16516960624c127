"""Every known architecture: weights -> the same network, strictly loaded; and what is said of weights that fit none."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from banaudit.architectures import (
    FinalLinearSplit,
    OutputSplit,
    SplitNetwork,
    count_batch_norms,
    list_architectures,
    load_network,
    recognise,
)
from banaudit.architectures.densenet import DenseNet
from banaudit.architectures.family import Stage
from banaudit.architectures.mobilenetv2 import Inverted, MobileNetV2
from banaudit.architectures.preact_resnet import PreActResNet
from banaudit.architectures.recognise import _WithoutMemory
from banaudit.architectures.resnet import ResNet
from banaudit.architectures.resnet_thin import pad_shortcut
from banaudit.architectures.torchvision_models import _TENSORS, FeatureMapSplit
from banaudit.architectures.user_code import factory_from_file
from banaudit.architectures.vgg import VGG
from banaudit.architectures.wideresnet import WideResNet
from banaudit.errors import ArchitectureError, UnsupportedModelError, UsageError
from banaudit.shapes import Weights


def stages(blocks: tuple[int, ...], width: int, expansion: int = 1) -> tuple[Stage, ...]:
    return tuple(Stage(n, width * 2**i, width * 2**i * expansion) for i, n in enumerate(blocks))


def vgg_groups(*depths: int) -> tuple[tuple[int, ...], ...]:
    return tuple((4 + i,) * depth for i, depth in enumerate(depths))


INVERTED = tuple(
    Inverted(2 * out, out, stride)
    for out, blocks, stride in ((4, 1, 1), (5, 2, 1), (6, 3, 2), (7, 4, 2), (8, 3, 1), (9, 3, 2), (10, 1, 1))
    for stride in (stride,) + (1,) * (blocks - 1)
)

KNOWN: dict[str, tuple[str, Callable[[], SplitNetwork], int]] = {
    "resnet18": ("resnet18", lambda: ResNet(4, stages((2, 2, 2, 2), 4), 7), 7),
    "resnet18 grey": ("resnet18", lambda: ResNet(4, stages((2, 2, 2, 2), 4), 7, channels=1), 7),
    "resnet34": ("resnet34", lambda: ResNet(3, stages((3, 4, 6, 3), 3), 10), 10),
    "resnet50": ("resnet50", lambda: ResNet(4, stages((3, 4, 6, 3), 4, 4), 10, bottleneck=True), 10),
    "resnet10": ("resnet10", lambda: ResNet(4, stages((1, 1, 1, 1), 4), 5), 5),
    "resnet20 A": ("resnet20", lambda: ResNet(5, stages((3, 3, 3), 5), 10, shortcut=pad_shortcut), 10),
    "resnet32 B": ("resnet32", lambda: ResNet(4, stages((5, 5, 5), 4), 10), 10),
    "resnet110": ("resnet110", lambda: ResNet(2, stages((18, 18, 18), 2), 10, shortcut=pad_shortcut), 10),
    "preactresnet18": ("preactresnet18", lambda: PreActResNet(4, stages((2, 2, 2, 2), 4), 10), 10),
    "preactresnet18 bn": ("preactresnet18", lambda: PreActResNet(4, stages((2, 2, 2, 2), 4), 9, final_norm=True), 9),
    "preactresnet50": (
        "preactresnet50",
        lambda: PreActResNet(4, stages((3, 4, 6, 3), 4, 4), 10, bottleneck=True),
        10,
    ),
    "vgg11": ("vgg11", lambda: VGG(vgg_groups(1, 1, 2, 2, 2), (), None, 10), 10),
    "vgg13": ("vgg13", lambda: VGG(vgg_groups(2, 2, 2, 2, 2), (), None, 10), 10),
    "vgg16": ("vgg16", lambda: VGG(vgg_groups(2, 2, 3, 3, 3), ((1, 12), (4, 13)), 6, 10), 10),
    "vgg19": ("vgg19", lambda: VGG(vgg_groups(2, 2, 4, 4, 4), (), 0, 10, pooled=2), 10),
    "densenet121": (
        "densenet121",
        lambda: DenseNet(4, (6, 12, 24, 16), bottleneck=8, growth=2, transitions=(8, 16, 32), classes=10, channels=3),
        10,
    ),
    "wrn-16-1": ("wrn-16-1", lambda: WideResNet(16, stages((2, 2, 2), 16), 10), 10),
    "wrn-10-0.5": ("wrn-10-0.5", lambda: WideResNet(4, stages((1, 1, 1), 8), 10), 10),
    "wrn-16-2": ("wrn-16-2", lambda: WideResNet(16, stages((2, 2, 2), 32), 10, biased=True), 10),
    "mobilenetv2": ("mobilenetv2", lambda: MobileNetV2(4, INVERTED, 12, 10), 10),
}


def randomise(network: nn.Module) -> nn.Module:
    """Statistics and affine weights that are not those of a fresh network, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(1)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.1, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(part.weight, 0.8, 1.2, generator=generator)
    return network.eval()


def images(channels: int = 3, size: int = 32, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(2))


def kuangliu(weights: Weights) -> Weights:
    """The keys of a VGG as they are in most files."""
    return {key.replace("trunk.", "features."): tensor for key, tensor in weights.items()}


@pytest.mark.parametrize("case", KNOWN)
def test_known_architectures_come_back(case: str) -> None:
    name, build, classes = KNOWN[case]
    original = randomise(build())
    weights = kuangliu(original.state_dict())
    recognition = recognise(weights)
    assert (recognition.name, recognition.classes) == (name, classes)
    loaded = load_network(weights)
    assert not loaded.network.training
    assert loaded.facts.classes == classes
    assert loaded.facts.source == "recognised"
    assert loaded.facts.batch_norms == count_batch_norms(original)
    batch = images(loaded.facts.channels)
    with torch.no_grad():
        logits = loaded.network(batch)
        features = loaded.network.features(batch)
        assert torch.equal(logits, original(batch))
        assert torch.equal(loaded.network.head(features), logits)
    assert logits.shape == (2, classes)
    state = loaded.network.state_dict()
    assert set(loaded.keys) == set(weights)
    assert all(torch.equal(state[ours], weights[key]) for key, ours in loaded.keys.items())


@pytest.mark.parametrize(
    ("case", "patterns"),
    [
        ("resnet18", {"linear.": "fc.", ".shortcut.": ".downsample."}),
        ("resnet20 A", {"linear.": "fc."}),
        ("preactresnet18 bn", {"bn.": "bn1."}),
        ("wrn-16-1", {"linear.": "fc.", ".shortcut.": ".convShortcut."}),
        ("wrn-16-2", {"block1.layer": "layer1", "block2.layer": "layer2", "block3.layer": "layer3"}),
        ("densenet121", {"linear.": "fc."}),
    ],
)
def test_other_spellings_are_the_same_network(case: str, patterns: dict[str, str]) -> None:
    name, build, _ = KNOWN[case]
    original = randomise(build())
    weights = {}
    for key, tensor in original.state_dict().items():
        spelled = key
        for ours, theirs in patterns.items():
            if spelled.startswith(ours) or (ours.startswith(".") and ours in spelled):
                spelled = spelled.replace(ours, theirs)
        if case == "wrn-16-2":
            spelled = spelled.replace(".shortcut.", ".shortcut.0.")
        weights[spelled] = tensor
    loaded = load_network(weights)
    assert loaded.facts.name == name
    assert loaded.facts.renamed_keys == len(set(weights) - set(original.state_dict())) > 0
    with torch.no_grad():
        assert torch.equal(loaded.network(images()), original(images()))


@pytest.mark.parametrize(
    ("name", "split", "size"),
    [
        ("resnet18", FeatureMapSplit, 64),
        ("shufflenet_v2_x0_5", FeatureMapSplit, 64),
        ("mnasnet0_5", FeatureMapSplit, 64),
        ("mobilenet_v3_small", FinalLinearSplit, 64),
        ("squeezenet1_1", OutputSplit, 64),
        ("densenet121", FeatureMapSplit, 64),
        ("mobilenet_v2", FeatureMapSplit, 64),
        ("efficientnet_b0", FeatureMapSplit, 64),
        ("googlenet", FinalLinearSplit, 64),
    ],
)
def test_torchvision_models_come_back(name: str, split: type, size: int) -> None:
    settings = {"init_weights": False} if name == "googlenet" else {}
    original = randomise(models.get_model(name, weights=None, num_classes=6, **settings))
    loaded = load_network(original.state_dict(), classes=6)
    assert loaded.facts.name == f"torchvision:{name}"
    assert isinstance(loaded.network, split)
    batch = images(size=size)
    with torch.no_grad():
        logits = loaded.network(batch)
        assert torch.allclose(logits, original(batch), atol=1e-6)
    state = loaded.network.state_dict()
    assert all(torch.equal(state[ours], original.state_dict()[key]) for key, ours in loaded.keys.items())


@pytest.mark.parametrize("name", ["vgg11_bn", "vit_b_32", "swin_t", "convnext_tiny", "inception_v3", "maxvit_t"])
def test_large_torchvision_models_are_recognised_by_shape(name: str) -> None:
    settings: dict[str, object] = {"init_weights": False, "aux_logits": False} if name == "inception_v3" else {}
    if name == "vit_b_32":
        settings["image_size"] = 64
    with torch.device("meta"):
        weights = models.get_model(name, weights=None, num_classes=11, **settings).state_dict()
    recognition = recognise(weights)
    assert (recognition.name, recognition.classes) == (f"torchvision:{name}", 11)


def test_layers_that_are_made_to_be_compared_take_no_memory() -> None:
    with _WithoutMemory():
        layer = nn.BatchNorm2d(8)
    assert all(tensor.is_meta for tensor in (*layer.parameters(), layer.running_mean, layer.running_var))


def test_every_torchvision_classifier_is_listed() -> None:
    assert set(models.list_models(module=models)) <= set(_TENSORS)
    assert "torchvision:resnet18" in list_architectures()
    assert len(set(list_architectures())) == len(list_architectures())


def test_recognition_is_quick() -> None:
    with torch.device("meta"):
        weights = models.efficientnet_b7(weights=None).state_dict()
    started = time.process_time()
    recognise(weights)
    assert time.process_time() - started < 5


def resnet18(classes: int = 10) -> Weights:
    return dict(ResNet(4, stages((2, 2, 2, 2), 4), classes).state_dict())


def test_counters_may_be_missing_and_nothing_else() -> None:
    weights = {key: tensor for key, tensor in resnet18().items() if not key.endswith("num_batches_tracked")}
    assert load_network(weights).facts.name == "resnet18"
    for missing in ("bn1.running_var", "layer4.1.bn2.weight", "linear.bias", "layer1.0.conv1.weight"):
        with pytest.raises(ArchitectureError, match="nearest is resnet18") as caught:
            load_network({key: tensor for key, tensor in weights.items() if key != missing})
        assert caught.value.missing == (missing,)
        assert missing in str(caught.value)
        assert "--arch path/to/file.py:factory" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_unexpected_key_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"unexpected: normalize\.mean") as caught:
        load_network(resnet18() | {"normalize.mean": torch.zeros(3)})
    assert caught.value.unexpected == ("normalize.mean",)


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"linear\.weight \[10, 33\] where \[10, 32\] is expected"):
        load_network(resnet18() | {"linear.weight": torch.zeros(10, 33)})


def test_a_wrong_class_count_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="for 10 classes, but 43 were expected"):
        load_network(resnet18(), classes=43)


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"a": torch.zeros(3), "b": torch.zeros(2, 2)},
        {"conv1.weight": torch.zeros(0, 3, 3, 3)},
        {"classifier.6.weight": torch.tensor(1.0)},
        {f"features.{n}.weight": torch.zeros(1, 1, 3, 3) for n in range(40)} | {"classifier.weight": torch.ones(2, 1)},
        {"conv_proj.weight": torch.zeros(768, 3, 32, 32), "encoder.pos_embedding": torch.zeros(1, 1, 768)},
    ],
)
def test_weights_of_no_known_network_get_one_line(weights: Weights) -> None:
    with pytest.raises(ArchitectureError) as caught:
        load_network(weights)
    assert "\n" not in str(caught.value)


def test_unknown_keys_list_what_is_known() -> None:
    with pytest.raises(ArchitectureError, match=r"known: resnet18 to resnet152.*mobilenetv2.*--arch path/to/file.py"):
        recognise({"stem.weight": torch.zeros(3)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype) -> None:
    weights = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in resnet18().items()}
    network = load_network(weights).network
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32, torch.int64}
    assert torch.equal(network.get_parameter("linear.weight"), weights["linear.weight"].float())


def test_loading_shares_nothing_and_draws_nothing() -> None:
    weights = resnet18()
    before = torch.random.get_rng_state()
    network = load_network(weights).network
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.no_grad():
        network.get_parameter("linear.weight").zero_()
    assert weights["linear.weight"].abs().sum() > 0
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_named_architecture_must_fit() -> None:
    assert load_network(resnet18(), arch="resnet18").facts.source == "--arch"
    with pytest.raises(ArchitectureError, match="do not fit resnet34: they are those of resnet18"):
        load_network(resnet18(), arch="resnet34")
    with pytest.raises(ArchitectureError, match=r"do not fit resnet18 .* missing: bn1\.bias") as caught:
        load_network({key: tensor for key, tensor in resnet18().items() if key != "bn1.bias"}, arch="resnet18")
    assert caught.value.missing == ("bn1.bias",)
    with pytest.raises(UsageError, match="--arch resnet1e9: expected one of resnet18 to resnet152"):
        load_network(resnet18(), arch="resnet1e9")


FACTORIES = """
from dataclasses import dataclass
import torch
from torch import nn
@dataclass
class Settings:
    width: int = 4
class Tiny(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, Settings().width, 3)
        self.fc = nn.Linear(Settings().width, num_classes)
    def forward(self, images):
        features = self.conv(images).mean((2, 3))
        return features, self.fc(features)
class Hidden(Tiny):
    def state_dict(self, *args, **kwargs):
        return {key: tensor for key, tensor in super().state_dict().items() if key != "fc.bias"}
class Deaf(Hidden):
    def load_state_dict(self, *args, **kwargs):
        pass
class Sized(Tiny):
    def forward(self, images):
        return super().forward(images.view(len(images), 3, 50, 50))[1]
class Fixed(Tiny):
    def __init__(self):
        super().__init__(3)
class Asking(Tiny):
    def __init__(self, num_classes):
        super().__init__(num_classes)
class Sentence(Tiny):
    def forward(self, images):
        return "a cat"
def half():
    return Tiny().half()
def fails():
    raise ValueError("no such width\\nat all")
def number():
    return 7
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FACTORIES, encoding="utf-8")
    return path


def tiny(classes: int = 3) -> Weights:
    generator = torch.Generator().manual_seed(3)
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (classes, 4), "fc.bias": (classes,)}
    return {key: torch.rand(shape, generator=generator) for key, shape in shapes.items()}


def test_a_factory_of_the_users(source: Path) -> None:
    loaded = load_network(tiny(), arch=f"{source}:Tiny")
    assert isinstance(loaded.network, FinalLinearSplit)
    assert (loaded.facts.classes, loaded.facts.channels, loaded.facts.outputs) == (3, 3, "logits")
    assert "element 1 of 2" in loaded.facts.output_note
    assert loaded.deterministic
    assert torch.equal(loaded.network.state_dict()[loaded.keys["fc.bias"]], tiny()["fc.bias"])
    assert load_network(tiny(5), arch=f"{source}:Tiny", classes=5).facts.classes == 5
    assert load_network(tiny(5), arch=f"{source}:Tiny").facts.classes == 5
    assert load_network(tiny(4), arch=f"{source}:Asking").facts.classes == 4
    with pytest.raises(ArchitectureError, match="for 3 classes, but 6 were expected"):
        load_network(tiny(), arch=f"{source}:Fixed", classes=6)
    assert load_network(tiny(), arch=f"{source}:half").network.get_parameter("module.fc.bias").dtype == torch.float32
    assert load_network(tiny(), arch=f"{source}:Sized", size=50).facts.classes == 3


BESIDE = """
import torch
from torch import nn
from widths_beside_the_file import WIDTH

class Net(nn.Module):
    def __init__(self, lazy=False):
        super().__init__()
        self.conv = nn.LazyConv2d(WIDTH, 3) if lazy else nn.Conv2d(3, WIDTH, 3)
        self.fc = nn.Linear(WIDTH, 3)

    def forward(self, images):
        return self.fc(self.conv(images).mean(dim=(2, 3)))

def lazy():
    return Net(lazy=True)
"""


def test_a_factory_finds_the_modules_beside_its_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(BESIDE)
    (tmp_path / "widths_beside_the_file.py").write_text("WIDTH = 4")
    before = list(sys.path)
    assert load_network(tiny(), arch=f"{tmp_path}/net.py:Net").facts.classes == 3
    with pytest.raises(UsageError, match="lazy layers, whose shapes only a first batch decides"):
        load_network(tiny(), arch=f"{tmp_path}/net.py:lazy")
    assert sys.path == before


def test_modules_of_one_folder_are_not_taken_for_those_of_another(tmp_path: Path) -> None:
    for width in (4, 6):
        folder = tmp_path / str(width)
        folder.mkdir()
        (folder / "net.py").write_text(BESIDE)
        (folder / "widths_beside_the_file.py").write_text(f"WIDTH = {width}")
        factory = factory_from_file(f"{folder}/net.py:Net")
        assert factory.make(None).conv.out_channels == width
    assert "widths_beside_the_file" in sys.modules  # a network may import it again when it runs


def test_whole_numbers_in_the_place_of_others_are_refused() -> None:
    weights = resnet18()
    weights["bn1.running_mean"] = weights["bn1.running_mean"].to(torch.int64)
    with pytest.raises(ArchitectureError, match=r"bn1\.running_mean holds int64 numbers"):
        load_network(weights)


def test_an_index_in_a_file_that_was_halved_is_whole_again(tmp_path: Path) -> None:
    (tmp_path / "widths_beside_the_file.py").write_text("WIDTH = 4")
    code = BESIDE.replace(
        "        self.fc =", '        self.register_buffer("index", torch.arange(8))\n        self.fc ='
    )
    (tmp_path / "net.py").write_text(code)
    weights = tiny() | {"index": torch.arange(8)}
    halved = {key: tensor.half() for key, tensor in weights.items()}
    loaded = load_network(halved, arch=f"{tmp_path}/net.py:Net")
    assert torch.equal(loaded.network.state_dict()[loaded.keys["index"]], torch.arange(8))


def test_a_count_in_half_precision_that_overflowed_does_no_harm() -> None:
    weights = resnet18()
    weights["bn1.num_batches_tracked"] = torch.tensor(float("inf")).half()
    assert int(load_network(weights).network.state_dict()["bn1.num_batches_tracked"]) == 0


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("{}", "found no factory"),
        ("{}:", "found no factory"),
        ("{}:absent", "has no function or class absent"),
        ("{}:fails", "failed with ValueError: no such width at all"),
        ("{}:number", "expected number.. to make a torch.nn.Module, got int"),
        ("{}x.py:Tiny", "there is no file"),
    ],
)
def test_a_bad_factory_is_a_usage_error(source: Path, factory: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        load_network(tiny(), arch=factory.format(source))
    assert "\n" not in str(caught.value)


def test_a_file_that_does_not_run_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n", encoding="utf-8")
    with pytest.raises(UsageError, match="ModuleNotFoundError"):
        load_network(tiny(), arch=f"{tmp_path}/broken.py:factory")


def test_a_network_that_classifies_nothing_is_said(source: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"class scores \[4, K\] for 4 images, found a str"):
        load_network(tiny(), arch=f"{source}:Sentence")
    with pytest.raises(UnsupportedModelError, match=r"failed on all .*--size"):
        load_network(tiny(), arch=f"{source}:Sized")


def test_a_factory_must_take_every_weight(source: Path) -> None:
    with pytest.raises(ArchitectureError, match=r"missing: fc\.bias"):
        load_network({key: tensor for key, tensor in tiny().items() if key != "fc.bias"}, arch=f"{source}:Tiny")
    with pytest.raises(ArchitectureError, match=r"fc\.weight \[5, 4\] where \[3, 4\] is expected"):
        load_network(tiny(5), arch=f"{source}:Fixed")
    without = {key: tensor for key, tensor in tiny().items() if key != "fc.bias"}
    with pytest.raises(ArchitectureError, match=r"did not take the weights: .*fc\.bias"):
        load_network(without, arch=f"{source}:Hidden")
    with pytest.raises(ArchitectureError, match=r"conv\.weight, .* would keep their start"):
        load_network(without, arch=f"{source}:Deaf")


EXITS = {
    "the file": "import sys; sys.exit(0)",
    "the factory": "import sys\ndef factory():\n    sys.exit(0)",
    "train": "import sys\nclass factory({tiny}):\n    def train(self, mode=True):\n        sys.exit(0)",
    "forward": "import sys\nclass factory({tiny}):\n    def forward(self, images):\n        sys.exit(0)",
}


@pytest.mark.parametrize("place", EXITS)
def test_code_that_ends_the_process_is_a_usage_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Tiny(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))\n"
        + EXITS[place].format(tiny="Tiny")
    )
    weights = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).state_dict()
    with pytest.raises(UsageError, match=r"net\.py:factory: its code ended the process \(SystemExit: 0\)") as caught:
        load_network(weights, arch=f"{tmp_path}/net.py:factory")
    assert "\n" not in str(caught.value)
