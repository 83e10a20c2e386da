"""Reading files that others wrote: bounded in size and depth, and never outside their folder."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

from safetensors import SafetensorError, safe_open
from torch import Tensor

from cdrl_infer.errors import CheckpointError, ConfigError, listing

MAX_TEXT = 2**20  # bytes of a config or a card; the largest we know has 60,000
MAX_HEADER = 2**20  # bytes of a safetensors header; the paper's largest network needs 30,000
MAX_PICTURE = 2**22


def inside(folder: Path, name: str) -> Path:
    """The path of a file in a folder; it may not exist.

    Symbolic links may not lead out of the folder, except to the ``blobs`` that a cache of the Hub
    keeps beside its snapshots, or for all its repositories together.

    Raises:
        CheckpointError: a link that leads elsewhere.
    """
    path = folder / name
    try:
        real, root = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise CheckpointError(f"{path}: cannot be found ({error})") from None
    roots = [root]
    for snapshots in (p for p in root.parents if p.name == "snapshots"):
        roots += [snapshots.parent / "blobs", snapshots.parent.parent / "blobs"]
    if not any(real.is_relative_to(allowed) for allowed in roots):
        raise CheckpointError(
            f"{path}: expected a file inside the model's folder, found a link out of it; "
            "put a copy in its place"
        )
    return path


def read_bytes(folder: Path, name: str, limit: int) -> bytes | None:
    """The content of a file in a folder, None if there is no such file.

    Raises:
        CheckpointError: more bytes than the limit, a link out of the folder, or no right to read.
    """
    path = inside(folder, name)
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > limit:
        raise CheckpointError(f"{path}: expected at most {limit:,} bytes, found more")
    return content


def read_text(folder: Path, name: str) -> str | None:
    """The same for text in UTF-8.

    Raises:
        CheckpointError: likewise, or other bytes.
    """
    content = read_bytes(folder, name, MAX_TEXT)
    try:
        return None if content is None else content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{folder / name}: expected text in UTF-8, found other bytes ({error.reason}); convert "
            "or delete it"
        ) from None


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: no such file, or see `read_text`.
        ConfigError: not JSON, NaN, infinity or a key twice in it, or not an object.
    """
    path = folder / name
    text = read_text(folder, name)
    if text is None:
        raise CheckpointError(f"{path}: expected a file of a CDRL model folder, found none")
    try:
        config = json.loads(
            text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: expected an object of named values, found {config!r:.60}")
    return config


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text:.60} is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two values they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def check_header(path: Path) -> None:
    """Check that a safetensors file is as long as it says and its header is no longer than it may be.

    Raises:
        CheckpointError: it is not.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 0 < length <= min(MAX_HEADER, size - 8):
        raise CheckpointError(
            f"{path}: not a whole safetensors file (a header of {length:,} bytes in {size:,}); copy "
            "or download it again"
        )


class StoredTensors:
    """An open safetensors file of a folder; errors in it are `CheckpointError`s.

    Args:
        folder: the model's.
        name: of the file in it.
        what: it holds, for the message where it is missing.
    """

    def __init__(self, folder: Path, name: str, what: str) -> None:
        self.path = inside(folder, name)
        if not self.path.is_file():
            there = sorted(path.name for path in self.path.parent.glob("*.safetensors"))
            raise CheckpointError(
                f"{self.path}: expected {what}, found no such file"
                f"{f'; there are {listing(there)}' if there else ''}"
            )
        check_header(self.path)

    def __enter__(self) -> StoredTensors:
        try:
            self.file = cast(Any, safe_open(self.path, framework="pt", device="cpu"))
        except (SafetensorError, OSError) as error:
            raise self._damaged(error) from None
        self.names = set(self.file.keys())
        if not all(name.isprintable() and len(name) <= 200 for name in self.names):
            raise self._damaged(ValueError("tensors whose names are no names"))
        return self

    def __exit__(self, *exception: Any) -> None:
        self.file.__exit__(*exception)

    def _damaged(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: not a whole safetensors file ({str(error)!a:.300}); copy or "
            "download it again"
        )

    def metadata(self) -> dict[str, str]:
        """What the header says beside the tensors."""
        return self.file.metadata() or {}

    def read(
        self, shapes: Mapping[str, tuple[int, ...]], kinds: Collection[str], hint: str
    ) -> dict[str, Tensor]:
        """The tensors as stored, once names, shapes and types in the header are those expected.

        Args:
            shapes: by name.
            kinds: that are allowed, as safetensors calls them.
            hint: what ends the message where they are others.
        """
        for problem, odd in (
            ("lacks", sorted(shapes.keys() - self.names)),
            ("has the unexpected", sorted(self.names - shapes.keys())),
        ):
            if odd:
                raise CheckpointError(f"{self.path}: {problem} tensors {listing(odd, 3)}; {hint}")
        for name, shape in shapes.items():
            header = self.file.get_slice(name)
            found, kind = tuple(header.get_shape()), header.get_dtype()
            if found != shape or kind not in kinds:
                raise CheckpointError(
                    f"{self.path}: expected {name} of shape {shape} in {listing(kinds)}, found "
                    f"{found} in {kind}; {hint}"
                )
        try:
            return {name: self.file.get_tensor(name) for name in shapes}
        except SafetensorError as error:
            raise self._damaged(error) from None
