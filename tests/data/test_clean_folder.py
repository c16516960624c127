import io
import json
import os
import shutil
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from banaudit.data import ImageSet, read_clean_folder
from banaudit.data import images as images_module
from banaudit.errors import DataError, TimeLimitReached, UsageError
from banaudit.meter import Meter

CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10.zip"


def _save(path: Path, value: int = 128, *, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode != "RGB" else (value, 0, 255 - value)).save(path)


def _class_folders(root: Path, names: list[str], each: int = 10) -> Path:
    for label, name in enumerate(names):
        for index in range(each):
            _save(root / name / f"{index}.png", value=20 * label + index)
    return root


def _read(
    path: Path,
    classes: int | None = 3,
    limit: int | None = None,
    seed: int = 0,
    class_map: Path | None = None,
) -> ImageSet:
    return read_clean_folder(path, classes=classes, limit=limit, seed=seed, class_map=class_map)


def _refusal(path: Path, classes: int | None = 3, class_map: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        _read(path, classes, class_map=class_map)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Layouts


def test_class_folders_in_sorted_order(tmp_path):
    images = _read(_class_folders(tmp_path, ["cat", "ant", "bee"]))
    assert images.class_names == ("ant", "bee", "cat")
    assert images.facts.class_mapping == {"ant": 0, "bee": 1, "cat": 2}
    assert images.facts.mapping_source == "sorted order"
    assert images.facts.layout == "class folders"
    assert (images.facts.found, images.facts.used, images.facts.per_class_min) == (30, 30, 10)
    assert all(
        images.class_names[label] == path.parent.name for path, label in zip(images.paths, images.labels, strict=True)
    )


def test_class_folders_by_number(tmp_path):
    images = _read(_class_folders(tmp_path, ["00000", "00007", "10"]), classes=12)
    assert sorted(set(images.labels)) == [0, 7, 10]
    assert images.facts.mapping_source == "by number"
    assert images.facts.missing_classes == (1, 2, 3, 4, 5, 6, 8, 9, 11)
    assert images.class_names[6:8] == ("6", "00007")


@pytest.mark.parametrize("sub", ["test", "anything"])
def test_the_only_split_inside_is_read(tmp_path, sub):
    _class_folders(tmp_path / sub, ["a", "b", "c"])
    assert len(_read(tmp_path)) == 30


def test_of_two_splits_one_has_to_be_named(tmp_path):
    for split in ("train", "test"):
        _class_folders(tmp_path / split, ["a", "b", "c"])
    assert f"pass one of them, e.g. {tmp_path / 'test'}" in _refusal(tmp_path)


def test_split_folders_of_images_are_no_classes(tmp_path):
    assert "named like a split" in _refusal(_class_folders(tmp_path, ["train", "test"]), classes=2)


def test_a_class_may_be_called_train(tmp_path):
    assert _read(_class_folders(tmp_path, ["boat", "car", "train"])).class_names[2] == "train"


def _inner_folders(root: Path, names: list[str]) -> Path:
    for name in names:
        _class_folders(root / name, ["images"])
        (root / name / f"{name}_boxes.txt").write_text("0.JPEG 0 0 7 7")
    return root


def test_class_folders_with_their_images_in_an_inner_folder(tmp_path):
    images = _read(_inner_folders(tmp_path, ["n02", "n01", "n03"]))
    assert images.class_names == ("n01", "n02", "n03")
    assert {path.parent.parent.name for path in images.paths} == {"n01", "n02", "n03"}
    assert (images.facts.layout, images.facts.found) == ("class folders", 30)


def test_the_whole_of_tiny_imagenet_is_read_where_its_labels_are(tmp_path):
    _inner_folders(tmp_path / "train", ["n01", "n02", "n03"])
    _inner_folders(tmp_path, ["val", "test"])
    assert {path.parents[2].name for path in _read(tmp_path).paths} == {"train"}


def test_inner_folders_named_like_splits_are_no_classes(tmp_path):
    assert "2 of its folders hold class folders" in _refusal(_inner_folders(tmp_path, ["val", "test"]))


def test_an_inner_folder_beside_a_csv_is_read_by_the_csv(tmp_path):
    _class_folders(tmp_path / "part", ["images"], each=30)
    rows = [f"images/{index}.png,{index % 3}" for index in range(30)]
    (tmp_path / "part" / "labels.csv").write_text("\n".join(["file,label", *rows]))
    assert _read(tmp_path).facts.layout == "csv"


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("file,label", "{file},{label}"),
        ("id,Label,FileName", "x,{label},{file}"),
        ('"path","class"', '"{file}","{label}"'),
        ("Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId", "{file};8;8;0;0;8;8;{label}"),
        ("path\tclass_id", "{file}\t{label}"),
    ],
)
@pytest.mark.parametrize("given", ["the folder", "the file"])
def test_csv(tmp_path, header, row, given):
    lines = [header]
    for index in range(30):
        _save(tmp_path / "images" / f"{index}.png")
        lines.append(row.format(file=f"images/{index}.png", label=index % 3))
    table = tmp_path / "labels.csv"
    table.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n\r\n")
    images = _read(tmp_path if given == "the folder" else table)
    assert images.facts.layout == "csv"
    assert all(int(path.stem) % 3 == label for path, label in zip(images.paths, images.labels, strict=True))


def test_csv_with_class_names(tmp_path):
    rows = "".join(f"{index}.png,{'xyz'[index % 3]}\n" for index in range(30))
    for index in range(29):
        _save(tmp_path / f"{index}.png")
    (tmp_path / "list.csv").write_text("file,label\n" + rows)
    images = _read(tmp_path)
    assert images.class_names == ("x", "y", "z")
    assert (images.unreadable[0].name, images.unreadable[0].reason) == ("29.png", "no such file")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("file,label\na.png,0\nb.png\n", "line 3 lacks a file or a label"),
        ("file,label\na.png,0\na.png,1\n", "two labels"),
        ("file,label\n", "lists no images"),
        ("a.png,0\n", "must name a file and a label column"),
        ("file,label\n\x80", "cannot be read as a CSV in UTF-8"),
    ],
)
def test_csv_that_cannot_be_used(tmp_path, text, complaint):
    table = tmp_path / "list.csv"
    table.write_bytes(text.encode("latin-1"))
    assert complaint in _refusal(table)


def test_two_csv_files(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("file,label\na.png,0\n")
    assert "2 CSV files" in _refusal(tmp_path)


def test_a_csv_of_something_else_is_not_in_the_way(tmp_path):
    _class_folders(tmp_path, ["a", "b", "c"])
    (tmp_path / "results.csv").write_text("epoch,loss\n1,2\n")
    assert _read(tmp_path).facts.layout == "class folders"


def test_numbered_files(tmp_path):
    for index in range(30):
        _save(tmp_path / f"class_{index % 3}_example_{index}.png")
    images = _read(tmp_path)
    assert images.facts.layout == "file names"
    assert Counter(images.labels) == {0: 10, 1: 10, 2: 10}


# Class names


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "c\nb\na\n\n"),
        ("classes.json", json.dumps(["c", "b", "a"])),
        ("classes.json", json.dumps({"c": 0, "b": 1, "a": 2})),
        ("classes.json", json.dumps({"0": "c", "1": "b", "2": "a"})),
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_class_file(tmp_path, name, content, given):
    folder = _class_folders(tmp_path / "images", ["a", "b", "c"])
    file = (tmp_path if given else folder) / name
    file.write_text(content)
    images = _read(folder, class_map=file if given else None)
    assert images.class_names == ("c", "b", "a")
    assert images.facts.class_mapping == {"a": 2, "b": 1, "c": 0}
    assert images.facts.mapping_source == name


def test_class_file_beside_the_split(tmp_path):
    _class_folders(tmp_path / "test", ["a", "b", "c"])
    (tmp_path / "classes.txt").write_text("c\nb\na\n")
    assert _read(tmp_path).class_names == ("c", "b", "a")


def test_class_file_gives_names_to_numbers(tmp_path):
    _class_folders(tmp_path, ["0", "1", "2"])
    (tmp_path / "classes.txt").write_text("stop\nyield\ngo\n")
    images = _read(tmp_path)
    assert images.class_names == ("stop", "yield", "go")
    assert images.facts.mapping_source == "by number"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("classes.txt", "a\nb\n", "names 2 classes, the network has 3"),
        ("classes.txt", "a\nb\nb\n", "names 'b' twice"),
        ("classes.txt", "", "names no class"),
        ("classes.txt", "a\nb\nx\n", "does not name 'c'"),
        ("classes.json", '{"0": "a", "1": "b", "2": "b"}', "names 'b' twice"),
        ("classes.json", json.dumps({"0": "a", "1" * 5000: "b"}), "has 5000 digits, a label has at most 9"),
        ("classes.json", "{", "is not the class names"),
        ("classes.json", "[1, 2, 3]", "expected a list of names"),
        ("classes.json", '{"a": 0, "b": 1, "c": 3}', "'c' has label 3, the network's 3 classes are 0 to 2"),
    ],
)
def test_class_file_that_cannot_be_used(tmp_path, name, content, complaint):
    _class_folders(tmp_path, ["a", "b", "c"])
    (tmp_path / name).write_text(content)
    assert complaint in _refusal(tmp_path)


def test_two_class_files(tmp_path):
    _class_folders(tmp_path, ["a", "b", "c"])
    for name in ("classes.txt", "classes.json"):
        (tmp_path / name).write_text("a\nb\nc\n")
    assert "keep one of them" in _refusal(tmp_path)


def test_missing_class_file(tmp_path):
    _class_folders(tmp_path, ["a", "b", "c"])
    assert "No such file" in _refusal(tmp_path, class_map=tmp_path / "names.txt")


def test_sorted_order_is_never_guessed(tmp_path):
    message = _refusal(_class_folders(tmp_path, ["a", "b", "c"]), classes=10)
    assert "3 classes found, the network has 10" in message
    assert "classes.txt" in message


def test_an_empty_class_folder_keeps_its_place(tmp_path):
    _class_folders(tmp_path, ["a", "c"])
    (tmp_path / "b").mkdir()
    images = _read(tmp_path)
    assert sorted(set(images.labels)) == [0, 2]
    assert images.facts.missing_classes == (1,)
    assert images.class_names == ("a", "b", "c")


def test_an_empty_folder_of_the_system_is_no_class(tmp_path):
    _class_folders(tmp_path, ["a", "c"])
    (tmp_path / "__MACOSX").mkdir()
    assert "2 classes found, the network has 3" in _refusal(tmp_path)


def test_classes_counted_from_the_data_when_unknown(tmp_path):
    assert _read(_class_folders(tmp_path, ["a", "b", "c"]), classes=None).num_classes == 3


def test_label_out_of_range(tmp_path):
    message = _refusal(_class_folders(tmp_path, ["0", "1", "10"]), classes=10)
    assert "'10/0.png' has label 10, the network's 10 classes are 0 to 9" in message


def test_labels_counted_from_one(tmp_path):
    assert "number the classes from 0" in _refusal(_class_folders(tmp_path, ["1", "2", "3"]))


# What cannot be read


def test_no_such_folder(tmp_path):
    assert "no such folder" in _refusal(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder(tmp_path):
    _save(tmp_path / "cat.png")
    assert "is a file, not a folder" in _refusal(tmp_path / "cat.png")


def test_empty_folder(tmp_path):
    assert "holds no images" in _refusal(tmp_path)


def test_folders_without_images(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("nothing")
    assert "none of its 1 folders holds images" in _refusal(tmp_path)


def test_images_without_labels(tmp_path):
    _save(tmp_path / "holiday.png")
    assert "'holiday.png' has no label" in _refusal(tmp_path)


def test_folder_that_cannot_be_read(tmp_path, monkeypatch):
    _class_folders(tmp_path, ["a", "b", "c"])
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    message = _refusal(tmp_path)
    assert "Permission denied" in message
    assert str(tmp_path / "b") in message


def test_broken_files_are_counted_named_and_replaced(tmp_path):
    _class_folders(tmp_path, ["a", "b", "c"], each=12)
    (tmp_path / "a" / "0.png").write_bytes(b"no image at all")
    (tmp_path / "a" / "1.png").write_bytes(b"")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "JPEG")
    (tmp_path / "b" / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    images = _read(tmp_path)
    assert {file.name: file.reason.split(":")[0] for file in images.unreadable} == {
        "a/0.png": "not an image",
        "a/1.png": "not an image",
        "b/cut.jpg": "OSError",
    }
    assert (images.facts.found, images.facts.unreadable, images.facts.used) == (37, 3, 34)
    assert Counter(_read(tmp_path, limit=30).labels) == {0: 10, 1: 10, 2: 10}


def test_too_few_remain(tmp_path):
    _class_folders(tmp_path, ["a", "b", "c"], each=7)
    for name in "ab":
        (tmp_path / name / "0.png").write_bytes(b"broken")
    message = _refusal(tmp_path)
    assert "19 readable images, at least 20 are needed; 2 unreadable, e.g. " in message


def test_one_class_is_not_enough(tmp_path):
    folders = _class_folders(tmp_path, ["0"], each=30)
    assert "all images are of one class" in _refusal(folders)
    assert "all images are of one class" in _refusal(folders, classes=None)


def test_a_limit_too_small_to_judge(tmp_path):
    with pytest.raises(UsageError, match="at most 5 clean images"):
        _read(_class_folders(tmp_path, ["a", "b", "c"]), limit=5)


def test_an_image_that_unfolds_to_gigabytes_is_not_decoded(tmp_path, monkeypatch):
    _class_folders(tmp_path, ["a", "b", "c"])
    _save(tmp_path / "a" / "bomb.png", size=(200, 100))
    monkeypatch.setattr(images_module, "MAX_SOURCE_PIXELS", 10_000)
    assert "200 x 100 pixels" in _read(tmp_path).unreadable[0].reason


def test_pillows_own_bomb_limit_is_a_refusal(tmp_path, monkeypatch):
    _class_folders(tmp_path, ["a", "b", "c"])
    _save(tmp_path / "a" / "bomb.png", size=(200, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15_000)
    assert "Bomb" in _read(tmp_path).unreadable[0].reason


def test_a_pipe_does_not_block(tmp_path):
    _class_folders(tmp_path, ["a", "b", "c"])
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert [file.name for file in _read(tmp_path).unreadable] == ["a/pipe.png"]


def test_postscript_is_not_run(tmp_path):
    _class_folders(tmp_path, ["a", "b", "c"])
    (tmp_path / "a" / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    assert _read(tmp_path).unreadable[0].reason == "not an image"


def test_links_are_followed_and_loops_are_harmless(tmp_path):
    _class_folders(tmp_path / "elsewhere", ["a", "b", "c"])
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in "abc":
        (linked / name).symlink_to(tmp_path / "elsewhere" / name)
    (linked / "loop").symlink_to(linked)
    (linked / "a" / "again").symlink_to(linked)
    assert len(_read(linked)) == 30


def test_links_that_lead_nowhere_are_counted_and_named(tmp_path):
    _class_folders(tmp_path, ["a", "b", "c"])
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "b" / "gone.csv").symlink_to("nowhere")
    (tmp_path / "c" / "round.png").symlink_to("round.png")
    images = _read(tmp_path)
    nowhere = "a link that leads nowhere"
    assert [(file.name, file.reason) for file in images.unreadable] == [
        ("c/round.png", "no such file"),
        ("loop", nowhere),
        ("a/self", nowhere),
        ("b/gone.csv", nowhere),
    ]
    assert (images.facts.found, images.facts.used, images.facts.unreadable) == (34, 30, 4)


def test_links_that_lead_nowhere_beside_numbered_files_are_counted(tmp_path):
    for index in range(30):
        _save(tmp_path / f"class_{index % 3}_example_{index}.png")
    (tmp_path / "loop").symlink_to("loop")
    assert [file.name for file in _read(tmp_path).unreadable] == ["loop"]


def test_a_file_name_that_is_no_unicode(tmp_path):
    _class_folders(tmp_path, ["a", "b", "c"])
    shutil.copy(tmp_path / "a" / "0.png", os.fsencode(tmp_path) + b"/a/\xff.png")
    (tmp_path / "c").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe"))
    assert "?" in _read(tmp_path).facts.model_dump_json()


# Drawing


def test_drawing_is_seeded_and_balanced(tmp_path):
    folder = _class_folders(tmp_path, ["a", "b", "c"], each=20)
    _class_folders(tmp_path, ["a"], each=60)
    first, again, other = (_read(folder, limit=40, seed=seed) for seed in (1, 1, 2))
    assert first.paths == again.paths
    assert first.facts.sha256 == again.facts.sha256
    assert set(first.paths) != set(other.paths)
    assert first.facts.sha256 != other.facts.sha256
    assert sorted(Counter(first.labels).values()) == [13, 13, 14]
    assert sorted(Counter(first.labels[:9]).values()) == [3, 3, 3]


def test_small_classes_leave_room_for_the_others(tmp_path):
    _class_folders(tmp_path, ["a", "b", "c"], each=20)
    shutil.rmtree(tmp_path / "b")
    _class_folders(tmp_path, ["b"], each=2)
    assert Counter(_read(tmp_path, limit=30).labels) == {0: 14, 1: 2, 2: 14}


def test_hash_does_not_depend_on_where_the_folder_is(tmp_path):
    folder = _class_folders(tmp_path / "here", ["a", "b", "c"])
    copy = shutil.copytree(folder, tmp_path / "there")
    original = _read(folder)
    assert _read(copy, seed=5).facts.sha256 == original.facts.sha256
    _save(copy / "a" / "0.png", value=99)
    assert _read(copy).facts.sha256 != original.facts.sha256
    (folder / "classes.txt").write_text("b\na\nc\n")
    assert _read(folder).facts.sha256 != original.facts.sha256


def test_shortfall(tmp_path):
    assert "a verdict needs at least 50" in (_read(_class_folders(tmp_path / "few", ["a", "b", "c"])).shortfall() or "")
    enough = _class_folders(tmp_path / "enough", ["a", "b", "c"], each=20)
    assert _read(enough).shortfall() is None
    for file in sorted((enough / "b").iterdir())[1:]:
        file.unlink()
    _class_folders(enough, ["a"], each=40)
    assert "single clean image" in (_read(enough).shortfall() or "")


# Decoding


def test_decode_gives_the_pixels(tmp_path):
    clean = _read(_class_folders(tmp_path, ["a", "b", "c"])).decode(8, 3)
    images = _read(tmp_path)
    assert clean.images.shape == (30, 3, 8, 8)
    for image, path in zip(clean.images, images.paths, strict=True):
        value = 20 * "abc".index(path.parent.name) + int(path.stem)
        assert (image[:, 0, 0] * 255).round().tolist() == [value, 0, 255 - value]
    assert clean.labels.tolist() == list(images.labels)
    assert len(images.decode(8, 3, count=7)) == 7


def test_grey_images_for_an_rgb_network_and_back(tmp_path):
    for name in "abc":
        for index in range(10):
            _save(tmp_path / name / f"{index}.png", value=77, mode="L")
    images = _read(tmp_path)
    assert images.decode(8, 3).images.unique().tolist() == pytest.approx([77 / 255])
    assert images.decode(8, 1).images.shape == (30, 1, 8, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_usual_pixel_format_is_read(tmp_path, channels):
    _class_folders(tmp_path, ["a", "b", "c"])
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "a" / "0.png")
    for index, mode in enumerate(["1", "P", "LA", "RGBA"], start=1):
        Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(tmp_path / "a" / f"{index}.png")
    Image.new("CMYK", (8, 8)).save(tmp_path / "a" / "5.jpg")
    Image.new("F", (8, 8), 0.5).save(tmp_path / "a" / "float.tiff")
    images = _read(tmp_path)
    assert [file.name for file in images.unreadable] == ["a/float.tiff"]
    clean = images.decode(8, channels)
    level = {
        path.name: image.mean().item()
        for path, image in zip(images.paths, clean.images, strict=True)
        if path.parent.name == "a"
    }
    assert level["0.png"] == pytest.approx(40_000 / 65_536, abs=1 / 255)
    assert all(level[f"{index}.png"] == pytest.approx(1) for index in range(1, 5))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        images.decode(8, 2)


def _deep_colour(path: Path, value: int, kind: bytes = b"\2", channels: int = 3) -> None:
    """A PNG of 16 bits a channel, which Pillow reads and does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = (8).to_bytes(4, "big") * 2 + b"\x10" + kind + b"\0\0\0"
    rows = (b"\0" + value.to_bytes(2, "big") * 8 * channels) * 8
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def test_eight_bits_in_a_wider_type_are_not_read_as_black(tmp_path):
    folder = _class_folders(tmp_path, ["a", "b", "c"]) / "a"
    grey = np.full((8, 8), 255)
    Image.fromarray(grey.astype(np.uint16)).save(folder / "short.png")
    Image.fromarray(grey.astype(np.uint16)).save(folder / "short.tif")
    Image.fromarray(grey.astype(np.int32)).save(folder / "int.tif")
    _deep_colour(folder / "colour.png", 255)
    _deep_colour(folder / "alpha.png", 255, kind=b"\4", channels=2)
    unreadable = {file.name: file.reason for file in _read(tmp_path).unreadable}
    assert sorted(unreadable) == ["a/alpha.png", "a/colour.png", "a/int.tif", "a/short.png", "a/short.tif"]
    assert all("scale unknown" in reason for reason in unreadable.values())


def test_sixteen_bits_are_read_whatever_their_type_and_black_is_black_in_eight(tmp_path):
    folder = _class_folders(tmp_path, ["a", "b", "c"]) / "a"
    deep = np.full((8, 8), 40_000)
    Image.fromarray(deep.astype(np.uint16)).save(folder / "deep.tif")
    Image.fromarray(deep.astype(np.int32)).save(folder / "int.tif")
    _deep_colour(folder / "colour.png", 40_000)
    Image.new("RGB", (8, 8)).save(folder / "black.bmp")
    images = _read(tmp_path)
    assert images.unreadable == ()
    level = dict(zip((path.name for path in images.paths), images.decode(8, 3).images.mean((1, 2, 3)), strict=True))
    for name in ("deep.tif", "int.tif", "colour.png"):
        assert level[name].item() == pytest.approx(40_000 / 65_536, abs=1 / 255)
    assert level["black.bmp"].item() == 0


@pytest.mark.parametrize("value", [-1, 65_536, 2**31 - 1])
def test_integers_beyond_sixteen_bits_are_unreadable(tmp_path, value):
    folder = _class_folders(tmp_path, ["a", "b", "c"]) / "a"
    pixels = np.full((8, 8), 300, dtype=np.int32)
    pixels[0, 0] = value
    Image.fromarray(pixels).save(folder / "int.tif")
    (file,) = _read(tmp_path).unreadable
    assert file.reason.endswith("expected 8 or 16 bits")


def test_mixed_sizes_are_resized_to_a_square(tmp_path):
    images = _read(_class_folders(tmp_path, ["a", "b", "c"]))
    assert (images.own_size, images.typical_size) == (8, 8)
    for index in range(10):
        _save(tmp_path / "a" / f"{index}.png", size=(30, 20))
    images = _read(tmp_path)
    assert (images.own_size, images.typical_size) == (None, 8)
    assert images.decode(16, 3).images.shape == (30, 3, 16, 16)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_large_photographs_are_kept_small(tmp_path, suffix):
    _class_folders(tmp_path, ["a", "b", "c"])
    _save(tmp_path / "a" / f"large.{suffix}", size=(4000, 1000))
    images = _read(tmp_path)
    kept, size = next((picture.image.size, picture.size) for picture in images.pictures if picture.size != (8, 8))
    assert size == (4000, 1000)
    assert kept == (1280, 320)


@pytest.mark.skipif(not CIFAR.exists(), reason="the shared data are not there")
def test_real_files(tmp_path):
    import zipfile

    with zipfile.ZipFile(CIFAR) as archive:
        wanted = [
            name for name in archive.namelist() if "/test/" in f"/{name}" and name.endswith(("000.jpg", "001.jpg"))
        ]
        archive.extractall(tmp_path, wanted[:20])
    found = sorted(path for path in tmp_path.rglob("*.jpg"))
    images = _read(found[0].parents[1], classes=10)
    assert images.facts.used == len(found) == 20
    assert images.class_names[0] == "airplane"


def test_a_label_of_thousands_of_digits(tmp_path):
    _save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(f"file,label\na.png,{'7' * 5000}\n")
    assert "777777777... has 5000 digits, a label has at most 9" in _refusal(tmp_path)


def test_the_time_limit_holds_while_files_are_read(tmp_path):
    folder = _class_folders(tmp_path, ["a", "b", "c"])
    with pytest.raises(TimeLimitReached, match="reading images"):
        read_clean_folder(folder, classes=3, limit=None, seed=0, meter=Meter(time_limit=0))
