"""What users of diffusers and notebooks expect of a pipeline and its outputs."""

from __future__ import annotations

import copy
import inspect
import io
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, make_model
from PIL import Image

from cdrl_infer.drawing import CDRLPipelineOutput
from cdrl_infer.errors import InputError
from cdrl_infer.habits import ATTRIBUTES, CALLS, LOADING
from cdrl_infer.model import CDRLModel
from cdrl_infer.options import SamplingOptions
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.sampler import LevelEnd
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.scoring.features import NoisedImages, draw_noise


@pytest.fixture
def own(model: CDRLModel) -> CDRLPipeline:
    """A pipeline that a test may change."""
    return CDRLPipeline(model, "mine")


def test_repr_says_what_the_model_is(own: CDRLPipeline) -> None:
    text = repr(own)
    count = sum(p.numel() for network in own.model.networks.values() for p in network.parameters())
    for part in (
        *("CDRLPipeline 'mine'", *CLASSES, "8 x 8", "grey", "3, with K = 2"),
        *(f"{count:,}", "cpu, float32", "calibrated: no"),
    ):
        assert part in text
    assert "none: unconditional" in repr(CDRLPipeline(make_model(channels=3)))
    assert "\x1b" not in repr(CDRLPipeline(own.model, "a\x1b[2J"))


def test_components_config_and_dtype(own: CDRLPipeline) -> None:
    assert own.dtype is torch.float32
    assert own.components["ebm"] is own.model.ebm
    assert NoiseSchedule(**own.config["schedule"]).config() == own.model.schedule.config()
    own.config["image"]["height"] = 0
    own.config["training"]["images"] = 0
    assert own.config["image"]["height"] == 8 and own.model.training == {"images": 1}


@pytest.mark.parametrize("name", CALLS)
def test_foreign_names_of_calls(pipe: CDRLPipeline, name: str) -> None:
    for call in (pipe, lambda **options: pipe.compose("Bag", **options)):
        with pytest.raises(InputError, match=f"there is no option '{name}': "):
            call(**{name: 1})


def test_foreign_names_have_ours() -> None:
    for name, ours in {
        "seed": "seeds=",
        "num_inference_steps": "langevin_steps=",
        "callback_on_step_end": "callback_on_level_end=",
    }.items():
        assert ours in CALLS[name]
    assert "dtype=" in LOADING["torch_dtype"]
    known = {*inspect.signature(SamplingOptions).parameters, "class_labels", "guidance_scale"}
    assert not known & set(CALLS)
    assert not set(inspect.signature(CDRLPipeline.from_pretrained).parameters) & set(LOADING)


def test_foreign_names_elsewhere(pipe: CDRLPipeline) -> None:
    for name, hint in LOADING.items():
        with pytest.raises(InputError) as caught:
            CDRLPipeline.from_pretrained(**{name: "x"})
        assert f"{name!r}: {hint}" in str(caught.value)
    with pytest.raises(InputError, match=r"unknown option 'varient', .*did you mean 'variant'"):
        CDRLPipeline.from_pretrained(varient="fp16")
    for name, hint in ATTRIBUTES.items():
        with pytest.raises(AttributeError) as raised:
            getattr(pipe, name)
        assert hint in str(raised.value)
    assert not hasattr(pipe, "unknown")
    for call in (lambda: pipe.to(torch.float16), lambda: pipe.to("cpu", torch.float16)):
        with pytest.raises(InputError, match=r"dtype must be torch\.float32"):
            call()


def test_a_pipeline_can_be_copied(own: CDRLPipeline) -> None:
    again = copy.deepcopy(own)
    call: Any = {"seeds": [1], "output_type": "pt"}
    assert torch.equal(own(**call).images, again(**call).images)


def test_outputs_are_the_tuples_of_diffusers(pipe: CDRLPipeline) -> None:
    out = pipe(seeds=[1, 2], return_dict=False)
    assert out[0] is out.images and out["energies"] is out.energies
    images, energies, seeds, *rest = out
    assert images is out.images and energies is out.energies and seeds == [1, 2]
    assert len(rest) == 2 and len(out.to_tuple()) == 5
    with pytest.raises(KeyError):
        out["samples"]
    with pytest.raises(InputError, match="return_dict must be True or False"):
        pipe(return_dict="no")


def test_no_labels_are_the_classes_in_turn(pipe: CDRLPipeline) -> None:
    for out in (pipe(num_images=4, seeds=7), pipe(seeds=range(7, 11))):
        assert out.labels == ["Shirt", "Sneaker", "Bag", "Shirt"]
    asked = pipe(class_labels=["Shirt", "Sneaker", "Bag", "Shirt"], seeds=range(7, 11))
    assert [a.tobytes() for a in asked.images] == [b.tobytes() for b in out.images]
    assert pipe(num_images=2, class_labels=[None]).labels == [None, None]
    several = CDRLPipeline(make_model(("cat", "dog"), ("day", "night")))
    assert several(num_images=2).labels == [(None, None)] * 2
    whole, mask = np.zeros((8, 8), np.uint8), np.ones((8, 8), bool)
    assert pipe.inpaint(whole, mask, num_images=2).labels == [None, None]


def test_one_label_stands_for_all_images(pipe: CDRLPipeline) -> None:
    for labels in (["Sneaker"], "Sneaker", [1], ("sneaker",)):
        assert pipe(class_labels=labels, num_images=3).labels == ["Sneaker"] * 3
        assert pipe(class_labels=labels, seeds=[4, 5]).labels == ["Sneaker"] * 2
    with pytest.raises(InputError, match="expected 3 class_labels, one per image, got 2"):
        pipe(class_labels=["Bag", "Bag"], num_images=3)
    several = CDRLPipeline(make_model(("cat", "dog"), ("day", "night")))
    assert several(class_labels=[("dog", "NIGHT")], num_images=2).labels == [("dog", "night")] * 2
    with pytest.raises(InputError, match=r"a tuple for each image, such as \('cat', 'day'\)"):
        several(class_labels=["dog"], num_images=2)


def test_case_of_labels_is_ignored_where_it_decides_nothing() -> None:
    pipe = CDRLPipeline(make_model(("bag", "Bag", "Shirt")))
    assert pipe(class_labels=["Bag", "bag", "sHIRT"]).labels == ["Bag", "bag", "Shirt"]
    with pytest.raises(InputError, match="'BAG' could be bag, Bag; write one of these"):
        pipe(class_labels="BAG")


def test_progress_bars_can_be_chosen(own: CDRLPipeline, capfd: pytest.CaptureFixture[str]) -> None:
    own.set_progress_bar_config(desc="painting", disable=False)
    own(num_images=1)
    own.score(np.zeros((1, 8, 8), np.uint8), "energy")
    own.energy(np.zeros((1, 8, 8), np.uint8))
    own.adapt_step_scale(num_images=1, steps=3)
    bars = capfd.readouterr().err.strip().split("\n")  # a slow bar writes its end more than once
    assert len(bars) == 4 and all("painting: 100%" in bar for bar in bars) and "9/9" in bars[-1]
    own(num_images=1, progress=False)
    own.set_progress_bar_config()
    own(num_images=1)
    assert capfd.readouterr().err == ""
    with pytest.raises(InputError, match="unknown option 'colur' of a progress bar"):
        own.set_progress_bar_config(colur="red")


def check_grid(grid: Image.Image, out: CDRLPipelineOutput, columns: int) -> None:
    """Each image stands in its cell, enlarged; there is writing under it."""
    pixels = np.asarray(grid)
    rows = -(-len(out.energies) // columns)
    width, height = (grid.width - 2) // columns, (grid.height - 2) // rows
    for k, image in enumerate(out.images):
        x, y = 2 + k % columns * width, 2 + k // columns * height
        assert np.array_equal(pixels[y : y + 96 : 12, x : x + 96 : 12], np.asarray(image))
        assert (pixels[y + 96 : y + height - 2, x : x + width - 2] < 128).any()


def test_grids_have_labels_and_energies(pipe: CDRLPipeline) -> None:
    out = pipe(num_images=5, seeds=0)
    check_grid(out.grid(columns=3), out, 3)
    check_grid(Image.open(io.BytesIO(out._repr_png_() or b"")), out, 3)
    plain = out.grid(captions=False)
    assert plain.height < out.grid().height
    for kind in ("np", "pt"):
        other = pipe(num_images=5, seeds=0, output_type=kind)
        assert np.abs(np.asarray(other.grid(captions=False), int) - np.asarray(plain)).max() <= 1
    with pytest.raises(InputError, match="columns must be at least 1"):
        out.grid(columns=0)


class Figures(HTMLParser):
    """Collects the images and the texts of a page, and checks that its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.tags == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag != "br":
            self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_notebooks_show_images_with_escaped_captions() -> None:
    pipe = CDRLPipeline(make_model(("<script>alert(1)</script>", "b'c")))
    out = pipe(num_images=2, seeds=0)
    page = Figures(out._repr_html_() or "")
    assert len(page.images) == 2
    assert page.texts[0] == "2 images"
    assert page.texts[1::2] == ["<script>alert(1)</script>", "b'c"]
    assert page.texts[2::2] == [f"{energy:.1f} nats" for energy in out.energies.tolist()]
    many = Figures(pipe(num_images=102, langevin_steps=0)._repr_html_() or "")
    assert len(many.images) == 100 and many.texts[0] == "102 images, the first 100"
    composed = pipe.compose("b'c".join('""'))
    assert "1 images" in str(composed._repr_html_())


def test_what_cannot_be_shown_is_left_to_the_repr() -> None:
    out = CDRLPipeline(make_model(channels=2))(seeds=[0], output_type="pt")
    assert out._repr_png_() is None and out._repr_html_() is None
    with pytest.raises(InputError, match="1 or 3 channels"):
        out.grid()


def test_energies_are_those_of_the_scores(pipe: CDRLPipeline) -> None:
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = draw_noise(pipe.model.schedule, (1, 8, 8), 3)
    features = NoisedImages.of(pipe.model, images, noise)
    for t in (1, 2, 3):
        found = pipe.energy(images, level=t, seed=3, batch_size=2)
        torch.testing.assert_close(found.double(), features.energy(t), rtol=1e-5, atol=1e-4)
    scores = pipe.score(images, "energy", level=2).scores
    torch.testing.assert_close(pipe.energy(images, level=2).double(), scores, rtol=1e-5, atol=1e-4)


def test_energies_of_the_samplers_points(pipe: CDRLPipeline) -> None:
    """The last refined x_0 has the energy that the output reports."""
    ends: list[LevelEnd] = []
    out = pipe(num_images=3, seeds=0, callback_on_level_end=lambda end, _: ends.append(end))
    found = pipe.energy(ends[-1].refined, labels=out.labels, level=ends[-1].t, noised=True)
    torch.testing.assert_close(found, out.energies, rtol=1e-5, atol=1e-4)
    others = pipe.energy(ends[-1].refined, labels="Bag", noised=True)
    assert (others - found)[2].abs() < 1e-3 < (others - found)[:2].abs().min()


@pytest.mark.parametrize("noised", [False, True])
@pytest.mark.parametrize("level", [1, 3])
def test_gradients_are_slopes_in_what_was_given(
    pipe: CDRLPipeline, noised: bool, level: int
) -> None:
    generator = torch.Generator().manual_seed(2)
    images = 0.25 + 0.5 * torch.rand(2, 1, 8, 8, generator=generator)
    direction = torch.randn(images.shape, generator=generator)
    call: Any = {"labels": "Bag", "level": level, "noised": noised}
    _, gradient = pipe.energy_and_gradient(images, **call)
    step = 1e-2
    up, down = (pipe.energy(images + sign * step * direction, **call) for sign in (1, -1))
    slope = (up - down) / (2 * step)
    expected = (gradient * direction).flatten(1).sum(1)
    torch.testing.assert_close(slope, expected, rtol=0.02, atol=0.02)


def test_mistakes_in_energies(pipe: CDRLPipeline) -> None:
    images: Any = torch.zeros(2, 1, 8, 8)
    for bad, message in (
        ({"level": 0}, "level must lie in 1 … 3, got 0"),
        ({"labels": ["Bag"] * 3}, "expected 2 labels, one per image or one for all, got 3"),
        ({"labels": "Bga"}, "did you mean 'Bag'"),
        ({"class_labels": "Bag"}, "there is no option 'class_labels': use labels="),
        ({"levle": 1}, "unknown option 'levle'"),
        ({"noised": 2.5}, "noised must be True or False"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            pipe.energy(images, **bad)
    for wrong in (images.byte(), images[..., :4], images * torch.nan, [images], images[:0]):
        with pytest.raises(InputError, match="expected"):
            pipe.energy(wrong, noised=True)


def test_calibrating_gives_p_values(own: CDRLPipeline) -> None:
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8), np.uint8)
    with pytest.raises(InputError, match=r"is not calibrated; run .* or pipe\.calibrate\(images\)"):
        own.score(images, threshold_fpr=0.1)
    out = own.calibrate(images, data="noise", seed=4).score(images, threshold_fpr=0.1)
    assert out.seed == 4 and out.p_values is not None and out.anomalous is not None
    assert 0.03 < out.anomalous.double().mean() < 0.25
    assert "calibrated: on 80 images of noise" in repr(own)
    before = own.model.statistics
    with pytest.raises(InputError, match="at least 36 images, got 35"):
        own.calibrate(images[:35])
    assert own.model.statistics is before
