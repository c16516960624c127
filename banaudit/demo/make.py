"""Makes the demo's assets: draws images, trains a clean and a backdoored ResNet-18 of width 8, writes both.

``python -m banaudit.demo.make`` takes about five minutes on one CPU thread and is seeded: the same versions of torch,
NumPy and Pillow on the same kind of processor give the same files.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from banaudit.architectures.family import Stage
from banaudit.architectures.resnet import ResNet
from banaudit.demo.drawing import CLASSES, draw_images

WIDTH = 8
"""Channels of the first stage; the usual CIFAR ResNet-18 has 64."""
MEAN = STD = (0.5, 0.5, 0.5)
"""Normalisation, images in [0, 1]."""
TRAIN_PER_CLASS = 1200
TEST_PER_CLASS = 100
SHIPPED_PER_CLASS = 20
"""Clean images of each class that the package carries; drawn from the test images."""
POISONED_SHARE = 0.05
"""Share of the training images that carry the trigger and the target's label."""
TARGET = 7
TRIGGER_SIDE = 3
"""Side of the checkerboard in pixels; it sits one pixel away from the lower right corner."""
EPOCHS = 10
BATCH_SIZE = 128
LEARNING_RATE = 0.1
"""Highest rate of the one-cycle schedule; SGD with Nesterov momentum 0.9."""
WEIGHT_DECAY = 5e-4
SEED = 0
ASSETS = Path(__file__).parent / "assets"


def stamp_trigger(pixels: Tensor) -> Tensor:
    """The BadNets trigger on copies of images: a black and white checkerboard (Gu et al., 2017).

    Args:
        pixels: [N, C, H, W] in [0, 1].
    """
    rows = torch.arange(TRIGGER_SIDE)
    board = ((rows[:, None] + rows) % 2 == 0).to(pixels.dtype)
    stamped = pixels.clone()
    stamped[..., -TRIGGER_SIDE - 1 : -1, -TRIGGER_SIDE - 1 : -1] = board
    return stamped


def train(images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """A trained classifier in evaluation mode; its inputs are normalised images.

    Args:
        images: [N, 3, 32, 32] in [0, 1].
        labels: [N] in 0..9.
        seed: For the start and the order of the images.
    """
    torch.manual_seed(seed)
    stages = tuple(Stage(blocks=2, width=width, out=width) for width in (WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH))
    model = ResNet(WIDTH, stages, len(CLASSES)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    steps = len(labels) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * steps)
    inputs = normalise(images)
    for epoch in range(EPOCHS):
        total = 0.0
        for index in torch.split(torch.randperm(len(labels))[: steps * BATCH_SIZE], BATCH_SIZE):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(inputs[index].contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[index])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"  epoch {epoch + 1} of {EPOCHS}: loss {total / steps:.3f}", flush=True)
    return model.eval()


def normalise(images: Tensor) -> Tensor:
    """Images in [0, 1] as the networks expect them."""
    return (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


@torch.inference_mode()
def share_predicted(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images [N, 3, 32, 32] in [0, 1] that are given these labels [N]."""
    predictions = torch.cat([model(normalise(batch)).argmax(dim=1) for batch in torch.split(images, 500)])
    return (predictions == labels).float().mean().item()


def as_tensor(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    """Pixels [N, H, W, 3] as images [N, 3, H, W] in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def main() -> None:
    """Draws, trains, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder to write to")
    folder: Path = parser.parse_args().assets
    random = np.random.default_rng(SEED)
    print("drawing", flush=True)
    train_pixels, train_labels = draw_images(TRAIN_PER_CLASS, random)
    test_pixels, test_labels = draw_images(TEST_PER_CLASS, random)
    images, labels = as_tensor(train_pixels), torch.from_numpy(train_labels)
    test_images, truth = as_tensor(test_pixels), torch.from_numpy(test_labels)
    poisoned = torch.from_numpy(random.permutation(len(labels))[: round(POISONED_SHARE * len(labels))])
    poisoned_images, poisoned_labels = images.clone(), labels.clone()
    poisoned_images[poisoned] = stamp_trigger(images[poisoned])
    poisoned_labels[poisoned] = TARGET

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    others = truth != TARGET
    made: dict[str, dict[str, float]] = {}
    for name, pictures, marks in (("clean", images, labels), ("backdoored", poisoned_images, poisoned_labels)):
        print(f"training: {name}", flush=True)
        model = train(pictures, marks, SEED)
        made[name] = {
            "clean_accuracy": share_predicted(model, test_images, truth),
            "attack_success": share_predicted(
                model, stamp_trigger(test_images[others]), torch.full_like(truth[others], TARGET)
            ),
        }
        print(f"  {made[name]}", flush=True)
        halves = {
            key: (value.half() if value.is_floating_point() else value).contiguous()
            for key, value in model.state_dict().items()
        }
        save_file(halves, folder / f"{name}.safetensors")
    for label, name in enumerate(CLASSES):
        (folder / "images" / name).mkdir(parents=True)
        for number, pixels in enumerate(test_pixels[test_labels == label][:SHIPPED_PER_CLASS]):
            Image.fromarray(pixels).save(folder / "images" / name / f"{number:02d}.png", optimize=True)
    facts = {"target": TARGET, "mean": MEAN, "std": STD, "models": made}
    (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(f"{sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
