"""The pipeline: same bits for the same call, and every argument checked before any work."""

from __future__ import annotations

import gc
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import CheckpointError, InputError, NumericalError
from cdrl_infer.images import to_unit
from cdrl_infer.kernels.hmc import HMC, MALA
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.model import CDRLModel, SamplerDefaults
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.proposals import InitializerProposal
from cdrl_infer.random import PerImageRandom
from cdrl_infer.sampler import CooperativeSampler, LevelEnd
from cdrl_infer.schedule import NoiseSchedule

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
    with pytest.raises(InputError, match="pictures have 1 or 3 channels, this model's images 2"):
        pipe(seeds=[0])


def test_unconditional_model() -> None:
    pipe = CDRLPipeline(make_model())
    assert pipe(seeds=[1]).labels is None
    assert pipe(seeds=[1], class_labels=[None]).labels is None
    with pytest.raises(InputError, match="'custom' is unconditional, got class_labels"):
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
        ({"generator": [one, one]}, "a generator of its own"),
        ({"generator": [1, 2]}, "must be a torch.Generator"),
        ({"generator": 5}, "must be a torch.Generator, got 5"),
        ({"generator": made(1, 2), "num_images": 3}, "expected 3 generator, one per image, got 2"),
    ):
        with pytest.raises(InputError, match=message):
            pipe(**bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"class_labels": ["Sneakr"]},
            "'Sneakr', expected one of Shirt, Sneaker, Bag; did you mean",
        ),
        ({"class_labels": ["bag"]}, "did you mean 'Bag'"),
        (
            {"class_labels": "xyzzy"},
            "unknown attribute 0 'xyzzy', expected one of Shirt, Sneaker, Bag$",
        ),
        ({"class_labels": [3]}, r"index must lie in 0 … 2, got 3"),
        ({"class_labels": [-1]}, r"index must lie in 0 … 2, got -1"),
        ({"class_labels": [1.0]}, "class_labels must be an integer, got 1.0"),
        ({"class_labels": [True]}, "class_labels must be an integer, got True"),
        ({"class_labels": [("Bag", "Bag")]}, "expected 1 labels for image 0"),
        (
            {"class_labels": ["Bag"], "num_images": 2},
            "expected 2 class_labels, one per image, got 1",
        ),
        ({"class_labels": []}, "number of images must be at least 1"),
        ({"seeds": range(3), "num_images": 2}, "expected 2 seeds, one per image, got 3"),
        ({"seeds": [1, 2], "class_labels": ["Bag"]}, "expected 1 seeds, one per image, got 2"),
        ({"seeds": [-1]}, r"in 0 … 2\*\*32 - 1, got -1"),
        ({"seeds": [2**32]}, r"in 0 … 2\*\*32 - 1, got 4294967296"),
        ({"seeds": 2**32 - 1, "num_images": 2}, r"in 0 … 2\*\*32 - 1, got 4294967296"),
        ({"seeds": [0.5]}, "seeds must be an integer, got 0.5"),
        ({"seeds": "abc"}, "seeds must be an integer, got 'abc'"),
        ({"num_images": 0}, "num_images must be at least 1, got 0"),
        ({"num_images": 2.0}, "num_images must be an integer, got 2.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"langevin_steps": -1}, "integer of at least 0, or 3, one per transition, got -1"),
        ({"langevin_steps": [1, 2]}, r"or 3, one per transition, got \[1, 2\]"),
        ({"langevin_steps": []}, r"or 3, one per transition, got \[\]"),
        ({"langevin_steps": "many"}, "langevin_steps must be an integer, got 'many'"),
        ({"langevin_steps": 1.5}, "langevin_steps must be an integer, got 1.5"),
        ({"output_type": "pli"}, "one of pil, np, pt, got 'pli'; did you mean 'pil'"),
        ({"draw_on": "gpu"}, "draw_on must be one of cpu, device, got 'gpu'"),
    ],
)
def test_bad_arguments_are_told_before_any_work(
    pipe: CDRLPipeline, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(CooperativeSampler, "sample", lambda *a, **k: pytest.fail("sampled"))
    with pytest.raises(InputError, match=message) as caught:
        pipe(**arguments)
    assert "\n" not in str(caught.value)


def test_largest_seed(pipe: CDRLPipeline) -> None:
    assert pipe(seeds=[2**32 - 1]).seeds == [2**32 - 1]


def test_options_are_keyword_only() -> None:
    parameters = list(inspect.signature(CDRLPipeline.__call__).parameters.values())[1:]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters)


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
    with pytest.raises(NumericalError, match="at level 3, images 2; expected finite"):
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_image_is_the_same_on_cuda_within_a_grey_level(folder: Path) -> None:
    call = {"class_labels": LABELS, "seeds": range(6)}
    on_cpu = pixels(CDRLPipeline.from_pretrained(folder), **call)
    on_cuda = pixels(CDRLPipeline.from_pretrained(folder).to("cuda"), **call)
    assert (on_cpu - on_cuda).abs().max() <= 1 / 255


def test_unknown_model() -> None:
    with pytest.raises(CheckpointError, match="no model 'nowhere': expected a folder, or one of"):
        CDRLPipeline.from_pretrained("nowhere")


def test_steps_of_a_sampler_are_checked_when_it_is_made() -> None:
    schedule = NoiseSchedule(num_levels=3)
    assert [CooperativeSampler(schedule, (4, 0, 2)).steps_at(t) for t in (3, 2, 1)] == [4, 0, 2]
    for steps in (-1, [1, 2], [1, 2, 3, 4], [1, -1, 1], []):
        with pytest.raises(InputError, match="at least 0, or 3, one per transition, got") as caught:
            CooperativeSampler(schedule, steps)
        assert str(steps) in str(caught.value)


class TestSamplers:
    """``sampler=``, ``step_scale=`` and ``adapt_step_scale``."""

    def test_langevin_is_the_default_and_accepts_everything(self, pipe: CDRLPipeline) -> None:
        plain, named = (
            pipe(class_labels=LABELS, seeds=range(6), output_type="pt", batch_size=4, **options)
            for options in ({}, {"sampler": "langevin"})
        )
        assert torch.equal(torch.as_tensor(plain.images), torch.as_tensor(named.images))
        assert torch.equal(plain.info.acceptance, torch.ones(6, 3))
        assert (plain.info.sampler, plain.info.langevin_steps) == ("langevin", (2, 2, 2))
        assert plain.info.expression is None

    @pytest.mark.parametrize("sampler", ["mala", "hmc"])
    def test_exact_samplers_report_each_images_acceptance(
        self, pipe: CDRLPipeline, sampler: Any
    ) -> None:
        call: dict[str, Any] = {"class_labels": LABELS, "seeds": range(6), "sampler": sampler}
        call |= {"langevin_steps": 4, "step_scale": [20.0, 30.0, 10.0], "output_type": "pt"}
        whole, parts = pipe(**call), pipe(**call, batch_size=4)
        acceptance = whole.info.acceptance
        assert acceptance.shape == (6, 3) and acceptance.device.type == "cpu"
        assert bool(((acceptance >= 0) & (acceptance <= 1)).all())
        assert len(acceptance.unique()) > 6  # never a whole batch at once
        torch.testing.assert_close(acceptance, parts.info.acceptance, rtol=0, atol=1e-3)
        assert whole.info.sampler == sampler
        plain = pixels(pipe, class_labels=LABELS, seeds=range(6), langevin_steps=4)
        assert (torch.as_tensor(whole.images) - plain).abs().max() > 1e-3

    def test_no_steps_have_no_acceptance(self, pipe: CDRLPipeline) -> None:
        acceptance = pipe(sampler="mala", langevin_steps=[1, 0, 2]).info.acceptance
        assert acceptance.isnan().tolist() == [[False, True, False]]

    def test_the_kernel_is_the_one_asked_for(self, pipe: CDRLPipeline) -> None:
        """Not by name alone: what is drawn is what the sampler draws with that kernel."""
        labels = torch.tensor([[3]])
        kernels = {"mala": MALA(), "hmc": HMC(3), "langevin": Langevin()}
        for name, kernel in kernels.items():
            expected = CooperativeSampler(pipe.model.schedule, 2, kernel, 5.0).sample(
                NeuralEnergy(pipe.model.ebm, labels),
                InitializerProposal(pipe.model.initializer, labels),
                PerImageRandom.from_seeds([8], "cpu"),
                (1, 8, 8),
            )
            found = pixels(
                pipe, class_labels=["Bag"], seeds=[8], sampler=name, step_scale=5, leapfrog_steps=3
            )
            assert torch.equal(found, to_unit(expected.samples)), name

    def test_step_scales_are_per_level_noisiest_first(self, pipe: CDRLPipeline) -> None:
        one = pipe(seeds=[1], step_scale=0.5, output_type="pt")
        same = pipe(seeds=[1], step_scale=[0.5, 0.5, 0.5], output_type="pt")
        torch.testing.assert_close(one.images, same.images)
        info = pipe(seeds=[1], step_scale=(1.0, 2.0, 4.0)).info
        assert info.step_scale == pytest.approx((1.0, 2.0, 4.0))
        schedule = pipe.model.schedule
        sizes = [
            float((scale * schedule.level(t).step_variance).sqrt())
            for t, scale in ((3, 1.0), (2, 2.0), (1, 4.0))
        ]
        assert info.step_sizes == pytest.approx(sizes)
        start: dict[float, list[torch.Tensor]] = {}
        for last in (1.0, 4.0):
            ends = start.setdefault(last, [])
            pipe(
                seeds=[1],
                step_scale=[1.0, 1.0, last],
                callback_on_level_end=lambda end, _, ends=ends: ends.append(end.refined),
            )
        assert [torch.equal(a, b) for a, b in zip(*start.values(), strict=True)] == [
            *(True, True, False)
        ]

    def test_the_models_own_step_scale_is_the_default(self, model: CDRLModel) -> None:
        model.sampler = SamplerDefaults(langevin_steps=1, step_scale=0.25)
        assert CDRLPipeline(model)().info.step_scale == pytest.approx((0.25,) * 3)

    @pytest.mark.parametrize("sampler", ["mala", "hmc"])
    def test_adapting_finds_a_scale_for_each_level(self, pipe: CDRLPipeline, sampler: Any) -> None:
        call: dict[str, Any] = {"class_labels": "Bag", "langevin_steps": 4, "steps": 60}
        found = pipe.adapt_step_scale(sampler, **call)
        assert found == pipe.adapt_step_scale(sampler, **call)  # deterministic
        assert len(found.step_scale) == len(found.acceptance) == 3
        assert all(scale > 0 for scale in found.step_scale)
        # Within 0.15 at a mean of 16 chains of 4 steps: their own spread.
        target = {"mala": 0.574, "hmc": 0.651}[sampler]
        assert all(abs(rate - target) < 0.15 for rate in found.acceptance)
        assert found != pipe.adapt_step_scale(sampler, **call, seed=100)
        drawn = pipe(
            class_labels="Bag",
            num_images=16,
            seeds=50,
            sampler=sampler,
            step_scale=found.step_scale,
            langevin_steps=4,
        ).info
        assert drawn.step_scale == pytest.approx(found.step_scale, rel=1e-5)
        assert (drawn.acceptance.mean(0) - target).abs().max() < 0.15

    def test_a_higher_target_takes_smaller_steps(self, pipe: CDRLPipeline) -> None:
        low, high = (
            pipe.adapt_step_scale("mala", target_acceptance=target, langevin_steps=4, steps=40)
            for target in (0.3, 0.9)
        )
        assert all(a > b for a, b in zip(low.step_scale, high.step_scale, strict=True))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"sampler": "mela"}, "one of langevin, mala, hmc, got 'mela'; did you mean 'mala'"),
            ({"sampler": None}, "sampler must be one of langevin, mala, hmc, got None"),
            ({"step_scale": 0}, "step_scale must be one positive, finite number, or 3, .* got 0"),
            ({"step_scale": -1.0}, "step_scale must be one positive, finite number, or 3"),
            ({"step_scale": float("nan")}, "step_scale must be a finite number, got nan"),
            ({"step_scale": "big"}, "step_scale must be a finite number, got 'big'"),
            (
                {"step_scale": [1, 2]},
                r"or 3, one per transition, got \(1.0, 2.0\)",
            ),
            ({"step_scale": []}, "step_scale must be one positive, finite number, or 3, one per"),
            ({"step_scale": [1, 2, 0]}, "step_scale must be one positive, finite number, or 3"),
            ({"sampler": "hmc", "leapfrog_steps": 0}, "leapfrog_steps must be at least 1, got 0"),
            (
                {"sampler": "hmc", "leapfrog_steps": 2.5},
                "leapfrog_steps must be an integer, got 2.5",
            ),
            ({"restarts": -1}, "restarts must be at least 0, got -1"),
            ({"restarts": None}, "restarts must be an integer, got None"),
        ],
    )
    def test_bad_samplers_are_told_before_any_work(
        self,
        pipe: CDRLPipeline,
        monkeypatch: pytest.MonkeyPatch,
        arguments: dict[str, Any],
        message: str,
    ) -> None:
        monkeypatch.setattr(CooperativeSampler, "sample", lambda *a, **k: pytest.fail("sampled"))
        with pytest.raises(InputError, match=message) as caught:
            pipe(**arguments)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"sampler": "langevin"}, "can reject a move, such as MALA or HMC, got Langevin"),
            ({"sampler": "nuts"}, "sampler must be one of langevin, mala, hmc, got 'nuts'"),
            ({"target_acceptance": 1.0}, r"expected target in \(0, 1\) and steps of at least 1"),
            (
                {"target_acceptance": "half"},
                "target_acceptance must be a finite number, got 'half'",
            ),
            ({"steps": 0}, "steps must be at least 1, got 0"),
            ({"num_images": 0}, "num_images must be at least 1, got 0"),
            ({"langevin_steps": [1, 2]}, "or 3, one per transition, got"),
            ({"class_labels": "Bagg"}, "unknown attribute 0 'Bagg'"),
            ({"seed": -1}, "a seed must be an integer in 0"),
            ({"guidance_scale": 3}, "guidance_scale 3 needs class_labels"),
        ],
    )
    def test_bad_adapting_is_told_before_any_work(
        self,
        pipe: CDRLPipeline,
        monkeypatch: pytest.MonkeyPatch,
        arguments: dict[str, Any],
        message: str,
    ) -> None:
        monkeypatch.setattr("cdrl_infer.sampler.tune", lambda *a, **k: pytest.fail("tuned"))
        with pytest.raises(InputError, match=message):
            pipe.adapt_step_scale(**arguments)
