"""BadNets, Blend, Adap-Blend, Adap-Patch and the clean-label attacks: exact pixels."""

import torch
from torch import nn

from banaudit.bench.attacks import AdapBlend, AdapPatch, BadNets, Blend, Grond, LabelConsistent
from banaudit.bench.attacks.base import TrainingSet, choose, choose_covers
from banaudit.bench.attacks.grond import smooth_outliers
from banaudit.bench.attacks.label_consistent import perturb
from banaudit.bench.attacks.labelling import AllToAll, AllToOne
from banaudit.bench.datasets import to_float


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def no_surrogate():
    raise AssertionError("this attack needs no model")


def training_set(labelling, surrogate=no_surrogate, count=1000):
    pixels = torch.randint(256, (count, 3, 32, 32), generator=seeded(), dtype=torch.uint8)
    return TrainingSet(pixels, torch.arange(count) % 10, labelling, 10, surrogate)


def test_badnets_sets_the_checkerboard_in_the_last_three_rows_and_columns():
    attack = BadNets()
    images = torch.full((2, 3, 32, 32), 0.5)
    triggered = attack.apply(images, attack.draw((3, 32, 32), seeded()), seeded())
    corner = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    for image in triggered:
        for channel in image:
            assert torch.equal(channel[29:, 29:], corner)
    assert (triggered != 0.5).sum() == 2 * 3 * 9


def test_badnets_poisons_the_rate_of_the_images_that_are_not_of_the_target():
    data = training_set(AllToOne(target=4))
    poison = BadNets().poison(data, BadNets().draw((3, 32, 32), seeded()), seeded())
    assert len(poison.index) == 45  # 5 % of 900
    assert (data.labels[poison.index] != 4).all()
    assert (poison.labels == 4).all()


def test_badnets_all_to_all_relabels_to_the_next_class():
    data = training_set(AllToAll())
    attack = BadNets(poison_rate=0.1)
    poison = attack.poison(data, attack.draw((3, 32, 32), seeded()), seeded())
    assert len(poison.index) == 100
    assert torch.equal(poison.labels, (data.labels[poison.index] + 1) % 10)


def test_blend_mixes_a_fifth_of_the_pattern_in():
    attack = Blend()
    tensors = {"pattern": torch.full((3, 32, 32), 1.0)}
    triggered = attack.apply(torch.full((1, 3, 32, 32), 0.25), tensors, seeded())
    assert torch.allclose(triggered, torch.tensor(0.4))  # 0.8 * 0.25 + 0.2 * 1


def test_blend_patterns_have_the_stated_distribution():
    gaussian = Blend().draw((3, 64, 64), seeded())["pattern"]
    assert abs(gaussian.mean().item() - 0.5) < 0.01
    assert 0.22 < gaussian.std().item() < 0.25  # 0.25 before clipping
    uniform = Blend(pattern="uniform").draw((3, 64, 64), seeded())["pattern"]
    assert abs(uniform.std().item() - 12**-0.5) < 0.01


def test_adap_blend_shows_half_of_sixteen_equal_pieces():
    masks = AdapBlend().piece_masks(50, (32, 32), seeded())
    pieces = masks.view(50, 4, 8, 4, 8)
    assert torch.equal(pieces.amin(dim=(2, 4)), pieces.amax(dim=(2, 4)))
    assert (masks.mean(dim=(1, 2, 3)) == 0.5).all()
    assert len(torch.unique(masks, dim=0)) > 40


def test_adap_blend_poisons_faintly_in_pieces_and_fully_at_test_time():
    attack = AdapBlend(poison_rate=0.1, cover_rate=0.05)
    data = training_set(AllToOne(target=3))
    data.pixels.zero_()
    tensors = {"pattern": torch.ones(3, 32, 32)}
    poison = attack.poison(data, tensors, seeded())
    assert len(poison.index) == 90 + 50
    assert (poison.labels[:90] == 3).all()
    assert torch.equal(poison.labels[90:], data.labels[poison.index[90:]])
    assert torch.allclose(torch.unique(poison.images), torch.tensor([0.0, 0.15]))
    assert torch.allclose(attack.apply(to_float(data.pixels[:1]), tensors, seeded()), torch.tensor(0.2))


def test_adap_patch_gives_each_training_image_one_faint_patch():
    attack = AdapPatch(poison_rate=0.1, cover_rate=0.05)
    data = training_set(AllToOne(target=3))
    data.pixels.zero_()
    tensors = attack.draw((3, 32, 32), seeded())
    tensors["patterns"] = torch.ones(4, 3, 32, 32)
    poison = attack.poison(data, tensors, seeded())
    strengths = poison.images.amax(dim=(1, 2, 3))
    assert torch.allclose(strengths[:4], torch.tensor([0.5, 0.2, 0.5, 0.3]))
    touched = (poison.images > 0).any(dim=1).float()
    assert torch.equal(touched[:4, None], tensors["masks"])


def test_adap_patch_shows_disc_and_checkerboard_at_test_time():
    attack = AdapPatch()
    tensors = attack.draw((3, 32, 32), seeded())
    masks = tensors["masks"]
    assert (masks.sum(dim=0) <= 1).all()  # no two patches overlap
    assert masks[2].sum() == 16
    assert masks[3].sum() == 64
    images = torch.full((1, 3, 32, 32), 0.5)
    triggered = attack.apply(images, tensors, seeded())
    expected = torch.where(masks[0] > 0, tensors["patterns"][0], images)
    expected = torch.where(masks[2] > 0, tensors["patterns"][2], expected)
    assert torch.equal(triggered, expected)


def test_label_consistent_marks_four_corners_and_keeps_labels():
    attack = LabelConsistent()
    tensors = attack.draw((3, 32, 32), seeded())
    triggered = attack.apply(torch.full((1, 3, 32, 32), 0.5), tensors, seeded())[0, 0]
    assert triggered[29:, 29:].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert triggered[:3, :3].tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert triggered[29:, :3].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert triggered[:3, 29:].tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert (triggered[3:29] == 0.5).all()


def linear_surrogate():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))


def test_label_consistent_perturbs_within_eps_and_poisons_the_target_class_only():
    with torch.random.fork_rng():
        model = linear_surrogate()
    data = training_set(AllToOne(target=7), lambda: model)
    attack = LabelConsistent(steps=3)
    poison = attack.poison(data, attack.draw((3, 32, 32), seeded()), seeded())
    assert len(poison.index) == 25  # a quarter of 100
    assert (poison.labels == 7).all()
    assert (data.labels[poison.index] == 7).all()
    clean = to_float(data.pixels[poison.index])
    middle = (poison.images - clean)[:, :, 3:29, 3:29]
    assert 0 < middle.abs().max() <= 16 / 255 + 1e-6


def test_perturbation_raises_the_loss():
    with torch.random.fork_rng():
        model = linear_surrogate()
    images, labels = torch.rand(20, 3, 32, 32, generator=seeded()), torch.arange(20) % 10
    moved = perturb(model, images, labels, eps=0.05, steps=5, generator=seeded())
    loss = nn.CrossEntropyLoss()
    assert loss(model(moved), labels) > loss(model(images), labels) + 0.1
    assert (moved - images).abs().max() <= 0.05 + 1e-6


def test_grond_finds_a_small_perturbation_towards_the_target():
    with torch.random.fork_rng():
        model = linear_surrogate()
    data = training_set(AllToOne(target=7), lambda: model)
    attack = Grond(search_steps=20)
    poison = attack.poison(data, attack.draw((3, 32, 32), seeded()), seeded())
    assert len(poison.index) == 50  # half of 100
    assert (poison.labels == 7).all()
    perturbation = poison.learned["perturbation"]
    assert perturbation.abs().max() <= 8 / 255 + 1e-6
    others = to_float(data.pixels[data.labels != 7])
    before = (model(others).argmax(1) == 7).float().mean()
    after = (model(attack.apply(others, poison.learned, seeded())).argmax(1) == 7).float().mean()
    assert after > before + 0.5


def test_smoothing_changes_the_outlying_channel_alone():
    convolution, norm = nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20)
    with torch.no_grad():
        convolution.weight.fill_(0.1)
        convolution.weight[4] = 5.0
        norm.weight.copy_(torch.arange(20.0) / 19)
        norm.weight[4] = 1.0
    mean = norm.weight.mean().item()
    before = norm.weight.clone()
    assert smooth_outliers(nn.Sequential(convolution, norm), 3.0) == 1
    assert abs(norm.weight[4].item() - mean) < 1e-6
    others = torch.arange(20) != 4
    assert torch.equal(norm.weight[others], before[others])


def test_choice_takes_a_share_of_the_candidates_and_at_least_one():
    candidates = torch.arange(100) % 2 == 0
    chosen = choose(candidates, 0.1, seeded())
    assert len(chosen) == 5
    assert candidates[chosen].all()
    assert len(choose(candidates, 0.001, seeded())) == 1
    assert len(choose(torch.zeros(10, dtype=torch.bool), 0.5, seeded())) == 0


def test_covers_are_disjoint_from_poisoned_images():
    poisoned = torch.arange(0, 60)
    covers = choose_covers(100, poisoned, 0.3, seeded())
    assert len(covers) == 30
    assert not torch.isin(covers, poisoned).any()
