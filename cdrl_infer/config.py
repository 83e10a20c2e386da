"""The constructor's signature is the config: recorded when made, checked when rebuilt."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cdrl_infer.errors import ConfigError, did_you_mean, listing

T = TypeVar("T")


class Configurable:
    """Mixin: ``self.config`` holds the constructor's arguments by name, defaults included."""

    config: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        init = cls.__init__
        signature = inspect.signature(init)

        @functools.wraps(init)
        def recording_init(self: Configurable, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            self.config = dict(list(bound.arguments.items())[1:])  # a subclass's comes last

        setattr(cls, "__init__", recording_init)  # noqa: B010


def from_config(cls: type[T], config: object, where: str) -> T:
    """``cls(**config)``, every key and type first checked against the constructor's signature.

    Args:
        cls: a class whose constructor has annotated, named arguments.
        config: a mapping as read from JSON; lists stand for tuples.
        where: the file (and part of it) the config was read from, for error messages.

    Raises:
        ConfigError: not a mapping, an unknown or missing key, a value of the wrong type, or a value
            that the constructor refuses.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{where}: expected an object of named values, found {config!r:.60}")
    parameters = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    hints = get_type_hints(cls.__init__)
    check_keys(
        config,
        required=[name for name, p in parameters.items() if p.default is p.empty],
        optional=[name for name, p in parameters.items() if p.default is not p.empty],
        where=where,
    )
    values = {name: _typed(value, hints[name], name, where) for name, value in config.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error!s:.500}") from None  # the values may be of any length


def check_keys(
    config: Mapping[str, Any], required: list[str], optional: list[str], where: str
) -> None:
    """Raise `ConfigError` for a key that is unknown or missing."""
    known = [*required, *optional]
    for name in config:
        if name not in known:
            raise ConfigError(
                f"{where}: unknown key {name!r:.60}, expected {listing(known)}"
                f"{did_you_mean(name, known)}"
            )
    for name in required:
        if name not in config:
            raise ConfigError(f"{where}: the key {name!r} is missing")


def _typed(value: Any, hint: Any, name: str, where: str) -> Any:
    """``value`` as ``hint`` wants it: tuples for lists, floats for ints, else unchanged."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_config(hint, value, f"{where}, {name!r}")
    try:
        return _convert(value, hint)
    except TypeError:
        raise ConfigError(
            f"{where}: {name!r} must be {_spoken(hint)}, found {value!r:.60}"
        ) from None


def _convert(value: Any, hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal and value in args:
        return value
    if origin in (Union, types.UnionType):
        for arg in args:
            try:
                return _convert(value, arg)
            except TypeError:
                continue
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(item, args[0]) for item in value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer of more than 308 digits
            number = math.inf
        if math.isfinite(number):
            return number
    elif hint in (int, bool, str, type(None)) and type(value) is hint:
        return value
    raise TypeError


def _spoken(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) for arg in args)
    if origin is tuple:
        return f"a list, each item {_spoken(args[0])}"
    if origin is dict:
        return "an object of named values"
    if origin in (Union, types.UnionType):
        return " or ".join(_spoken(arg) for arg in args)
    names = {int: "an integer", float: "a finite number", bool: "true or false", str: "a text"}
    return names.get(hint, "null")
