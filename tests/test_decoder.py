"""The decoder of the bound for 8-bit images: a law of grey values, fitted, and never above the truth."""

from __future__ import annotations

import math

import pytest
import torch

from cdrl_infer.energies.analytic import GaussianMixtureEnergy
from cdrl_infer.likelihood.decoder import BINS, denoised, fit, log_decoder
from cdrl_infer.likelihood.density import bound
from cdrl_infer.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule(num_levels=4, logsnr_max=6.0)
WIDTHS = tuple(0.3 * 1.4**k for k in range(BINS))
GREYS = torch.tensor([[20.0], [21.0], [200.0]])
SHARES = torch.tensor([0.5, 0.3, 0.2])


def law() -> GaussianMixtureEnergy:
    """One pixel of three values."""
    return GaussianMixtureEnergy(SHARES, GREYS / 127.5 - 1, torch.full((3, 1), 1e-12))


def drawn(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey values (N, 1), and noise."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.multinomial(SHARES, count, replacement=True, generator=generator)
    return GREYS[rows], torch.randn(count, 1, generator=generator)


def test_probabilities_of_all_values_have_the_sum_1() -> None:
    grey = torch.tensor([0.0, 0.2, 17.5, 127.5, 128.0, 254.6, 255.0])
    values = torch.arange(256.0)[:, None, None].expand(-1, len(grey), 1)
    table = torch.stack([log_decoder(grey[:, None], value, WIDTHS) for value in values])
    torch.testing.assert_close(table.exp().sum(0), torch.ones(len(grey), dtype=torch.float64))
    middle = table[:, 3].exp()
    assert float(middle[127]) == pytest.approx(float(middle[128])) == float(middle.max())
    ratio = math.exp(-1 / WIDTHS[BINS // 2])
    assert float(table[101, 4] - table[102, 4]) == pytest.approx(math.log(ratio))


@pytest.mark.parametrize("level", [0, 1, 3])
def test_the_mean_is_the_posterior_mean(level: int) -> None:
    """Against Bayes' rule for the three values."""
    place, (values, noise) = SCHEDULE.level(level + 1), drawn(200)
    x = place.diffused(values / 127.5 - 1, noise)
    energy, grey = denoised(law(), place, x)
    clean = (GREYS / 127.5 - 1).T
    log_joint = SHARES.log() - (x - place.alpha * clean).square() / (2 * place.sigma_bar**2)
    torch.testing.assert_close(grey, log_joint.softmax(1) @ GREYS, atol=0.01, rtol=1e-3)
    torch.testing.assert_close(energy, law()(x * place.scale, place))


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_the_bound_is_below_the_truth_at_every_level(level: int) -> None:
    values, noise = drawn(4000)
    widths = fit(law(), SCHEDULE, values / 127.5 - 1, 1, 1000)[level]
    found = bound(law(), SCHEDULE.level(level + 1), values / 127.5 - 1, noise, widths)
    truth = float((SHARES * SHARES.log()).sum())
    error = float(found.std()) / math.sqrt(len(found))
    assert float(found.mean()) < truth + 3 * error
    if level == 0:  # 20 and 21 cannot be told apart, but 200 can
        assert float(found.mean()) > truth - 1


def test_fitted_widths_are_the_distances_and_better_than_others() -> None:
    values, noise = drawn(4000)
    images, place = values / 127.5 - 1, SCHEDULE.level(2)
    widths = fit(law(), SCHEDULE, images, 1, 1000)
    assert widths == fit(law(), SCHEDULE, images, 1, 77)  # whatever the batches
    assert len(widths) == 4 and all(len(row) == BINS for row in widths)
    _, grey = denoised(law(), place, place.diffused(images, noise))
    near = grey[:, 0] < 255 / BINS * 2  # the bin of 20 and 21
    distance = float((values - grey).abs()[near].mean())
    assert widths[1][1] == pytest.approx(distance, rel=0.15)
    best = float(log_decoder(grey, values, widths[1]).mean())
    for factor in (0.3, 3.0):
        other = tuple(factor * width for width in widths[1])
        assert float(log_decoder(grey, values, other).mean()) < best
