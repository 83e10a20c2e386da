"""Where the cleanest level is refused, the bound for clean images goes by a noisier one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from normaliser_parts import DECODER, by_hand, entry, images

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import NumericalError
from cdrl_infer.likelihood.decoder import PLAIN, Decoder
from cdrl_infer.likelihood.density import bound
from cdrl_infer.likelihood.normalisers import Normalisers
from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.random import PerImageRandom
from cdrl_infer.scoring.weights import weights_digests


def crossed(model: CDRLModel, decoders: tuple[Decoder, ...]) -> Normalisers:
    """Level 0 is refused, level 1 is not."""
    return replace(by_hand(model, entry((0,), 0.0, lower=9.0, upper=0.0)), decoders=decoders)


def test_clean_images_by_the_lowest_level_that_is_not_refused(model: CDRLModel) -> None:
    pixels, pipe = images(), CDRLPipeline(model, name="tiny")
    level = model.schedule.level(2)
    model.normalisers = crossed(model, (DECODER,) * 3)
    out = pipe.log_likelihood(pixels, draws=1, seed=4)
    assert (out.density, out.level, out.verdict) == ("8-bit", 1, "sound")
    assert out.jeffreys == (2.0, 2.0) and "energy of level 1" in out.method
    x = torch.from_numpy(pixels)[:, None] / 127.5 - 1
    noise = PerImageRandom.from_seeds([4, 5, 6], "cpu").normal((1, 8, 8))
    labels = torch.zeros(3, 1, dtype=torch.int64)
    expected = bound(NeuralEnergy(model.ebm, labels), level, x, noise, DECODER) - 1.0
    torch.testing.assert_close(out.log_prob, expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(out.upper - out.lower, torch.full((3,), 2.0).double())
    noised = pipe.log_likelihood(pixels, density="level-1", draws=1, seed=4)
    energy = pipe.energy(level.diffused(x, noise), level=2, noised=True).double()
    expected = -energy - 1.0 + 64 * math.log(level.scale)
    torch.testing.assert_close(noised.log_prob, expected, rtol=1e-5, atol=1e-3)
    refused = (
        r"the likelihood of 'tiny' is refused: .* at transition 1: .*; density='level-1' works"
    )
    with pytest.raises(NumericalError, match=f"{refused}$"):
        pipe.log_likelihood(pixels, density="level-0")
    model.normalisers = crossed(model, ())
    with pytest.raises(NumericalError, match=f"{refused}, and .*--normalise.* stores a decoder"):
        pipe.log_likelihood(pixels)


def test_the_labels_that_are_refused_are_named(model: CDRLModel) -> None:
    """Where no level of a label may be believed, other labels do not help."""
    bad = entry((2,), 0.0)
    top = replace(bad.transitions[2], lower=9.0, upper=0.0)
    bad = replace(bad, transitions=(*bad.transitions[:2], top))
    good = entry((0,), 0.0, lower=9.0, upper=0.0)
    model.normalisers = replace(by_hand(model, good, bad), decoders=(DECODER,) * 3)
    pipe = CDRLPipeline(model, name="tiny")
    with pytest.raises(
        NumericalError, match=r"with the labels 2 is refused: .* transition 3: [^;]*$"
    ):
        pipe.log_likelihood(images(2), labels=[None, "Sneaker"])


def test_without_a_decoder_level_0_has_the_plain_one(model: CDRLModel) -> None:
    """The fit found nothing better."""
    pipe = CDRLPipeline(model, name="tiny")
    found = {}
    for name, decoders in (
        ("none", ()),
        ("plain", (PLAIN, DECODER, DECODER)),
        ("own", (DECODER,) * 3),
    ):
        model.normalisers = replace(by_hand(model, entry((0,), 7.0)), decoders=decoders)
        found[name] = pipe.log_likelihood(images()).log_prob
    assert torch.equal(found["none"], found["plain"])
    assert bool((found["own"] != found["plain"]).all())


def test_an_energy_that_is_not_finite_is_told(model: CDRLModel) -> None:
    """The decoder needs the gradient, which may be NaN as well."""
    model.normalisers = crossed(model, (DECODER,) * 3)
    for parameter in model.ebm.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    model.normalisers = replace(model.normalisers, weights=weights_digests(model))
    with pytest.raises(NumericalError, match="the energies of images 0, 1, 2 are not finite"):
        CDRLPipeline(model, name="tiny").log_likelihood(images())


def test_all_labels_share_a_level(model: CDRLModel) -> None:
    """If one label's normaliser is refused at level 0, level 0 is used for none."""
    pixels, pipe = images(2), CDRLPipeline(model, name="tiny")
    both = (entry((0,), 7.0), entry((2,), 0.0, lower=9.0, upper=0.0))
    model.normalisers = replace(by_hand(model, *both), decoders=(DECODER,) * 3)
    assert pipe.log_likelihood(pixels).level == 0
    assert pipe.log_likelihood(pixels, labels=["Sneaker", None]).level == 1
