"""Checks of arguments: numbers, counts, seeds."""

from __future__ import annotations

import inspect
import math
import operator
import random as entropy
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cdrl_infer.errors import InputError, did_you_mean, listing, quoted
from cdrl_infer.random import PerImageRandom

MAX_IMAGES = 1_000_000  # of one call; more are drawn in several
LARGEST = torch.finfo(torch.float32).max
MAX_SEED = 2**32 - 1  # PyTorch's CPU generator uses no more bits
Progress = bool | Mapping[str, Any] | None  # see `progress_bar`


@dataclass(frozen=True)
class Noise:
    """The source of each image's noise: a seed of its own, or a generator that the caller gave."""

    seeds: list[int] | None
    generators: list[torch.Generator]

    @classmethod
    def of(cls, seeds: Any, generator: Any, count: int) -> Noise:
        """The noise of ``count`` images.

        Args:
            seeds: a list of seeds, the first of consecutive seeds, or None.
            generator: one generator to draw seeds from, a list with one for each image, or None.
            count: N. New seeds are drawn if neither is given.

        Raises:
            InputError: both are given, or one of them is not valid.
        """
        if seeds is not None and generator is not None:
            raise InputError("expected seeds or generator, got both; leave one out")
        if isinstance(generator, list):
            if not all(isinstance(g, torch.Generator) for g in generator):
                raise InputError("generator must be a torch.Generator, or a list of one per image")
            if len({id(g) for g in generator}) < count:
                raise InputError(
                    "expected a list with another generator for each image, got one of them twice; "
                    "pass a single generator to draw seeds from it"
                )
            return cls(None, generator)
        if generator is not None:
            if not isinstance(generator, torch.Generator):
                raise InputError(f"generator must be a torch.Generator, got {quoted(generator)}")
            drawn = torch.randint(2**32, (count,), generator=generator, device=generator.device)
            return cls(drawn.tolist(), [])
        if seeds is None:
            return cls(entropy.SystemRandom().sample(range(2**32), count), [])
        if not isinstance(seeds, list):
            base = integer("seeds", seeds)
            seeds = [base + k for k in range(count)]
        return cls([check_seed(seed) for seed in seeds], [])

    def source(self, part: slice, device: torch.device, draw_on: torch.device) -> PerImageRandom:
        """The random streams of some of the images."""
        if self.seeds is None:
            return PerImageRandom(self.generators[part], device)
        return PerImageRandom.from_seeds(self.seeds[part], device, draw_on)


def count_images(num_images: Any, **arguments: Any) -> int:
    """The number of images that the arguments ask for; all lists must have that length."""
    lengths = {name: len(value) for name, value in arguments.items() if isinstance(value, list)}
    if num_images is not None:
        count = positive("num_images", num_images, MAX_IMAGES)
    else:
        count = positive("the number of images", next(iter(lengths.values()), 1))
    for name, length in lengths.items():
        if length != count:
            raise InputError(f"expected {count} {name}, one per image, got {length}")
    return count


def integer(name: str, value: Any) -> int:
    """The value as an int of 64 bits; InputError if it is no integer."""
    whole = None
    if not isinstance(value, bool):
        with suppress(Exception):  # foreign objects raise any error
            whole = operator.index(value)
    if whole is None:
        raise InputError(f"{name} must be an integer, got {quoted(value)}")
    if not -(2**63) <= whole < 2**63:
        raise InputError(f"{name} must be an integer of at most 64 bits, got {quoted(value)}")
    return whole


def positive(name: str, value: Any, largest: int = 2**31 - 1) -> int:
    """The value as an int, 1 … ``largest``."""
    whole = integer(name, value)
    if whole < 1:
        raise InputError(f"{name} must be at least 1, got {whole}")
    if whole > largest:
        raise InputError(f"{name} must be at most {largest:,}, got {whole:,}")
    return whole


def check_seed(value: Any) -> int:
    """The value as a seed, 0 … `MAX_SEED`."""
    seed = integer("seeds", value)
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"a seed must be an integer in 0 … 2**32 - 1, got {seed}")
    return seed


def number(name: str, value: Any) -> float:
    """The value as a float that is finite in float32, in which networks compute."""
    found = math.nan
    if not isinstance(value, (bool, str)):
        with suppress(Exception):
            found = float(value)
    if not math.isfinite(found):
        raise InputError(f"{name} must be a finite number, got {quoted(value)}")
    if abs(found) > LARGEST:
        raise InputError(f"{name} must be at most {LARGEST:.1e}, float32's limit, got {found:g}")
    return found


def flag(name: str, value: Any) -> bool:
    """The value as a bool; InputError unless it is True or False."""
    if not isinstance(value, (bool, int, np.bool_)):
        raise InputError(f"{name} must be True or False, got {quoted(value)}")
    return bool(value)


def check_choice(name: str, value: object, options: tuple[str, ...]) -> None:
    """Raise InputError unless the value is one of the options."""
    if not isinstance(value, str) or value not in options:
        hint = did_you_mean(value, options) if isinstance(value, str) else ""
        raise InputError(f"{name} must be one of {listing(options)}, got {quoted(value)}{hint}")


def as_list(value: Any) -> Any:
    """Lists, ranges, tuples, arrays … as a list; None, strings and single values unchanged."""
    if value is None or isinstance(value, str):
        return value
    try:
        found = list(islice(value, MAX_IMAGES + 1))
    except Exception:  # no iterable, or one that fails
        return value
    if len(found) > MAX_IMAGES:
        raise InputError(f"expected at most {MAX_IMAGES:,} values, one per image, got more")
    return found


def progress_bar(progress: Progress, **own: Any) -> tqdm[Any]:
    """A bar on stderr.

    Args:
        progress: True or False; None: show it only if stderr is a terminal. Or options of `tqdm.tqdm`,
            such as ``{"desc": "drawing", "leave": False}``, which go before our own.
        own: our options, such as ``total``.

    Raises:
        InputError: ``progress`` is something else, or has an option that tqdm does not have.
    """
    options: dict[str, Any]
    if isinstance(progress, Mapping):
        options = dict(progress)
    else:
        options = {} if progress is None else {"disable": not flag("progress", progress)}
    known = list(inspect.signature(tqdm.__init__).parameters)[1:]
    for name in options:
        if name not in known:
            raise InputError(
                f"unknown option {quoted(name)} of a progress bar, expected one of tqdm's: "
                f"{listing(known, 40)}"
            )
    hidden = options.pop("disable", None)
    shown = _on_terminal() if hidden is None else not flag("disable", hidden)
    no_stderr = sys.stderr is None or getattr(sys.stderr, "closed", False)
    return tqdm(**{**own, **options, "disable": no_stderr or not shown})


def _on_terminal() -> bool:
    is_terminal = getattr(sys.stderr, "isatty", bool)  # a notebook's or a server's may lack it
    return bool(is_terminal())
