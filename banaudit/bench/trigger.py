"""A trigger as it is kept with a victim: attack, labelling rule and tensors; and how often it succeeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from banaudit.bench.attacks import AnyAttack
from banaudit.bench.attacks.labelling import AnyLabelling, SourceTarget
from banaudit.errors import DataError
from banaudit.preflight import answers_of
from banaudit.shapes import Images, Labels, Weights


class _Header(BaseModel):
    """The settings beside the tensors in a trigger file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attack: AnyAttack
    labelling: AnyLabelling


@dataclass(frozen=True)
class Trigger:
    """Everything needed to put a trigger on new images and to say what the attacker wants of them.

    Args:
        attack: The attack's settings.
        labelling: Which label is wanted for which class.
        tensors: What was drawn or learned.
    """

    attack: AnyAttack
    labelling: AnyLabelling
    tensors: Weights

    def apply(self, images: Images, generator: torch.Generator) -> Images:
        """Triggered images [B, C, H, W] in [0, 1]; the input is not changed."""
        return self.attack.apply(images, self.tensors, generator)

    def to(self, device: torch.device | str) -> Trigger:
        """The same trigger for images on another device."""
        tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return Trigger(self.attack, self.labelling, tensors)

    def save(self, path: Path) -> None:
        """Writes a safetensors file that :meth:`load` reads."""
        header = _Header(attack=self.attack, labelling=self.labelling)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, path, metadata={"trigger": header.model_dump_json()})

    @classmethod
    def load(cls, path: Path) -> Trigger:
        """Reads a file that :meth:`save` wrote.

        Raises:
            DataError: The file is no trigger.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = _Header.model_validate_json((file.metadata() or {}).get("trigger", ""))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        except (OSError, SafetensorError, ValidationError) as error:
            raise DataError(
                f"{path} is no trigger file: {str(error).splitlines()[0]}; train the victim again"
            ) from error
        return cls(header.attack, header.labelling, tensors)


@dataclass(frozen=True)
class AttackSuccess:
    """How often the trigger does what the attacker wants.

    Args:
        rate: Share of the images whose wanted label differs from their own that get the wanted one.
        images: How many images that share is of.
        per_class: The same share for each class; NaN where the attack leaves the class alone or no image is of it.
        leak_rate: Source-specific only: share of the images of neither source nor target that go to the target too.
    """

    rate: float
    images: int
    per_class: tuple[float, ...]
    leak_rate: float | None = None


def clean_accuracy(model: nn.Module, images: Images, labels: Labels, *, batch_size: int = 500) -> float:
    """Share of the images that the model classifies as labelled; the model must be in evaluation mode."""
    return (_predictions(model, images, batch_size) == labels).double().mean().item()


def attack_success(
    model: nn.Module,
    trigger: Trigger,
    images: Images,
    labels: Labels,
    num_classes: int,
    *,
    seed: int = 0,
    batch_size: int = 500,
) -> AttackSuccess:
    """Measures a trigger on clean images that the model was not trained on.

    Args:
        model: Images in [0, 1] -> logits [B, K], in evaluation mode.
        trigger: The trigger and its labelling rule.
        images: [N, C, H, W] clean images in [0, 1].
        labels: [N] their true labels.
        num_classes: Number of classes K.
        seed: Seed of triggers that draw at test time.
        batch_size: Images per forward pass, B.
    """
    generator = torch.Generator().manual_seed(seed)
    triggered = torch.cat([trigger.apply(part, generator) for part in torch.split(images, batch_size)])
    predicted = _predictions(model, triggered, batch_size)
    wanted = trigger.labelling.target_of(labels, num_classes)
    affected = wanted != labels
    hits = (predicted == wanted).double()
    per_class = tuple(hits[affected & (labels == label)].mean().item() for label in range(num_classes))
    leak_rate = None
    if isinstance(trigger.labelling, SourceTarget):
        others = (labels != trigger.labelling.source) & (labels != trigger.labelling.target)
        leak_rate = (predicted[others] == trigger.labelling.target).double().mean().item()
    return AttackSuccess(hits[affected].mean().item(), int(affected.sum()), per_class, leak_rate)


@torch.no_grad()
def _predictions(model: nn.Module, images: Images, batch_size: int) -> Labels:
    """Labels; an answer that is none is neither right nor an attack's success."""
    return torch.cat([answers_of(model(part)) for part in torch.split(images, batch_size)])
