"""The options of drawing: kernels, step scales, adapting, and errors before any work."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from test_pipeline import LABELS, pixels

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import InputError, NumericalError
from cdrl_infer.images import to_unit
from cdrl_infer.kernels import KERNELS
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.kernels.hmc import HMC, MALA
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.kernels.leimkuhler_matthews import LeimkuhlerMatthews
from cdrl_infer.model import CDRLModel, SamplerDefaults
from cdrl_infer.options import SamplingOptions
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.proposals import InitializerProposal
from cdrl_infer.random import PerImageRandom
from cdrl_infer.sampler import CooperativeSampler
from cdrl_infer.schedule import NoiseSchedule

LOOP: list[Any] = []
LOOP.append(LOOP)


def test_options_are_keyword_only() -> None:
    parameters = list(inspect.signature(CDRLPipeline.__call__).parameters.values())[1:]
    assert {p.kind for p in parameters} == {
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"class_labels": ["Sneakr"]},
            "'Sneakr', expected one of Shirt, Sneaker, Bag; did you mean",
        ),
        ({"class_labels": ["bga"]}, "did you mean 'Bag'"),
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
            {"class_labels": ["Bag"] * 2, "num_images": 3},
            "expected 3 class_labels, one per image, got 2",
        ),
        ({"class_labels": []}, "number of images must be at least 1"),
        ({"seeds": range(3), "num_images": 2}, "expected 2 seeds, one per image, got 3"),
        ({"seeds": [1], "class_labels": ["Bag"] * 2}, "expected 2 seeds, one per image, got 1"),
        ({"seeds": [-1]}, r"in 0 … 2\*\*32 - 1, got -1"),
        ({"seeds": [2**32]}, r"in 0 … 2\*\*32 - 1, got 4294967296"),
        ({"seeds": 2**32 - 1, "num_images": 2}, r"in 0 … 2\*\*32 - 1, got 4294967296"),
        ({"seeds": [0.5]}, "seeds must be an integer, got 0.5"),
        ({"seeds": "abc"}, "seeds must be an integer, got 'abc'"),
        ({"num_images": 0}, "num_images must be at least 1, got 0"),
        ({"num_images": 2.0}, "num_images must be an integer, got 2.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"langevin_steps": -1}, "integer of at least 0, or 3, one per transition, got -1"),
        ({"langevin_steps": [1, 2]}, r"or 3, one per transition, got \(1, 2\)"),
        ({"langevin_steps": []}, r"or 3, one per transition, got \(\)"),
        ({"langevin_steps": "many"}, "langevin_steps must be an integer, got 'many'"),
        ({"langevin_steps": 1.5}, "langevin_steps must be an integer, got 1.5"),
        ({"output_type": "pli"}, "one of pil, np, pt, got 'pli'; did you mean 'pil'"),
        ({"draw_on": "gpu"}, "draw_on must be one of cpu, device, got 'gpu'"),
        ({"num_images": 10**12}, "num_images must be at most 1,000,000, got 1,000,000,000,000"),
        ({"batch_size": 2**63}, "batch_size must be an integer of at most 64 bits, got 9223"),
        ({"langevin_steps": 10**5000}, "64 bits, got a value of type int"),
        ({"seeds": itertools.count()}, "at most 1,000,000 values, one per image, got more"),
        ({"seeds": torch.eye(2).to_sparse()}, "seeds must be an integer, got tensor"),
        ({"class_labels": LOOP}, r"class_labels must be an integer, got \[\[\.\.\.\]\]"),
        ({"class_labels": "Bag", "guidance_scale": 1e39}, "must be at most 3.4e\\+38, float32's"),
        ({"class_labels": "Bag", "guidance_scale": torch.ones(2)}, "must be a finite number, got"),
        ({"step_scale": torch.zeros((), device="meta")}, "step_scale must be a finite number, got"),
        ({"output_type": np.zeros(2)}, "output_type must be one of pil, np, pt, got array"),
        ({"callback_on_level_end": 3}, "callback_on_level_end must be a function, got 3"),
    ],
)
def test_bad_arguments_are_told_before_any_work(
    pipe: CDRLPipeline, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(CooperativeSampler, "sample", lambda *a, **k: pytest.fail("sampled"))
    with pytest.raises(InputError, match=message) as caught:
        pipe(**arguments)
    assert "\n" not in str(caught.value)


def test_scalars_of_other_libraries_are_numbers(pipe: CDRLPipeline) -> None:
    two, one = np.int64(2), np.float32(1)
    for number in (two, np.array(2), torch.tensor(2)):
        out = pipe(num_images=number, seeds=number, langevin_steps=number, kernel=HMC(two))
        assert out.seeds == [2, 3]
    assert pipe(class_labels=[two], guidance_scale=one, step_scale=one, seeds=1).labels == ["Bag"]


@pytest.mark.parametrize(
    "options", [{"guidance_scale": 1e30}, {"step_scale": 2.0**120}, {"guidance_scale": -1e30}]
)
def test_results_are_finite_or_an_error(pipe: CDRLPipeline, options: dict[str, Any]) -> None:
    with pytest.raises(NumericalError, match="left the finite numbers"):
        pipe(class_labels="Bag", seeds=1, langevin_steps=1, **options)


def test_energies_of_a_finite_image_may_overflow(model: CDRLModel) -> None:
    with torch.no_grad():
        model.ebm.backbone.head.bias.fill_(3e38)
    with pytest.raises(NumericalError, match="images 0; expected finite values"):
        CDRLPipeline(model)(seeds=1, langevin_steps=0)


def test_steps_of_a_sampler_are_checked_when_it_is_made() -> None:
    schedule = NoiseSchedule(num_levels=3)
    assert [CooperativeSampler(schedule, (4, 0, 2)).steps_at(t) for t in (3, 2, 1)] == [4, 0, 2]
    for steps in (-1, [1, 2], [1, 2, 3, 4], [1, -1, 1], []):
        with pytest.raises(InputError, match="at least 0, or 3, one per transition, got") as caught:
            CooperativeSampler(schedule, steps)
        assert str(steps) in str(caught.value)


def test_langevin_is_the_default_and_accepts_everything(pipe: CDRLPipeline) -> None:
    plain, named = (
        pipe(class_labels=LABELS, seeds=range(6), output_type="pt", batch_size=4, **options)
        for options in ({}, {"kernel": "langevin"})
    )
    assert torch.equal(torch.as_tensor(plain.images), torch.as_tensor(named.images))
    assert torch.equal(plain.info.acceptance, torch.ones(6, 3))
    assert (plain.info.kernel, plain.info.langevin_steps) == ("langevin", (2, 2, 2))
    assert plain.info.expression is None


@pytest.mark.parametrize("kernel", ["mala", "hmc"])
def test_exact_kernels_report_each_images_acceptance(pipe: CDRLPipeline, kernel: Any) -> None:
    call: dict[str, Any] = {"class_labels": LABELS, "seeds": range(6), "kernel": kernel}
    call |= {"langevin_steps": 4, "step_scale": [20.0, 30.0, 10.0], "output_type": "pt"}
    whole, parts = pipe(**call), pipe(**call, batch_size=4)
    acceptance = whole.info.acceptance
    assert acceptance.shape == (6, 3) and acceptance.device.type == "cpu"
    assert bool(((acceptance >= 0) & (acceptance <= 1)).all())
    assert len(acceptance.unique()) > 6  # never a whole batch at once
    torch.testing.assert_close(acceptance, parts.info.acceptance, rtol=0, atol=1e-3)
    assert whole.info.kernel == kernel
    plain = pixels(pipe, class_labels=LABELS, seeds=range(6), langevin_steps=4)
    assert (torch.as_tensor(whole.images) - plain).abs().max() > 1e-3


def test_a_kernel_of_the_users(pipe: CDRLPipeline) -> None:
    class Own(Langevin):
        pass

    with patch.dict(KERNELS._found):
        KERNELS.register("own", Own)
        named = pipe(seeds=[1], kernel="own", output_type="pt")
    given = pipe(seeds=[1], kernel=Own(), output_type="pt")
    assert (named.info.kernel, given.info.kernel) == ("own", "Own")
    assert torch.equal(torch.as_tensor(named.images), torch.as_tensor(given.images))


def test_no_steps_have_no_acceptance(pipe: CDRLPipeline) -> None:
    acceptance = pipe(kernel="mala", langevin_steps=[1, 0, 2]).info.acceptance
    assert acceptance.isnan().tolist() == [[False, True, False]]


def test_the_kernel_is_the_one_asked_for(pipe: CDRLPipeline) -> None:
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
        for asked in {name, kernel} if kernel == KERNELS[name]() else {kernel}:
            found = pixels(pipe, class_labels=["Bag"], seeds=[8], kernel=asked, step_scale=5)
            assert torch.equal(found, to_unit(expected.samples)), name


def test_step_scales_are_per_level_noisiest_first(pipe: CDRLPipeline) -> None:
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


def test_the_models_own_step_scale_is_the_default(model: CDRLModel) -> None:
    model.sampler = SamplerDefaults(langevin_steps=1, step_scale=0.25)
    assert CDRLPipeline(model)().info.step_scale == pytest.approx((0.25,) * 3)


@pytest.mark.parametrize("kernel", ["mala", "hmc"])
def test_adapting_finds_a_scale_for_each_level(pipe: CDRLPipeline, kernel: Any) -> None:
    call: dict[str, Any] = {"class_labels": "Bag", "langevin_steps": 4, "steps": 60}
    found = pipe.adapt_step_scale(kernel, **call)
    assert found == pipe.adapt_step_scale(kernel, **call)  # deterministic
    assert len(found.step_scale) == len(found.acceptance) == 3
    assert all(scale > 0 for scale in found.step_scale)
    # Within 0.15 at a mean of 16 chains of 4 steps: their own spread.
    target = {"mala": 0.574, "hmc": 0.651}[kernel]
    assert all(abs(rate - target) < 0.15 for rate in found.acceptance)
    assert found != pipe.adapt_step_scale(kernel, **call, seed=100)
    drawn = pipe(
        class_labels="Bag",
        num_images=16,
        seeds=50,
        kernel=kernel,
        step_scale=found.step_scale,
        langevin_steps=4,
    ).info
    assert drawn.step_scale == pytest.approx(found.step_scale, rel=1e-5)
    assert (drawn.acceptance.mean(0) - target).abs().max() < 0.15


def test_a_higher_target_takes_smaller_steps(pipe: CDRLPipeline) -> None:
    low, high = (
        pipe.adapt_step_scale("mala", target_acceptance=target, langevin_steps=4, steps=40)
        for target in (0.3, 0.9)
    )
    assert all(a > b for a, b in zip(low.step_scale, high.step_scale, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"kernel": "mela"},
            "one of langevin, leimkuhler-matthews, mala, hmc, got 'mela'; did you mean 'mala'",
        ),
        ({"kernel": 3}, "kernel must be one of langevin, leimkuhler-matthews, mala, hmc, got 3"),
        ({"kernel": HMC}, r"must be an object, got the class; write HMC\(\)"),
        ({"sampler": "hmc"}, "no option 'sampler': use kernel=, such as kernel='mala' or"),
        ({"leapfrog_steps": 3}, "no option 'leapfrog_steps': use kernel="),
        (
            {"class_label": "Bag"},
            "unknown option 'class_label', .* did you mean 'class_labels'",
        ),
        ({"langevin_step": 1}, "did you mean 'langevin_steps'"),
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
        ({"restarts": -1}, "restarts must be at least 0, got -1"),
        ({"restarts": 1.5}, "restarts must be an integer, got 1.5"),
    ],
)
def test_bad_kernels_are_told_before_any_work(
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
        ({"kernel": "langevin"}, "can reject a move, such as MALA or HMC, got Langevin"),
        (
            {"kernel": "nuts"},
            "kernel must be one of langevin, leimkuhler-matthews, mala, hmc, got 'nuts'",
        ),
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
        ({"guidance_scale": 3, "class_labels": [None]}, "guidance_scale 3 needs class_labels"),
    ],
)
def test_bad_adapting_is_told_before_any_work(
    pipe: CDRLPipeline,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr("cdrl_infer.sampler.tune", lambda *a, **k: pytest.fail("tuned"))
    with pytest.raises(InputError, match=message):
        pipe.adapt_step_scale(**arguments)


def test_the_models_step_scale_belongs_to_the_models_kernel(model: CDRLModel) -> None:
    own = dataclasses.replace(model.sampler, kernel="leimkuhler-matthews", step_scale=3.0)
    long = dataclasses.replace(model, sampler=own)
    cases: list[tuple[dict[str, Any], Kernel[Any], float]] = [
        ({}, LeimkuhlerMatthews(), 3),
        ({"kernel": "leimkuhler-matthews"}, LeimkuhlerMatthews(), 3),
        ({"kernel": "langevin"}, Langevin(), 1),
        ({"kernel": MALA()}, MALA(), 1),
        ({"kernel": "mala", "step_scale": 2}, MALA(), 2),
    ]
    for options, kernel, scale in cases:
        sampler = SamplingOptions.of(options).sampler(long)
        assert (sampler.kernel, sampler.scale_at(1)) == (kernel, scale)
