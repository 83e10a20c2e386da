"""Registries map names to things, for configs, commands and calls."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from cdrl_infer.errors import ConfigError, InputError, did_you_mean, listing

T = TypeVar("T")


def is_name(name: object) -> bool:
    """Whether a thing can have this name: 1 to 100 printable characters."""
    return isinstance(name, str) and name.isprintable() and 1 <= len(name) <= 100


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to things of one kind. Users can add things::

        KERNELS.register("barker", Barker)

    Args:
        kind: the word for a thing in messages, such as "kernel".
        own: the things of the package, as ``"module:attribute"`` by name. The first use of a thing
            imports its module.
    """

    def __init__(self, kind: str, own: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._places = dict(own or {})
        self._found: dict[str, T] = {}

    def register(self, name: str, thing: T) -> T:
        """Add a thing under a name and return the thing.

        Raises:
            InputError: the name is not printable text, or another thing has this name.
        """
        if not is_name(name):
            raise InputError(
                f"the name of a {self.kind} must have 1 to 100 printable characters, got {name!a:.60}"
            )
        if name in self._places or self._found.get(name, thing) is not thing:
            raise InputError(f"the {self.kind} {name!r} already exists; choose another name")
        self._found[name] = thing
        return thing

    def __getitem__(self, name: str) -> T:
        if name not in self._found:
            if name not in self._places:
                raise KeyError(name)
            module, _, attribute = self._places[name].partition(":")
            self._found[name] = getattr(importlib.import_module(module), attribute)
        return self._found[name]

    def find(self, name: object, where: str = "") -> T:
        """The thing with this name.

        Args:
            name: a name from a user or a file.
            where: the file or option that has the name, for the message.

        Raises:
            ConfigError: no thing has that name; the message lists the known names.
        """
        if isinstance(name, str) and name in self:
            return self[name]
        hint = did_you_mean(str(name), self) or f"; register your own {self.kind} first"
        raise ConfigError(
            f"{f'{where}: ' if where else ''}unknown {self.kind} {name!r:.60}, expected one of "
            f"{listing(self)}{hint}"
        )

    def name_of(self, thing: object) -> str | None:
        """The name of a thing; None if it is not registered."""
        for name, found in self._found.items():
            if found is thing:
                return name
        places = f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', '')}"
        return next((name for name, place in self._places.items() if place == places), None)

    def checked_name(self, thing: object) -> str:
        """The name of a thing; raise `ConfigError` if the thing is not registered."""
        name = self.name_of(thing)
        if name is None:
            label = getattr(thing, "__name__", repr(thing))
            raise ConfigError(
                f"{label:.60} is not a registered {self.kind}, so no file can name it; call "
                f"register({label!r:.60}, {label:.60}) on the registry, see docs/extending.md"
            )
        return name

    def __contains__(self, name: object) -> bool:
        return name in self._places or name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter({**self._places, **self._found})

    def __len__(self) -> int:
        return len({**self._places, **self._found})
