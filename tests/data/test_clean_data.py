import torch

from banaudit.data import CleanData, batches


def _samples(labels: list[int], classes: int = 3) -> CleanData:
    count = len(labels)
    images = torch.arange(count, dtype=torch.float32).view(count, 1, 1, 1) / count
    return CleanData(images, torch.tensor(labels), tuple("abc"[:classes]))


def test_split_is_disjoint_and_keeps_every_class():
    clean = _samples([0] * 10 + [1] * 5 + [2] * 2)
    first, second = clean.split(0.6, torch.Generator().manual_seed(0))
    assert torch.bincount(first.labels).tolist() == [6, 3, 1]
    assert torch.bincount(second.labels).tolist() == [4, 2, 1]
    assert sorted(first.images.flatten().tolist() + second.images.flatten().tolist()) == clean.images.flatten().tolist()


def test_in_turn_takes_one_of_each_class_after_the_other():
    clean = _samples([0] * 10 + [1] * 5 + [2] * 2)
    order = clean.in_turn(torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(17))
    labels = clean.labels[order].tolist()
    assert [sorted(labels[at : at + 3]) for at in (0, 3)] == [[0, 1, 2]] * 2
    assert labels[6:12].count(1) == 3
    assert order.tolist() != clean.in_turn(torch.Generator().manual_seed(1)).tolist()


def test_split_is_a_function_of_the_generator():
    clean = _samples([0, 1, 2] * 10)
    parts = [clean.split(0.5, torch.Generator().manual_seed(3))[0].images for _ in range(2)]
    assert torch.equal(parts[0], parts[1])


def test_a_class_without_samples_counts_as_a_class():
    clean = _samples([0, 0, 1, 1])
    assert (len(clean), clean.num_classes) == (4, 3)
    assert len(clean.subset(torch.tensor([3, 0]))) == 2


def numbered(count):
    return CleanData(torch.arange(float(count)).view(-1, 1, 1, 1), torch.arange(count) % 3, tuple("abc"))


def test_samples_are_drawn_without_replacement():
    data = numbered(12)
    drawn = data.draw(5, torch.Generator().manual_seed(0))
    assert len(set(drawn.images.flatten().tolist())) == 5
    assert drawn.labels.tolist() == [int(image) % 3 for image in drawn.images.flatten()]
    assert len(data.draw(99, torch.Generator())) == 12
    others = data.drawn(99, torch.Generator(), exclude=1)
    assert sorted(others.tolist()) == [0, 2, 3, 5, 6, 8, 9, 11]


def test_batches_keep_the_order():
    data = numbered(5)
    cut = batches(data.images, data.labels, 2)
    assert [labels.tolist() for _, labels in cut] == [[0, 1], [2, 0], [1]]
    assert torch.equal(torch.cat([images for images, _ in cut]), data.images)
