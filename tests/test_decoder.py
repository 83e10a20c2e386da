"""The decoder of the bound for 8-bit images: a law of grey values, fitted, and never above the truth."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from laws import MIXTURE

from cdrl_infer.energies.analytic import GaussianMixtureEnergy
from cdrl_infer.energies.base import Energy, FunctionPotential
from cdrl_infer.errors import ConfigError, NumericalError
from cdrl_infer.likelihood.decoder import BINS, Decoder, decoder_sum, denoised, fit, plain
from cdrl_infer.likelihood.density import bound, log_density
from cdrl_infer.schedule import Level, NoiseSchedule

SCHEDULE = NoiseSchedule(num_levels=4, logsnr_max=6.0)
DECODER = Decoder(
    tuple(0.5 * 1.4**k for k in range(BINS)),
    tuple(0.4 * 0.7**k for k in range(BINS)),
    tuple(0.01 * 1.3**k for k in range(BINS)),
)
GREYS = torch.tensor([[20.0], [21.0], [200.0]])
SHARES = torch.tensor([0.5, 0.3, 0.2])
EVERY = torch.arange(256.0)[:, None]  # grey values of one pixel


def law() -> GaussianMixtureEnergy:
    """One pixel of three values."""
    return GaussianMixtureEnergy(SHARES, GREYS / 127.5 - 1, torch.full((3, 1), 1e-12))


def scaled(grey: torch.Tensor) -> torch.Tensor:
    return grey / 127.5 - 1


def drawn(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey values (N, 1), and noise."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.multinomial(SHARES, count, replacement=True, generator=generator)
    return GREYS[rows], torch.randn(count, 1, generator=generator)


def flat(width: float) -> Decoder:
    """The same width everywhere, and hardly any black and white."""
    return Decoder((width,) * BINS, (1e-9,) * BINS, (1e-9,) * BINS)


def test_probabilities_of_all_values_have_the_sum_1() -> None:
    grey = torch.tensor([0.0, 0.2, 17.5, 127.5, 128.0, 254.6, 255.0])
    values = EVERY[:, :, None].expand(-1, len(grey), 1)
    table = torch.stack([DECODER.log_prob(grey[:, None], value) for value in values])
    torch.testing.assert_close(table.exp().sum(0), torch.ones(len(grey), dtype=torch.float64))
    middle = table[:, 3].exp()
    assert float(middle[127]) == pytest.approx(float(middle[128])) == float(middle[1:255].max())
    ratio = math.exp(-1 / DECODER.widths[BINS // 2])
    assert float(table[101, 4] - table[102, 4]) == pytest.approx(math.log(ratio))
    assert DECODER.black[1] < float(table[0, 2].exp()) < DECODER.black[1] + 1e-3  # by itself
    far = flat(0.5).log_prob(torch.tensor([[0.0]]), torch.tensor([[254.0]]))
    assert bool(far.isfinite().all())


@pytest.mark.parametrize("level", [0, 1, 3])
def test_the_mean_is_the_posterior_mean(level: int) -> None:
    """Against Bayes' rule for the three values."""
    place, (values, noise) = SCHEDULE.level(level + 1), drawn(200)
    x = place.diffused(scaled(values), noise)
    energy, grey = denoised(law(), place, x)
    log_joint = SHARES.log() - (x - place.alpha * scaled(GREYS).T).square() / (
        2 * place.sigma_bar**2
    )
    torch.testing.assert_close(grey, log_joint.softmax(1) @ GREYS, atol=0.01, rtol=1e-3)
    torch.testing.assert_close(energy, law()(x * place.scale, place))


@pytest.mark.parametrize("t", [1, 2, 3, 4])
def test_the_bound_is_a_probability(t: int) -> None:
    """The mean of its exponential over the noise, summed over all images, is 1: each term counts."""
    smooth = GaussianMixtureEnergy([0.6, 0.4], [[-0.5], [0.3]], [[0.02], [0.05]])
    draws = 4000
    generator = torch.Generator().manual_seed(t)
    x = scaled(EVERY).repeat_interleave(draws, 0)
    noise = torch.randn(x.shape, generator=generator)
    found = bound(smooth, SCHEDULE.level(t), x, noise, flat(6.0)).exp().reshape(-1, draws)
    error = float(found.var(1).sum().sqrt()) / math.sqrt(draws)
    assert error < 0.01
    assert float(found.mean(1).sum()) == pytest.approx(1, abs=3 * error + 0.01)


def test_independent_pixels_add_up() -> None:
    """Density, noise and decoder of two pixels are those of each, and so is the bound."""
    means, variances = [[-0.4, 0.2]], [[0.03, 0.3]]
    both = GaussianMixtureEnergy([1.0], means, variances)
    alone = [GaussianMixtureEnergy([1.0], [[means[0][k]]], [[variances[0][k]]]) for k in (0, 1)]
    generator = torch.Generator().manual_seed(0)
    x = scaled(torch.randint(0, 256, (50, 2), generator=generator).float())
    noise = torch.randn(50, 2, generator=generator)
    level = SCHEDULE.level(2)
    parts = [bound(alone[k], level, x[:, k : k + 1], noise[:, k : k + 1], DECODER) for k in (0, 1)]
    torch.testing.assert_close(
        bound(both, level, x, noise, DECODER), sum(parts), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_the_bound_is_below_the_truth_at_every_level(level: int) -> None:
    values, noise = drawn(4000)
    decoder = fit(law(), SCHEDULE, scaled(values), 1, 1000)[level]
    found = bound(law(), SCHEDULE.level(level + 1), scaled(values), noise, decoder)
    truth = float((SHARES * SHARES.log()).sum())
    error = float(found.std()) / math.sqrt(len(found))
    assert float(found.mean()) < truth + 3 * error
    if level == 0:  # 20 and 21 cannot be told apart, but 200 can
        assert float(found.mean()) > truth - 1


def test_the_fit_is_the_likeliest_and_does_not_depend_on_batches() -> None:
    values, noise = drawn(4000)
    images, place = scaled(values), SCHEDULE.level(2)
    found = fit(law(), SCHEDULE, images, 1, 1000)
    assert found == fit(law(), SCHEDULE, images, 1, 77) and len(found) == 4
    decoder = found[1]
    _, grey = denoised(law(), place, place.diffused(images, noise))
    best = float(decoder.log_prob(grey, values).mean())
    for factor in (0.3, 2.0):
        other = replace(decoder, widths=tuple(factor * width for width in decoder.widths))
        assert float(other.log_prob(grey, values).mean()) < best


def test_black_and_white_are_learnt_where_they_are() -> None:
    """A quarter is exactly black, the rest is around grey 30: near black the law has a spike."""
    generator = torch.Generator().manual_seed(0)
    greys = (30 + 8 * torch.randn(4000, 1, generator=generator)).clamp(1, 255).round()
    greys[:1000] = 0.0
    dark = GaussianMixtureEnergy(
        [0.25, 0.75], [[-1.0], [30 / 127.5 - 1]], [[1e-6], [(8 / 127.5) ** 2]]
    )
    decoder = fit(dark, SCHEDULE, scaled(greys), 1, 1000)[1]
    assert 0.15 < decoder.black[1] < 0.45 and decoder.white[1] < 0.01
    assert decoder.widths[1] == pytest.approx(8 * 0.64 + 1.5, abs=2.0)
    place = SCHEDULE.level(2)
    noise = torch.randn(4000, 1, generator=generator)
    _, grey = denoised(dark, place, place.diffused(scaled(greys), noise))
    best = float(decoder.log_prob(grey, greys).mean())
    for factor in (0.3, 2.0):
        other = replace(decoder, black=tuple(factor * share for share in decoder.black))
        assert float(other.log_prob(grey, greys).mean()) < best
    # a range without pixels has the mean distance of all, and the prior alone
    assert decoder.black[9] == decoder.white[9] == 0.25
    assert decoder.widths[9] == decoder.widths[10] == decoder.widths[14]


def test_the_plain_decoder_is_taken_where_it_is_better() -> None:
    """Its bound is `decoder_sum`'s. For smooth data it is better by 0.05 nats a pixel at low noise."""
    level = SCHEDULE.level(1)
    x, noise = torch.rand(30, 3) * 2 - 1, torch.randn(30, 3)
    smooth = GaussianMixtureEnergy([1.0], [[0.0, 0.0, 0.0]], [[0.2, 0.2, 0.2]])
    x_0 = level.diffused(x, noise)
    log_q = -0.5 * noise.square().sum(1) - 3 * (
        0.5 * math.log(2 * math.pi) + math.log(level.sigma_bar)
    )
    direct = log_density(smooth, level, x_0, 0.0) - log_q + plain(x_0, x, level)
    expected = log_density(smooth, level, x_0, 0.0) - decoder_sum(x_0, level)
    torch.testing.assert_close(direct, expected, rtol=1e-4, atol=1e-3)
    low = NoiseSchedule(num_levels=2, logsnr_max=9.8)
    generator = torch.Generator().manual_seed(0)
    greys = (0.25 * torch.randn(4000, 1, generator=generator) * 127.5 + 127.5).round()
    one = GaussianMixtureEnergy([1.0], [[0.0]], [[0.0625]])
    widths = fit(one, low, scaled(greys), 1, 1000)
    assert widths[0].is_plain and not widths[1].is_plain
    assert fit(law(), SCHEDULE, scaled(drawn(400)[0]), 0, 1000)[0].is_plain is False


class Broken(Energy):
    def at(self, level: Level) -> FunctionPotential:
        return FunctionPotential(lambda y: (y - 100).log().sum(1))


def test_switches_do_not_matter_and_an_energy_that_is_not_finite_is_told() -> None:
    images = MIXTURE.sample(40, torch.Generator().manual_seed(0)).float()
    expected = fit(MIXTURE, SCHEDULE, images, 0, 10)
    with torch.inference_mode():
        assert fit(MIXTURE, SCHEDULE, images.clone(), 0, 10) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fit(MIXTURE, SCHEDULE, images, 0, 10) == expected
    with pytest.raises(NumericalError, match="the energies of level 0 are not finite"):
        fit(Broken(), SCHEDULE, images, 0, 10)


@pytest.mark.parametrize(
    "change",
    [
        {"widths": (1.0,) * 15},
        {"widths": (0.0,) * BINS},
        {"black": (0.0,) * BINS},
        {"black": (0.6,) * BINS, "white": (0.4,) * BINS},
    ],
)
def test_laws_that_are_none_are_refused(change: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ConfigError, match="a decoder must have"):
        replace(DECODER, **change)
