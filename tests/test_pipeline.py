"""The pipeline: same bits for the same call, whatever the batch, output type or device."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import CheckpointError, InputError, NumericalError
from cdrl_infer.images import to_unit
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.model import CDRLModel, SamplerDefaults
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.proposals import InitializerProposal
from cdrl_infer.random import PerImageRandom
from cdrl_infer.sampler import CooperativeSampler, LevelEnd

LABELS = ["Bag", 0, None, 2, "Sneaker", "Shirt"]


def pixels(pipe: CDRLPipeline, **arguments: Any) -> torch.Tensor:
    images = pipe(output_type="pt", **arguments).images
    assert isinstance(images, torch.Tensor)
    return images


def test_same_call_same_bits(pipe: CDRLPipeline) -> None:
    first, second = (pipe(class_labels=LABELS, seeds=range(6)) for _ in range(2))
    assert [a.tobytes() for a in first.images] == [b.tobytes() for b in second.images]
    assert torch.equal(first.energies, second.energies)
    assert first.seeds == [0, 1, 2, 3, 4, 5]
    assert first.labels == ["Bag", "Shirt", None, "Bag", "Sneaker", "Shirt"]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_an_image_does_not_depend_on_its_batch(pipe: CDRLPipeline, batch_size: int) -> None:
    whole = pipe(class_labels=LABELS, seeds=range(6), output_type="pt")
    parts = pipe(class_labels=LABELS, seeds=range(6), output_type="pt", batch_size=batch_size)
    assert (whole.images - parts.images).abs().max() <= 1 / 255
    torch.testing.assert_close(whole.energies, parts.energies, rtol=1e-4, atol=1e-3)
    alone = pixels(pipe, class_labels=["Sneaker"], seeds=[4])
    assert (whole.images[4] - alone[0]).abs().max() <= 1 / 255


def test_energies_are_finite_and_belong_to_their_images(pipe: CDRLPipeline) -> None:
    energies = pipe(class_labels=LABELS, seeds=[3, 1, 3, 1, 3, 1]).energies
    assert energies.shape == (6,) and energies.dtype == torch.float32
    assert energies.isfinite().all()
    swapped = pipe(class_labels=LABELS[::-1], seeds=[1, 3, 1, 3, 1, 3]).energies
    torch.testing.assert_close(energies.flip(0), swapped, rtol=1e-4, atol=1e-3)
    assert len({round(e, 1) for e in energies.tolist()}) >= 5  # labels and seeds both matter


def test_seeds_labels_and_steps_matter(pipe: CDRLPipeline) -> None:
    base = pixels(pipe, class_labels=["Bag"], seeds=[0])
    for other in (
        {"class_labels": ["Bag"], "seeds": [1]},
        {"class_labels": ["Shirt"], "seeds": [0]},
        {"class_labels": [None], "seeds": [0]},
        {"class_labels": ["Bag"], "seeds": [0], "langevin_steps": 3},
        {"class_labels": ["Bag"], "seeds": [0], "langevin_steps": [2, 2, 0]},
    ):
        assert (base - pixels(pipe, **other)).abs().max() > 1e-3, other
    per_level = pixels(pipe, class_labels=["Bag"], seeds=[0], langevin_steps=[2, 2, 2])
    assert torch.equal(base, per_level)


def test_no_steps_leave_the_proposal(pipe: CDRLPipeline) -> None:
    def check(end: LevelEnd, first: int) -> None:
        assert torch.equal(end.proposal, end.refined)

    pipe(seeds=[0], langevin_steps=0, callback_on_level_end=check)


def test_save_and_load_give_the_same_images_bit_for_bit(pipe: CDRLPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "again")
    again = CDRLPipeline.from_pretrained(tmp_path / "again")
    assert again.name == "again"
    call = {"class_labels": LABELS, "seeds": range(6)}
    assert torch.equal(pixels(pipe, **call), pixels(again, **call))


def test_output_types_show_the_same_images(pipe: CDRLPipeline) -> None:
    call: dict[str, Any] = {"class_labels": "Bag", "num_images": 3, "seeds": 5, "batch_size": 2}
    pil, array, tensor = (pipe(output_type=t, **call).images for t in ("pil", "np", "pt"))
    assert isinstance(array, np.ndarray) and isinstance(tensor, torch.Tensor)
    assert array.shape == (3, 8, 8, 1) and tensor.shape == (3, 1, 8, 8)
    assert array.dtype == np.float32 and tensor.dtype == torch.float32
    assert array.min() >= 0 and array.max() <= 1
    assert np.array_equal(array[..., 0], tensor[:, 0].numpy())
    assert isinstance(pil, list) and [image.mode for image in pil] == ["L"] * 3
    stacked = np.stack([np.asarray(image) for image in pil]).astype(np.float32)
    assert np.abs(stacked - 255 * array[..., 0]).max() <= 0.5 + 1e-3


def test_colour_pictures_and_several_attributes() -> None:
    pipe = CDRLPipeline(make_model(("cat", "dog"), ("day", "night"), channels=3))
    out = pipe(class_labels=[("dog", "night"), (0, None), None], seeds=range(3))
    assert [image.mode for image in out.images] == ["RGB"] * 3
    assert out.labels == [("dog", "night"), ("cat", None), (None, None)]
    with pytest.raises(InputError, match=r"expected 2 labels for image 0 \(attribute 0, attrib"):
        pipe(class_labels=["dog"])
    with pytest.raises(InputError, match=r"unknown attribute 1 'nigth', .*did you mean 'night'"):
        pipe(class_labels=[("dog", "nigth")])


def test_channels_without_a_picture_mode() -> None:
    pipe = CDRLPipeline(make_model(channels=2))
    assert pixels(pipe, seeds=[0]).shape == (1, 2, 8, 8)
    with pytest.raises(
        InputError, match="pictures have 1 or 3 channels, but this model's images have 2"
    ):
        pipe(seeds=[0])


def test_unconditional_model() -> None:
    pipe = CDRLPipeline(make_model())
    assert pipe(seeds=[1]).labels is None
    assert pipe(seeds=[1], class_labels=[None]).labels is None
    with pytest.raises(InputError, match="the model is unconditional, got class_labels"):
        pipe(class_labels=["Bag"])


def test_number_of_images_follows_the_arguments(pipe: CDRLPipeline) -> None:
    assert len(pipe().images) == 1
    assert len(pipe(class_labels=["Bag", "Bag"]).images) == 2
    assert len(pipe(seeds=(9, 8, 7)).images) == 3
    assert pipe(num_images=2, seeds=40).seeds == [40, 41]
    assert pipe(num_images=2, class_labels=1).labels == ["Sneaker"] * 2
    assert pipe(class_labels=torch.tensor([2, 0]), seeds=np.array([3, 4])).labels == [
        "Bag",
        "Shirt",
    ]


def test_new_seeds_are_reported_and_reproduce(pipe: CDRLPipeline) -> None:
    out = pipe(num_images=2, output_type="pt")
    assert out.seeds is not None and out.seeds != pipe(num_images=2).seeds
    assert torch.equal(out.images, pixels(pipe, seeds=out.seeds))


def test_generators(pipe: CDRLPipeline) -> None:
    def made(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    assert torch.equal(pixels(pipe, generator=made(4, 5)), pixels(pipe, seeds=[4, 5]))
    assert pipe(generator=made(4, 5)).seeds is None
    out = pipe(generator=made(7)[0], num_images=3, output_type="pt")
    assert out.seeds == pipe(generator=made(7)[0], num_images=3).seeds
    assert torch.equal(out.images, pixels(pipe, seeds=out.seeds))
    one = made(1)[0]
    for bad, message in (
        ({"generator": made(1), "seeds": [1]}, "seeds or generator, got both"),
        ({"generator": [one, one]}, "another generator for each image"),
        ({"generator": [1, 2]}, "must be a torch.Generator"),
        ({"generator": 5}, "must be a torch.Generator, got 5"),
        ({"generator": made(1, 2), "num_images": 3}, "expected 3 generator, one per image, got 2"),
    ):
        with pytest.raises(InputError, match=message):
            pipe(**bad)


def test_largest_seed(pipe: CDRLPipeline) -> None:
    assert pipe(seeds=[2**32 - 1]).seeds == [2**32 - 1]


def test_callback_sees_every_level_of_every_batch(pipe: CDRLPipeline) -> None:
    seen = []

    def watch(end: LevelEnd, first: int) -> None:
        seen.append((first, end.t, len(end.refined)))

    pipe(num_images=3, batch_size=2, callback_on_level_end=watch)
    assert seen == [(0, 3, 2), (0, 2, 2), (0, 1, 2), (2, 3, 1), (2, 2, 1), (2, 1, 1)]


def test_memory_does_not_grow_with_the_number_of_batches(pipe: CDRLPipeline) -> None:
    alive = []

    def watch(end: LevelEnd, first: int) -> None:
        if end.t == 1:
            gc.collect()
            alive.append(sum(type(o) is torch.Tensor for o in gc.get_objects()))

    pipe(num_images=5, batch_size=1, callback_on_level_end=watch, output_type="pt")
    assert len(alive) == 5
    assert alive[4] == alive[1]  # the first batch has no predecessor whose last tensors linger


def test_the_model_says_how_to_sample(model: CDRLModel) -> None:
    model.sampler = SamplerDefaults(langevin_steps=(3, 1, 2), step_scale=0.5, score_scale=2.0)
    labels = torch.tensor([[3], [0]])  # Bag, not given
    expected = CooperativeSampler(model.schedule, [3, 1, 2], Langevin(), 0.5, 2.0).sample(
        NeuralEnergy(model.ebm, labels),
        InitializerProposal(model.initializer, labels),
        PerImageRandom.from_seeds([8, 9], "cpu"),
        (1, 8, 8),
    )
    out = CDRLPipeline(model)(class_labels=["Bag", None], seeds=[8, 9], output_type="pt")
    torch.testing.assert_close(out.images, to_unit(expected.samples), rtol=0, atol=1e-4)
    torch.testing.assert_close(out.energies, expected.energies, rtol=1e-4, atol=1e-3)


def test_nan_stops_the_sampling_with_the_image_named(folder: Path) -> None:
    pipe = CDRLPipeline.from_pretrained(folder)
    with torch.no_grad():
        pipe.model.ebm.backbone.labels.tables[0].weight[3] = float("nan")  # Bag
    assert pipe(class_labels=["Shirt"]).energies.isfinite().all()
    with pytest.raises(NumericalError, match="at transition 3, images 2; expected finite"):
        pipe(class_labels=["Shirt", "Shirt", "Bag"], batch_size=2)


def test_progress_is_shown_on_a_terminal_only(
    pipe: CDRLPipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe(num_images=1)
    pipe(num_images=1, progress=False)
    assert capfd.readouterr() == ("", "")
    pipe(num_images=3, batch_size=2, progress=True)
    assert "6/6" in capfd.readouterr().err


def test_networks_are_frozen_in_eval_mode_and_channels_last(pipe: CDRLPipeline) -> None:
    for network in (pipe.model.ebm, pipe.model.initializer):
        assert not network.training
        for parameter in network.parameters():
            assert not parameter.requires_grad
            if parameter.ndim == 4:
                assert parameter.is_contiguous(memory_format=torch.channels_last)


def test_devices(pipe: CDRLPipeline) -> None:
    assert pipe.to("cpu") is pipe
    assert pipe.device == torch.device("cpu")
    bits = pixels(pipe, seeds=[0], draw_on="device")
    assert torch.equal(bits, pixels(pipe, seeds=[0]))
    for device in ("gpu", "cuda:99", "meta", "hpu"):
        with pytest.raises(InputError, match=f"device '{device}' cannot be used here .*try 'cpu'"):
            pipe.to(device)
    assert pipe.device == torch.device("cpu")


def test_unknown_model() -> None:
    with pytest.raises(CheckpointError, match="no model 'nowhere': expected a folder, or one of"):
        CDRLPipeline.from_pretrained("nowhere")
