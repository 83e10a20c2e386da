"""A constructor's signature is its config: arguments are recorded here, and checked when read again."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import types
from collections.abc import Callable, Mapping
from typing import (
    Any,
    ClassVar,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from cdrl_infer.errors import ConfigError, did_you_mean, listing, quoted
from cdrl_infer.registry import Registry

T = TypeVar("T")
MAX_DEPTH = 32  # lists and objects within each other; a run's options have 5


def parse_json(text: str) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: it is not JSON, is nested more than `MAX_DEPTH` deep, or has NaN, infinity, an integer
            of thousands of digits or a repeated key.
    """
    try:
        value = json.loads(
            text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique
        )
    except RecursionError:
        raise ValueError("too many lists and objects within each other") from None
    _check_depth(value, MAX_DEPTH)
    return value


def _check_depth(value: object, left: int) -> None:
    if left == 0:
        raise ValueError(f"more than {MAX_DEPTH} lists and objects within each other")
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            _check_depth(item, left - 1)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text:.60} is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; repeated keys are refused, since readers choose different ones."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is repeated")
    return found


class Configurable:
    """Mixin for classes whose constructor arguments are recorded in `config`.

    A class with a ``registry`` can be an argument of another: a config then holds
    ``{"class": NAME, **arguments}`` for it. A constructor that ends in ``**options`` also takes the
    arguments of its parent's, which it passes on; its own have the defaults that it gives them.
    """

    registry: ClassVar[Registry[Any] | None] = None
    _arguments: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        init = cls.__init__
        signature, hints = _inherited(init, super(cls, cls).__init__)

        @functools.wraps(init)
        def recording_init(self: Configurable, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            # A subclass's constructor returns after its parent's, so its arguments stay.
            self._arguments = dict(list(bound.arguments.items())[1:])

        recording_init.__annotations__ = hints
        setattr(recording_init, "__signature__", signature)  # noqa: B010
        setattr(cls, "__init__", recording_init)  # noqa: B010

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments by name, defaults included, as JSON can hold them.

        Raises:
            ConfigError: an argument is of a class that is not registered.
        """
        return {
            name: {"class": value.registry.checked_name(type(value)), **value.config}
            if isinstance(value, Configurable) and value.registry is not None
            else value
            for name, value in self._arguments.items()
        }


def _inherited(
    init: Callable[..., None], parent: Callable[..., None]
) -> tuple[inspect.Signature, dict[str, Any]]:
    """The signature and annotations of a constructor, with its parent's arguments for ``**options``."""
    signature, hints = inspect.signature(init), init.__annotations__
    own = dict(signature.parameters)
    last = [*own.values()][-1]
    if last.kind is not last.VAR_KEYWORD:
        return signature, hints
    del own[last.name]
    theirs = dict(inspect.signature(parent).parameters)
    return (
        signature.replace(parameters=[*{**theirs, **own}.values()]),
        {**get_type_hints(parent), **{name: hints[name] for name in own if name in hints}},
    )


def from_config(cls: type[T], config: object, where: str) -> T:
    """``cls(**config)``, every key and type first checked against the constructor's signature.

    Args:
        cls: a class whose constructor has annotated, named arguments.
        config: a mapping as read from JSON; lists stand for tuples.
        where: the file, and the part of it, that the config is from; for error messages.

    Raises:
        ConfigError: the config is not a mapping, a key is unknown or missing, a value has the wrong type,
            or the constructor refuses a value.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"{where}: expected an object of named values, found {quoted(config, 60)}"
        )
    parameters = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    hints = get_type_hints(cls.__init__)
    bare = [name for name in parameters if name not in hints]
    if bare:
        raise ConfigError(
            f"{cls.__name__}: expected type annotations for {listing(bare)}; add them"
        )
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


def from_registry(registry: Registry[type[T]], config: object, where: str) -> T:
    """Make the thing of ``{"class": NAME, **arguments}``; see `from_config`.

    Raises:
        ConfigError: the registry has no such class, or `from_config` refuses the arguments.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"{where}: expected an object of named values, found {quoted(config, 60)}"
        )
    arguments = dict(config)
    cls = registry.find(arguments.pop("class", None), where)
    return from_config(cls, arguments, where)


def check_keys(
    config: Mapping[str, Any], required: list[str], optional: list[str], where: str
) -> None:
    """Raise `ConfigError` for a key that is unknown or missing."""
    known = [*required, *optional]
    for name in config:
        if name not in known:
            raise ConfigError(
                f"{where}: unknown key {name!r:.60}, expected {listing(known) or 'none'}"
                f"{did_you_mean(name, known)}"
            )
    for name in required:
        if name not in config:
            raise ConfigError(f"{where}: the key {name!r} is missing")


def _typed(value: Any, hint: Any, name: str, where: str) -> Any:
    """``value`` converted to ``hint``: tuples for lists, floats for ints, else unchanged."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_config(hint, value, f"{where}, {name!r}")
    if isinstance(hint, type) and issubclass(hint, Configurable) and hint.registry is not None:
        return from_registry(hint.registry, value, f"{where}, {name!r}")
    items = get_args(hint)[0] if get_origin(hint) is tuple else None
    if dataclasses.is_dataclass(items) and isinstance(value, list | tuple):
        return tuple(_typed(v, items, f"{name}.{k}", where) for k, v in enumerate(value))
    try:
        return _convert(value, hint)
    except TypeError:
        raise ConfigError(
            f"{where}: {name!r} must be {_spoken(hint)}, found {quoted(value, 60)}"
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
        try:
            _check_depth(value, MAX_DEPTH)
        except ValueError:
            raise TypeError from None
        return dict(value)
    if origin in (tuple, list) and isinstance(value, list | tuple):
        return origin(_convert(item, args[0]) for item in value)
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
    if origin in (tuple, list):
        return f"a list, each item {_spoken(args[0])}"
    if origin is dict:
        return "an object of named values"
    if origin in (Union, types.UnionType):
        return " or ".join(_spoken(arg) for arg in args)
    names = {
        int: "an integer",
        float: "a finite number",
        bool: "true or false",
        str: "a text",
    }
    return names.get(hint, "null" if hint is type(None) else f"{hint!r}, which no file can hold,")
