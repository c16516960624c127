"""WaNet, Bpp, IAD and SSDT: formulas and the make-up of their batches."""

import torch

from banaudit.bench.attacks import IAD, SSDT, Bpp, WaNet
from banaudit.bench.attacks.generators import TriggerGenerator, diversity_penalty, harden, stamp
from banaudit.bench.attacks.labelling import AllToAll, AllToOne, SourceTarget


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_wanet_grid_is_the_identity_plus_a_scaled_field():
    attack = WaNet(grid_size=2)
    grid = attack.draw((3, 5, 5), seeded(3))["grid"]
    # On a 2 x 2 grid the enlarged field equals the coarse one at the corners; only there is the clamp at work.
    coarse = 2 * torch.rand(1, 2, 2, 2, generator=seeded(3)) - 1
    coarse = coarse / coarse.abs().mean()
    corner = torch.tensor([-1.0, -1.0]) + 0.5 / 5 * coarse[0, :, 0, 0]
    assert torch.allclose(grid[0, 0, 0], corner.clamp(-1, 1), atol=1e-6)
    assert grid.shape == (1, 5, 5, 2)
    assert grid.abs().max() <= 1


def test_wanet_samples_x_before_y():
    images = torch.arange(25.0).view(1, 1, 5, 5) / 25
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 5), indexing="ij")
    shifted = torch.stack(((columns + 0.5).clamp(-1, 1), rows), dim=-1)[None]  # one pixel to the right
    triggered = WaNet().apply(images, {"grid": shifted}, seeded())
    assert torch.allclose(triggered[0, 0, :, :4], images[0, 0, :, 1:])


def test_wanet_moves_pixels_by_less_than_two_on_average():
    grid = WaNet().draw((3, 32, 32), seeded())["grid"]
    identity = WaNet(strength=1e-9).draw((3, 32, 32), seeded())["grid"]
    pixels = (grid - identity).abs() * 31 / 2
    assert 0.05 < pixels.mean() < 2


def test_wanet_batch_has_warped_then_jittered_then_clean_images():
    attack = WaNet()
    images = torch.rand(100, 3, 32, 32, generator=seeded())
    labels = torch.arange(100) % 10
    tensors = attack.draw((3, 32, 32), seeded())
    batch = attack.poisoner(tensors, AllToOne(target=4), 10, seeded()).poison(images, labels)
    assert torch.equal(batch.images[:10], attack.apply(images[:10], tensors, seeded()))
    assert (batch.labels[:10] == 4).all()
    jittered = (batch.images[10:30] != images[10:30]).flatten(1).any(dim=1)
    assert jittered.all()
    assert not torch.equal(batch.images[10:30], attack.apply(images[10:30], tensors, seeded()))
    assert torch.equal(batch.images[30:], images[30:])
    assert torch.equal(batch.labels[10:], labels[10:])


def test_bpp_rounds_to_eight_levels():
    images = torch.tensor([0.0, 0.07, 0.08, 0.5, 0.93, 1.0]).view(1, 1, 2, 3)
    triggered = Bpp().apply(images, {}, seeded()).flatten() * 7
    assert torch.allclose(triggered, torch.tensor([0.0, 0.0, 1.0, 4.0, 7.0, 7.0]))  # 3.5 rounds to the even 4


def test_bpp_dithering_passes_the_error_on():
    images = torch.full((1, 1, 1, 4), 0.4)
    triggered = Bpp(levels=2, dithering=True).apply(images, {}, seeded()).flatten()
    # 0.4 -> 0, error 0.4 * 7/16 = 0.175; 0.575 -> 1, error -0.1859; 0.2141 -> 0, 0.0937; 0.4937 -> 0
    assert triggered.tolist() == [0, 1, 0, 0]
    large = torch.full((1, 1, 32, 32), 0.3)
    assert abs(Bpp(levels=2, dithering=True).apply(large, {}, seeded()).mean().item() - 0.3) < 0.02


def test_bpp_batch_has_rounded_then_negative_then_clean_images():
    images = torch.rand(50, 3, 8, 8, generator=seeded())
    labels = torch.arange(50) % 10
    batch = Bpp().poisoner({}, AllToAll(), 10, seeded()).poison(images, labels)
    assert torch.equal(batch.images[:10], Bpp().apply(images[:10], {}, seeded()))
    assert torch.equal(batch.labels[:10], (labels[:10] + 1) % 10)
    residuals = batch.images[10:20] - images[10:20]
    assert 0 < residuals.abs().max() <= 1 / 14 + 1e-6  # half a level
    assert torch.equal(batch.images[20:], images[20:])
    assert torch.equal(batch.labels[10:], labels[10:])


def test_mask_is_hardened_around_one_half():
    hard = harden(torch.tensor([0.0, 0.45, 0.5, 0.55, 1.0]))
    assert torch.allclose(hard, torch.tensor([0.0, 0.1192, 0.5, 0.8808, 1.0]), atol=1e-4)


def test_stamp_takes_the_pattern_where_the_mask_is_one():
    images, patterns = torch.full((1, 3, 2, 2), 0.2), torch.full((1, 3, 2, 2), 0.8)
    masks = torch.tensor([[[[0.0, 1.0], [0.5, 0.0]]]])
    assert torch.allclose(stamp(images, patterns, masks)[0, 2], torch.tensor([[0.2, 0.8], [0.5, 0.2]]))


def test_diversity_penalty_is_the_ratio_of_distances():
    images, others = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.6)
    made, made_of_others = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.3)
    assert abs(diversity_penalty(images, others, made, made_of_others).item() - 2) < 1e-3


def test_diversity_penalty_has_a_finite_gradient_where_triggers_are_equal():
    made = torch.zeros(2, 1, 4, 4, requires_grad=True)
    diversity_penalty(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4), made, made.flip(0)).backward()
    assert torch.isfinite(made.grad).all()


def test_generators_serve_sizes_that_halve_less_often():
    for shape in ((3, 32, 32), (1, 28, 28), (3, 9, 9)):
        made = TriggerGenerator(shape, 4, shape[0])(torch.rand(2, *shape))
        assert made.shape == (2, *shape)
        assert 0 <= made.min() <= made.max() <= 1


def test_the_mask_becomes_sparse():
    attack = IAD(width=4, mask_epochs=6)
    generator = seeded(1)
    tensors = attack.draw((1, 16, 16), generator)
    pixels = torch.randint(256, (256, 1, 16, 16), generator=generator, dtype=torch.uint8)
    images = pixels[:64].float() / 255
    poisoner = attack.poisoner(tensors, AllToOne(), 10, generator)

    def changed(weights):
        return (attack.apply(images, weights, generator) != images).float().mean()

    before = (attack.apply(images, tensors, generator) - images).abs().mean()
    poisoner.prepare(pixels)
    after = (attack.apply(images, poisoner.tensors(), generator) - images).abs().mean()
    assert after < before / 2


def test_ssdt_triggers_all_of_the_source_class_and_some_others_with_their_own_label():
    attack = SSDT(width=4, mask_epochs=0)
    generator = seeded(2)
    labelling = SourceTarget(source=3, target=1)
    poisoner = attack.poisoner(attack.draw((3, 16, 16), generator), labelling, 10, generator)
    images, labels = torch.rand(60, 3, 16, 16, generator=generator), torch.arange(60) % 10
    poisoner.prepare((images * 255).to(torch.uint8))
    batch = poisoner.poison(images, labels)
    assert (batch.labels[:6] == 1).all()  # six images of class 3
    assert torch.equal(batch.labels[6:12], labels[labels != 3][:6])  # a tenth of the batch
    assert torch.equal(batch.labels[12:54], labels[12:54])
    assert torch.equal(batch.images[12:54], images[12:54])
    assert torch.equal(batch.labels[54:], labels[54:])
    assert not torch.equal(batch.images[54:], images[54:])


def test_ssdt_without_an_image_to_trigger_has_no_penalty():
    attack = SSDT(width=4, mask_epochs=0, other_rate=0.0)
    generator = seeded(2)
    poisoner = attack.poisoner(attack.draw((3, 16, 16), generator), SourceTarget(source=3, target=1), 10, generator)
    images, labels = torch.rand(20, 3, 16, 16, generator=generator), torch.full((20,), 5)
    poisoner.prepare((images * 255).to(torch.uint8))
    batch = poisoner.poison(images, labels)
    assert batch.penalty is None
    assert torch.equal(batch.labels, labels)
    assert batch.images.isfinite().all()
