"""Inpainting in the pipeline: known pixels stay exactly, and bad input is refused before any work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model
from PIL import Image
from torch import Tensor

from cdrl_infer.errors import InputError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.sampler import CooperativeSampler, LevelEnd

GREY = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
MASK = np.zeros((8, 8), dtype=np.uint8)
MASK[2:6, 3:8] = 1
PAINTED = torch.from_numpy(MASK).bool()


def tensor(output: Any) -> Tensor:
    assert isinstance(output.images, Tensor)
    return output.images


@pytest.fixture(scope="module")
def colour_pipe() -> CDRLPipeline:
    return CDRLPipeline(make_model(("cat", "dog"), ("day", "night"), channels=3))


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_known_pixels_are_the_images_exactly(pipe: CDRLPipeline, kind: Any) -> None:
    out = pipe.inpaint(Image.fromarray(GREY), MASK, num_images=3, output_type=kind)
    known = ~PAINTED.numpy()
    for k in range(3):
        if kind == "pil":
            picture = out.images[k]
            assert isinstance(picture, Image.Image) and picture.mode == "L"
            assert np.array_equal(np.asarray(picture)[known], GREY[known])
        else:
            values = np.asarray(out.images[k]).reshape(8, 8)
            assert np.array_equal(values[known], GREY[known].astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_known_pixels_in_colour(colour_pipe: CDRLPipeline, kind: Any) -> None:
    colours = np.random.default_rng(1).random((8, 8, 3), dtype=np.float32)
    out = colour_pipe.inpaint(colours, PAINTED, seeds=[5, 6], output_type=kind)
    known = ~PAINTED.numpy()
    for image in out.images:
        if kind == "pil":
            expected = np.round(255 * colours[known]).astype(np.uint8)
            assert np.array_equal(np.asarray(image)[known], expected)
        else:
            values = np.asarray(image)
            values = np.moveaxis(values, 0, -1) if kind == "pt" else values
            assert np.array_equal(values[known], colours[known])


def test_the_ways_to_give_an_image_and_a_mask_agree(pipe: CDRLPipeline) -> None:
    unit = torch.from_numpy(GREY).float() / 255
    wanted = tensor(pipe.inpaint(GREY, MASK, seeds=[1], output_type="pt"))
    images = [
        Image.fromarray(GREY),
        GREY[..., None],
        GREY[None, ..., None],
        unit[None],
        unit.numpy(),
    ]
    images += [unit[None, None].double(), [GREY], torch.from_numpy(GREY)[None]]
    masks = [
        Image.fromarray(255 * MASK),
        Image.fromarray(255 * MASK).convert("1"),
        PAINTED,
        255 * MASK,
    ]
    masks += [PAINTED[None], PAINTED[None, None], PAINTED.numpy(), MASK.astype(float), [MASK]]
    for image in images:
        assert torch.equal(tensor(pipe.inpaint(image, MASK, seeds=[1], output_type="pt")), wanted)
    for mask in masks:
        assert torch.equal(tensor(pipe.inpaint(GREY, mask, seeds=[1], output_type="pt")), wanted)


def test_the_mask_is_painted_and_each_seed_paints_another_thing(pipe: CDRLPipeline) -> None:
    images = tensor(pipe.inpaint(GREY, MASK, seeds=range(6), output_type="pt"))[:, 0]
    for i in range(6):
        assert (images[i][PAINTED] - torch.from_numpy(GREY)[PAINTED] / 255).abs().max() > 1e-2
        for j in range(i):
            assert (images[i][PAINTED] - images[j][PAINTED]).abs().max() > 1e-2
    again = tensor(pipe.inpaint(GREY, MASK, seeds=range(6), output_type="pt"))[:, 0]
    assert torch.equal(images, again)


def test_what_was_under_the_mask_does_not_matter(pipe: CDRLPipeline) -> None:
    other = np.where(MASK, 255 - GREY, GREY)
    first, second = (
        tensor(pipe.inpaint(image, MASK, seeds=[3], output_type="pt")) for image in (GREY, other)
    )
    assert torch.equal(first, second)


def test_what_is_around_the_mask_does(pipe: CDRLPipeline) -> None:
    other = np.where(MASK, GREY, 255 - GREY)
    first, second = (
        tensor(pipe.inpaint(image, MASK, seeds=[3], output_type="pt"))[0, 0][PAINTED]
        for image in (GREY, other)
    )
    assert (first - second).abs().max() > 1e-2


@pytest.mark.parametrize("batch_size", [1, 2])
def test_images_and_masks_one_for_each_sample(pipe: CDRLPipeline, batch_size: int) -> None:
    images = [GREY, 255 - GREY, GREY.T.copy()]
    masks = [MASK, MASK.T.copy(), 1 - MASK]
    labels = ["Bag", None, "Shirt"]
    whole = tensor(
        pipe.inpaint(images, masks, class_labels=labels, seeds=[7, 8, 9], output_type="pt")
    )
    parts = tensor(
        pipe.inpaint(
            *(images, masks),
            class_labels=labels,
            seeds=[7, 8, 9],
            output_type="pt",
            batch_size=batch_size,
        )
    )
    assert (whole - parts).abs().max() <= 1 / 255
    for k in range(3):
        known = torch.from_numpy(masks[k]) == 0
        expected = torch.from_numpy(images[k]).float() / 255
        assert torch.equal(whole[k, 0][known], expected[known])
        alone = pipe.inpaint(
            images[k], masks[k], class_labels=[labels[k]], seeds=[7 + k], output_type="pt"
        )
        assert (whole[k] - tensor(alone)[0]).abs().max() <= 1 / 255
    several_masks = pipe.inpaint(GREY, np.stack(masks), seeds=7, output_type="pt")
    assert len(tensor(several_masks)) == 3
    assert (
        tensor(several_masks)[0] - tensor(pipe.inpaint(GREY, MASK, seeds=7, output_type="pt"))[0]
    ).abs().max() <= 1 / 255


def test_known_pixels_are_held_at_every_level(pipe: CDRLPipeline) -> None:
    """The callback sees the noised image there, proposal and refinement alike; noise fades."""
    ends: list[LevelEnd] = []
    pipe.inpaint(GREY, MASK, seeds=[1], callback_on_level_end=lambda end, _: ends.append(end))
    image = torch.from_numpy(GREY).float() / 127.5 - 1
    distances = []
    for end in ends:
        assert torch.equal(end.proposal[0, 0][~PAINTED], end.refined[0, 0][~PAINTED])
        alpha = pipe.model.schedule.level(end.t).alpha
        distances.append(float((end.refined[0, 0] - alpha * image)[~PAINTED].std()))
        sigma = float(pipe.model.schedule.level(end.t).sigma_bar)
        assert distances[-1] == pytest.approx(sigma, rel=0.5)
    assert distances == sorted(distances, reverse=True)


def test_labels_guidance_and_expressions(colour_pipe: CDRLPipeline) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)

    def painted(**options: Any) -> Tensor:
        out = colour_pipe.inpaint(picture, MASK, seeds=[2], output_type="pt", **options)
        return tensor(out)

    plain = painted(class_labels=[("dog", None)])
    guided = painted(class_labels=[("dog", None)], guidance_scale=3)
    composed = painted(expression="dog", guidance_scale=3)
    assert (guided - composed).abs().max() < 1e-3
    assert (guided - plain).abs().max() > 1e-2
    concept = colour_pipe.concept("dog") | colour_pipe.concept("night")
    assert (painted(expression=concept) - painted()).abs().max() > 1e-2
    out = colour_pipe.inpaint(picture, MASK, expression=concept)
    assert (out.info.expression, out.labels) == ("dog | night", None)


@pytest.mark.parametrize("sampler", ["mala", "hmc"])
def test_exact_samplers_paint_too(pipe: CDRLPipeline, sampler: Any) -> None:
    out = pipe.inpaint(GREY, MASK, num_images=2, kernel=sampler, output_type="pt")
    expected = torch.from_numpy(GREY).float() / 255
    assert torch.equal(tensor(out)[1, 0][~PAINTED], expected[~PAINTED])
    assert out.info.acceptance.shape == (2, 3) and bool((out.info.acceptance > 0).any())


def test_pictures_are_resized_where_asked(pipe: CDRLPipeline) -> None:
    large = Image.fromarray(GREY).resize((20, 12), Image.Resampling.BILINEAR)
    mask = Image.fromarray(255 * MASK).resize((16, 16), Image.Resampling.NEAREST)
    out = pipe.inpaint(large, mask, resize=True, seeds=[1], output_type="pt")
    fitted = np.array(large.resize((8, 8), Image.Resampling.LANCZOS))
    expected = torch.from_numpy(fitted).float() / 255
    assert torch.equal(tensor(out)[0, 0][~PAINTED], expected[~PAINTED])
    for image, painted in ((large, MASK), (GREY, mask)):
        with pytest.raises(InputError, match=r"8 x 8 pixels .* got \d+ x \d+; resize=True"):
            pipe.inpaint(image, painted)
    with pytest.raises(InputError, match="expected images of 1 channels, 8 x 8, got shape"):
        pipe.inpaint(np.zeros((12, 20)), MASK, resize=True)  # arrays are never resized


NAN = np.full((8, 8), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.ones((7, 8))}, r"expected a mask of 8 x 8 like the image, got shape \(7, 8\)"),
        ({"mask": np.ones((8, 8, 3))}, r"a mask of 8 x 8 like the image, got shape \(8, 8, 3\)"),
        ({"mask": np.ones((2, 3, 8, 8))}, r"got shape \(2, 3, 8, 8\)"),
        ({"mask": np.zeros((8, 8))}, "a mask is empty: expected some pixels to paint"),
        ({"mask": Image.new("L", (8, 8), 127)}, "a mask is empty"),
        ({"mask": [MASK, 0 * MASK]}, "a mask is empty"),
        ({"mask": 7 * MASK}, "expected a mask of bool, of 0 and 1, or of 0 and 255, got other"),
        ({"mask": 0.5 * MASK}, "of 0 and 255, got other values"),
        ({"mask": NAN}, "of 0 and 255, got other values"),
        ({"mask": []}, "at least one mask, got an empty list"),
        ({"mask": None}, "expected a mask as picture, path, array or tensor, got NoneType"),
        ({"mask": MASK.astype(object)}, "expected an array of numbers, got an array of object"),
        ({"image": NAN}, r"expected finite values in \[0, 1\], got values outside"),
        ({"image": GREY / 128}, r"expected finite values in \[0, 1\], got values outside"),
        ({"image": -(GREY / 256)}, r"expected finite values in \[0, 1\], got values outside"),
        (
            {"image": GREY.astype(np.int32)},
            r"expected uint8 or floats in \[0, 1\], got torch.int32",
        ),
        ({"image": GREY.astype(object)}, "expected an array of numbers, got an array of object"),
        ({"image": GREY.astype(str)}, "expected an array of numbers, got an array of <U"),
        ({"image": GREY[:7]}, r"expected images of 1 channels, 8 x 8, got shape \(7, 8\)"),
        ({"image": np.zeros((8, 8, 5))}, r"got shape \(8, 8, 5\); .* pictures can be resized"),
        ({"image": np.zeros((0, 8, 8, 1))}, "expected at least one image"),
        ({"image": np.zeros(64)}, r"got shape \(64,\)"),
        ({"image": Image.new("RGB", (8, 8), "red")}, "expected a grey picture, got colours; grey="),
        (
            {"image": Image.new("RGBA", (8, 8))},
            "an opaque picture, got transparent pixels; paste it",
        ),
        ({"image": Image.new("I;16", (8, 8))}, "expected 8 bits per channel, got mode 'I;16'"),
        (
            {"image": Image.new("L", (9, 8))},
            "expected a picture of 8 x 8 .* got 9 x 8; resize=True",
        ),
        ({"image": []}, "at least one image, got none"),
        ({"image": "image.png"}, "image.png cannot be read as an image: No such file"),
        (
            {"image": [GREY, GREY, GREY], "mask": [MASK, MASK]},
            "expected 3 masks, one per image, got 2",
        ),
        ({"image": [GREY, GREY], "num_images": 3}, "expected 3 images, one per image, got 2"),
        ({"image": [GREY, GREY], "seeds": [1]}, "expected 2 seeds, one per image, got 1"),
        ({"expression": "bag", "class_labels": "Bag"}, "or an expression, got both; leave one out"),
        ({"expression": "bag", "guidance_scale": 0}, "must be positive for an expression, got 0"),
        ({"expression": "bagg"}, "unknown concept 'bagg'"),
        ({"class_labels": "Bagg"}, "unknown attribute 0 'Bagg'"),
        ({"guidance_scale": 2}, "guidance_scale 2 needs class_labels"),
    ],
)
def test_bad_input_is_told_before_any_work(
    pipe: CDRLPipeline, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(CooperativeSampler, "sample", lambda *a, **k: pytest.fail("sampled"))
    with pytest.raises(InputError, match=message) as caught:
        pipe.inpaint(**{"image": GREY, "mask": MASK} | change)
    assert "\n" not in str(caught.value)


def test_pictures_that_lose_nothing_become_colour(colour_pipe: CDRLPipeline) -> None:
    grey = Image.fromarray(GREY)
    for picture in (grey, grey.convert("P"), grey.convert("RGB"), grey.convert("RGBA")):
        out = colour_pipe.inpaint(picture, MASK, seeds=[1])
        assert np.array_equal(np.asarray(out.images[0])[MASK == 0][:, 1], GREY[MASK == 0])
