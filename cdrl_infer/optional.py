"""Packages that not everyone needs: they are imported when they are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version

from cdrl_infer.errors import PackageError, listing, shown


@contextmanager
def needed(package: str, purpose: str, extra: str = "") -> Iterator[None]:
    """Import an optional package in this block: whatever the import raises becomes a `PackageError`.

    The error says that the package is missing, or which installed packages do not fit each other.

    Args:
        package: the name by which pip knows it.
        purpose: what needs it, with the verb, as "plots need".
        extra: the extra of ``cdrl`` that has it; "" if cdrl itself does.
    """
    try:
        yield
    except Exception as error:  # compiled code for another version raises anything
        misfits, found = _misfits(package), _installed(package) or ""
        name = f"'cdrl[{extra}]'" if extra else "cdrl"
        if isinstance(error, ModuleNotFoundError) and not misfits:
            raise PackageError(f"{purpose} {package}: pip install {name}") from None
        reason = f"{type(error).__name__}: {shown(error, 120)}"
        beside = listing(f"{other} {_installed(other)}" for other in _requirements(package))
        wrong = listing(misfits, 3) or f"{package} does not fit the installed {beside}"
        raise PackageError(
            f"{purpose} {package}, but {package} {found} cannot be imported "
            f"({reason}); {wrong}; install versions that fit: pip install --upgrade {name}"
        ) from error


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _requirements(package: str) -> dict[str, str]:
    """The packages that a package requires, with the versions that it allows."""
    from packaging.requirements import Requirement  # huggingface_hub needs it too

    try:
        parsed = [Requirement(text) for text in requires(package) or ()]
    except PackageNotFoundError:  # a folder on the path, without a list of what it requires
        return {} if _installed("torch") is None else {"torch": ""}
    return {
        one.name: str(one.specifier)
        for one in parsed
        if one.marker is None or one.marker.evaluate({"extra": ""})
    }


def _misfits(package: str) -> list[str]:
    """What is wrong with the versions that a package and its requirements find, in words."""
    from packaging.specifiers import SpecifierSet

    wrong = []
    waiting, seen = [package], {package}
    while waiting:
        name = waiting.pop()
        for other, allowed in _requirements(name).items():
            found = _installed(other)
            if found is None or not SpecifierSet(allowed).contains(found, prereleases=True):
                has = found or "none"
                wrong.append(
                    f"{name} {_installed(name)} needs {other}{allowed}, but {has} is installed"
                )
            elif other not in seen:
                seen.add(other)
                waiting.append(other)
    return wrong
