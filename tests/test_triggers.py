"""Pictures of recovered triggers, by hand."""

import torch

from banaudit.triggers import change_pictures, patch_pictures, picture_of_change, pixels


def test_pixels_are_rounded_and_cut_off():
    image = torch.tensor([-0.5, 0.0, 0.5, 2.0]).view(1, 2, 2)
    assert pixels(image).tolist() == [[0, 0], [128, 255]]
    colour = pixels(image.expand(3, 2, 2))
    assert colour.shape == (2, 2, 3)
    assert colour.flags["C_CONTIGUOUS"]


def test_a_change_is_amplified_about_grey():
    change = torch.zeros(3, 2, 2)
    change[0, 0, 0], change[1, 1, 1] = 0.05, -0.025
    picture = picture_of_change(change, "difference")
    assert picture.shows == "what changes, times 10; grey: nothing"
    assert picture.pixels[0, 0].tolist() == [255, 128, 128]
    assert picture.pixels[1, 1].tolist() == [128, 64, 128]


def test_no_change_is_grey():
    assert set(picture_of_change(torch.zeros(1, 4, 4), "difference").pixels.flatten()) == {128}


def test_a_patch_stands_alone_on_grey():
    mask, pattern = torch.zeros(1, 2, 2), torch.ones(3, 2, 2)
    mask[0, 0, 0] = 1.0
    clean = torch.zeros(3, 2, 2)
    pictures = {
        item.name: item.pixels for item in patch_pictures(mask, pattern, clean, (1 - mask) * clean + mask * pattern)
    }
    assert list(pictures) == ["pattern", "mask", "clean", "triggered"]
    assert pictures["pattern"][..., 0].tolist() == [[255, 128], [128, 128]]
    assert pictures["mask"].tolist() == [[255, 0], [0, 0]]
    assert pictures["clean"].max() == 0
    assert pictures["triggered"][..., 2].tolist() == [[255, 0], [0, 0]]


def test_a_mask_for_each_channel_is_shown_in_colour():
    mask = torch.stack((torch.ones(2, 2), torch.zeros(2, 2), torch.zeros(2, 2)))
    shown = patch_pictures(mask, torch.ones(3, 2, 2), torch.zeros(3, 2, 2), mask)[1]
    assert shown.pixels[0, 0].tolist() == [255, 0, 0]


def test_a_change_of_one_image_comes_with_the_image():
    names = [item.name for item in change_pictures(torch.zeros(3, 2, 2), torch.full((3, 2, 2), 0.1))]
    assert names == ["clean", "triggered", "difference"]
