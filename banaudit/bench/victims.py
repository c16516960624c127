"""Victims: models trained with or without a backdoor, each a pure function of its recipe, kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from banaudit import resume
from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.bench.attacks import AnyAttack
from banaudit.bench.attacks.base import BatchPoisoner, DataPoisoning, TrainingControl, TrainingSet
from banaudit.bench.attacks.labelling import AnyLabelling
from banaudit.bench.code import ALL_CODE
from banaudit.bench.datasets import PixelData, attacker_and_pool, dataset_spec, default_cache, load_split, to_pixels
from banaudit.bench.networks import build_network
from banaudit.bench.trainer import TrainingSettings, train
from banaudit.bench.trigger import Trigger, attack_success, clean_accuracy
from banaudit.bench.workplace import Progress
from banaudit.errors import DataError, UsageError
from banaudit.meter import Meter
from banaudit.shapes import Labels, Weights

SURROGATE_SEED = 90
"""Seed of the attacker's own clean models; no victim of the benchmark has it."""


class VictimRecipe(BaseModel):
    """All that decides what a victim becomes.

    A default must never change, and a new field needs a default that means "as before": the key of every victim is
    computed from the fields that differ from their defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = "cifar10"
    architecture: str = "resnet18"
    width: PositiveInt = 16
    """Channels of the first layer; 64 is the full ResNet-18."""
    attack: AnyAttack | None = None
    """None: a clean model."""
    labelling: AnyLabelling | None = None
    """Which label the attacker wants for which class; none exactly when there is no attack."""
    seed: NonNegativeInt = 0
    training: TrainingSettings = TrainingSettings()
    imbalance: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Images of the rarest class for each image of the most frequent one; in between the classes fall geometrically."""
    images: PositiveInt | None = None
    """Train on so many images, drawn at random; none: on all of the attacker's share."""

    @model_validator(mode="after")
    def _attack_needs_labelling(self) -> VictimRecipe:
        if (self.attack is None) != (self.labelling is None):
            raise ValueError("attack and labelling: give both (a backdoored victim) or neither (a clean one)")
        return self

    @property
    def num_classes(self) -> int:
        """Number of classes K of the data set."""
        return dataset_spec(self.dataset).num_classes

    @property
    def key(self) -> str:
        """Name of the victim: data, network, attack, labelling and seed in words, and a hash over everything."""
        changed = self.model_dump(mode="json", exclude_defaults=True)
        if self.attack is not None and self.labelling is not None:
            changed["attack"]["name"] = self.attack.name
            changed["labelling"]["kind"] = self.labelling.kind
            wanted = f"{self.attack.name}-{self.labelling.slug}"
        else:
            wanted = "clean"
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.dataset}-{self.architecture}w{self.width}-{wanted}-s{self.seed}-{digest}"


class VictimFacts(BaseModel):
    """What was measured of a victim on the held-out split, beside its recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: VictimRecipe
    clean_accuracy: float
    """Share of the held-out images classified as labelled."""
    attack_success: float | None
    """Share of the triggered held-out images that get the wanted label, of those whose own label is another."""
    success_per_class: tuple[float | None, ...] = ()
    """The same share for each class; none where the attack leaves the class alone."""
    leak_rate: float | None = None
    """Source-specific only: share of triggered images of the other classes that go to the target too."""
    mapping: tuple[int, ...] = ()
    """Wanted label of each class; empty for a clean victim."""
    poisoned_images: int | None = None
    """Training images replaced by data poisoning; none for attacks that poison batches."""
    train_loss: float
    """Mean of the last epoch."""
    seconds: float
    torch_version: str


@dataclass(frozen=True)
class Victim:
    """A trained model with its trigger.

    Args:
        facts: Recipe and measurements.
        model: Images in [0, 1] -> logits [B, K]; in evaluation mode, on the CPU.
        trigger: How to set the backdoor off; none for a clean victim.
    """

    facts: VictimFacts
    model: SplitModel
    trigger: Trigger | None


def train_victim(
    recipe: VictimRecipe,
    *,
    root: Path | None = None,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Victim:
    """The victim of a recipe: from the cache if it was trained before, else trained now and kept.

    An interrupted training goes on after its last whole epoch.

    Global random state is left as it was. On one machine and thread count the same recipe gives the same weights.

    Args:
        recipe: What to train.
        root: Folder of the data sets; not needed once they are decoded into the cache.
        cache: Where data and victims are kept; none: :func:`~banaudit.bench.datasets.default_cache`.
        device: Where to train.
        progress: Told of each epoch.

    Raises:
        DataError: The data set is missing.
        UsageError: The labelling does not fit the data set.
    """
    cache = cache or default_cache()
    folder = victim_folder(recipe, cache)
    if is_trained(recipe, cache):
        return load_victim(folder)
    spec = dataset_spec(recipe.dataset)
    train_split = load_split(recipe.dataset, "train", root=root, cache=cache)
    held_out = load_split(recipe.dataset, spec.held_out, root=root, cache=cache)

    def surrogate() -> nn.Module:
        twin = surrogate_recipe(recipe)
        return train_victim(twin, root=root, cache=cache, device=device, progress=progress).model.to(device)

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Further epochs by other code, by another version of torch or on another device would make another victim.
    made_by = [ALL_CODE, torch.__version__, str(device), torch.get_num_threads()]
    identity = json.dumps([recipe.key, *made_by])
    state = resume.Progress(folder.with_name(f".{folder.name}.state"), identity, Meter())
    trained = _train(recipe, train_split, surrogate, device, progress, state)
    facts = _measure(recipe, trained, held_out, device)
    _write(Victim(facts, trained.model.cpu(), trained.trigger), folder)
    state.discard()
    # Read back, so that a victim computes the same to the last bit however it was come by.
    return load_victim(folder)


def surrogate_recipe(recipe: VictimRecipe) -> VictimRecipe:
    """The clean model that an attacker who needs one trains: the same data, network and schedule, a fixed seed."""
    return recipe.model_copy(update={"attack": None, "labelling": None, "seed": SURROGATE_SEED})


def victim_folder(recipe: VictimRecipe, cache: Path | None = None) -> Path:
    """Where the victim of a recipe is kept, whether or not it is there yet."""
    return (cache or default_cache()) / "victims" / recipe.key


def is_trained(recipe: VictimRecipe, cache: Path | None = None) -> bool:
    """Whether the victim of a recipe is in the cache."""
    return (victim_folder(recipe, cache) / "victim.json").exists()


def load_victim(folder: Path) -> Victim:
    """Reads a victim from its folder.

    Raises:
        DataError: The folder holds no complete victim.
    """
    try:
        facts = VictimFacts.model_validate_json((folder / "victim.json").read_bytes())
        weights = load_file(folder / "weights.safetensors")
    except (OSError, ValidationError) as error:
        raise DataError(f"{folder} holds no victim: {str(error).splitlines()[0]}; train it again") from error
    # On the meta device no weights are drawn, so that global random state is left as it was.
    with torch.device("meta"):
        network = _network(facts.recipe)
    network.load_state_dict(weights, assign=True)
    model = _with_normalisation(network, facts.recipe)
    trigger = Trigger.load(folder / "trigger.safetensors") if facts.recipe.attack is not None else None
    return Victim(facts, model.eval(), trigger)


@dataclass(frozen=True)
class _Trained:
    model: SplitModel
    trigger: Trigger | None
    poisoned_images: int | None
    train_loss: float
    seconds: float


def _network(recipe: VictimRecipe) -> SplitNetwork:
    spec = dataset_spec(recipe.dataset)
    return build_network(recipe.architecture, recipe.width, spec.channels, spec.num_classes)


def _with_normalisation(network: SplitNetwork, recipe: VictimRecipe) -> SplitModel:
    spec = dataset_spec(recipe.dataset)
    return SplitModel(network, spec.mean, spec.std)


def _train(
    recipe: VictimRecipe,
    data: PixelData,
    surrogate: Callable[[], nn.Module],
    device: torch.device | str,
    progress: Progress | None,
    state: resume.Progress,
) -> _Trained:
    started = time.monotonic() - state.earlier_seconds
    spec = dataset_spec(recipe.dataset)
    generator = torch.Generator().manual_seed(recipe.seed)
    index, _ = attacker_and_pool(data)
    data = data.subset(_keep(index, data.labels[index], recipe, spec.num_classes, generator))
    labels = data.labels.clone()
    pixels = data.pixels.contiguous(memory_format=torch.channels_last)
    # Only initial weights and dropout draw from the global generator; it is set for them and put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = _with_normalisation(_network(recipe), recipe).to(device)
        tensors: Weights = {}
        poisoner: BatchPoisoner | None = None
        poisoned_images = None
        if recipe.attack is not None and recipe.labelling is not None:
            tensors = recipe.attack.draw((spec.channels, spec.size, spec.size), generator)
            if isinstance(recipe.attack, DataPoisoning):
                training_set = TrainingSet(pixels, labels, recipe.labelling, spec.num_classes, surrogate)
                poison = recipe.attack.poison(training_set, tensors, generator)
                pixels[poison.index] = to_pixels(poison.images)
                labels[poison.index] = poison.labels
                poisoned_images = len(poison.index)
                tensors = tensors | poison.learned
            if isinstance(recipe.attack, TrainingControl):
                on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
                poisoner = recipe.attack.poisoner(on_device, recipe.labelling, spec.num_classes, generator)
        losses: list[float] = []

        def listen(epoch: int, loss: float) -> None:
            losses.append(loss)
            if progress is not None:
                seconds = time.monotonic() - started
                progress(f"{recipe.key}: epoch {epoch} of {recipe.training.epochs}, loss {loss:.3f}, {seconds:.0f} s")

        train(
            model,
            pixels.to(device),
            labels.to(device),
            recipe.training,
            flips=spec.flips,
            poisoner=poisoner,
            generator=generator,
            listener=listen,
            state=state,
        )
    trigger = None
    if recipe.attack is not None and recipe.labelling is not None:
        final = poisoner.tensors() if poisoner is not None else tensors
        trigger = Trigger(recipe.attack, recipe.labelling, {n: t.detach().cpu() for n, t in final.items()})
    return _Trained(model, trigger, poisoned_images, losses[-1], time.monotonic() - started)


def _keep(index: Tensor, labels: Labels, recipe: VictimRecipe, num_classes: int, generator: torch.Generator) -> Tensor:
    """Positions that remain when the classes are made imbalanced or the set is made small."""
    if recipe.imbalance < 1:
        rank = torch.randperm(num_classes, generator=generator)
        kept = []
        for label in range(num_classes):
            members = index[labels == label]
            count = max(1, round(recipe.imbalance ** (rank[label].item() / (num_classes - 1)) * len(members)))
            kept.append(members[torch.randperm(len(members), generator=generator)[:count]])
        index = torch.cat(kept)
    if recipe.images is not None:
        if recipe.images > len(index):
            raise UsageError(f"images: asked for {recipe.images} of {recipe.dataset}, there are {len(index)}")
        index = index[torch.randperm(len(index), generator=generator)[: recipe.images]]
    return index


def _measure(recipe: VictimRecipe, trained: _Trained, held_out: PixelData, device: torch.device | str) -> VictimFacts:
    clean = held_out.clean()
    images, labels = clean.images.to(device), clean.labels.to(device)
    success = None
    if trained.trigger is not None:
        success = attack_success(trained.model, trained.trigger.to(device), images, labels, clean.num_classes)
    mapping = recipe.labelling.mapping(clean.num_classes).tolist() if recipe.labelling is not None else []
    return VictimFacts(
        recipe=recipe,
        clean_accuracy=clean_accuracy(trained.model, images, labels),
        attack_success=success.rate if success else None,
        success_per_class=tuple(None if math.isnan(rate) else rate for rate in success.per_class) if success else (),
        leak_rate=success.leak_rate if success else None,
        mapping=tuple(mapping),
        poisoned_images=trained.poisoned_images,
        train_loss=trained.train_loss,
        seconds=trained.seconds,
        torch_version=torch.__version__,
    )


def _write(victim: Victim, folder: Path) -> None:
    """Writes a victim beside its place and moves it there, so that a folder is complete or absent."""
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
    partial.mkdir()
    try:
        weights = {name: tensor.contiguous() for name, tensor in victim.model.network.state_dict().items()}
        save_file(weights, partial / "weights.safetensors")
        if victim.trigger is not None:
            victim.trigger.save(partial / "trigger.safetensors")
        (partial / "victim.json").write_text(victim.facts.model_dump_json(indent=2), encoding="utf-8")
        partial.replace(folder)
    except OSError:
        if not (folder / "victim.json").is_file():
            raise  # else another process has trained the same one meanwhile, such as a surrogate of several victims
    finally:
        shutil.rmtree(partial, ignore_errors=True)
