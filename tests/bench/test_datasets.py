import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from banaudit.bench import datasets
from banaudit.bench.datasets import DatasetSpec, attacker_and_pool, load_split, to_float, to_pixels
from banaudit.errors import DataError


@pytest.fixture
def tiny(monkeypatch):
    spec = DatasetSpec(
        name="tiny",
        folder="folder",
        held_out="test",
        size=4,
        channels=3,
        num_classes=2,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        flips=True,
    )
    monkeypatch.setitem(datasets.DATASETS, "tiny", spec)
    return spec


@pytest.fixture
def root(tmp_path, tiny):
    for label, name in enumerate(["ant", "bee"]):
        folder = tmp_path / "root" / tiny.folder / "train" / name
        folder.mkdir(parents=True)
        for number in range(3):
            colour = np.full((4, 4, 3), 100 * label + number, dtype=np.uint8)
            Image.fromarray(colour).save(folder / f"{number}.png")
        (folder / "notes.txt").write_text("no image")
    return tmp_path / "root"


def test_folder_is_read_in_sorted_order(root, tmp_path):
    data = load_split("tiny", "train", root=root, cache=tmp_path / "cache")
    assert data.class_names == ("ant", "bee")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.pixels.shape == (6, 3, 4, 4)
    assert data.pixels.dtype == torch.uint8
    assert data.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]


def test_zip_file_gives_the_same_as_the_folder(root, tmp_path, tiny):
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    with zipfile.ZipFile(zipped / f"{tiny.folder}.zip", "w") as archive:
        for path in (root / tiny.folder).rglob("*.*"):
            archive.write(path, path.relative_to(root / tiny.folder))
    folder = load_split("tiny", "train", root=root, cache=tmp_path / "one")
    archive = load_split("tiny", "train", root=zipped, cache=tmp_path / "two")
    assert torch.equal(folder.pixels, archive.pixels)
    assert torch.equal(folder.labels, archive.labels)


def test_the_cache_serves_without_the_root(root, tmp_path):
    first = load_split("tiny", "train", root=root, cache=tmp_path / "cache")
    again = load_split("tiny", "train", cache=tmp_path / "cache")
    assert torch.equal(first.pixels, again.pixels)
    assert again.class_names == first.class_names


def test_images_of_another_size_are_resized(root, tmp_path, tiny):
    Image.new("L", (9, 7), 50).save(root / tiny.folder / "train" / "ant" / "0.png")
    data = load_split("tiny", "train", root=root, cache=tmp_path / "cache")
    assert (data.pixels[0] == 50).all()


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_data_are_an_error_that_says_where(tmp_path, tiny, split):
    with pytest.raises(DataError, match="not in the cache"):
        load_split("tiny", split, cache=tmp_path)
    with pytest.raises(DataError, match="neither the folder"):
        load_split("tiny", split, root=tmp_path / "nowhere", cache=tmp_path)


def test_wrong_number_of_classes_is_an_error(root, tmp_path, tiny):
    (root / tiny.folder / "train" / "cat").mkdir()
    Image.new("RGB", (4, 4)).save(root / tiny.folder / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match="expected 2 class folders, found 3"):
        load_split("tiny", "train", root=root, cache=tmp_path / "cache")


def test_unknown_name_is_an_error():
    with pytest.raises(DataError, match="not known"):
        load_split("svhn", "train")


def test_attacker_and_pool_share_nothing_and_leave_nothing_out(root, tmp_path):
    data = load_split("tiny", "train", root=root, cache=tmp_path / "cache")
    attacker, pool = attacker_and_pool(data)
    assert len(pool) == round(0.1 * len(data))
    assert sorted(attacker.tolist() + pool.tolist()) == list(range(len(data)))
    assert torch.equal(attacker_and_pool(data)[1], pool)


def test_pixels_survive_the_way_to_float_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_pixels(to_float(pixels)), pixels)


def test_specifications_agree_with_themselves():
    for name, spec in datasets.DATASETS.items():
        assert spec.name == name
        assert len(spec.mean) == len(spec.std) == spec.channels
