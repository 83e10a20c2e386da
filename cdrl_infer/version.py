"""The version of the installed distribution; `pyproject.toml` is where it is written."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("cdrl")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"
