"""Read files that are not trusted: with limits on size and depth, and never outside their folder.

Also write safetensors files with the digest that is compared here.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from cdrl_infer.config import parse_json
from cdrl_infer.errors import CheckpointError, ConfigError, listing

MAX_TEXT = 2**20  # bytes of a config or a card; the largest known one has 60,000
MAX_HEADER = 2**20  # bytes of a safetensors header; the paper's largest network needs 30,000
MAX_PICTURE = 2**22
DIGEST = "sha256"  # in the metadata of a safetensors file; files of other writers may lack it
GLOBALS = (
    "GLOBAL",
    "STACK_GLOBAL",
    "INST",
    "EXT1",
    "EXT2",
    "EXT4",
)  # what names things in a pickle
PLAIN = re.compile(
    r"collections (OrderedDict|Counter)|torch (\w+Storage|Size|device|bool|[a-z]+\d+\w*)"
    r"|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)"
)


def inside(folder: Path, name: str) -> Path:
    """The path of a file in a folder; it may not exist.

    A symbolic link may not lead out of the folder. The exception is a cache of the Hub: it keeps
    ``blobs`` beside its snapshots, or one such folder for all repositories.

    Raises:
        CheckpointError: a link leads elsewhere.
    """
    path = folder / name
    try:
        real, root = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # links that form a circle
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
    """The content of a file in a folder; None if there is no such file.

    Raises:
        CheckpointError: the file has more bytes than the limit, is a link out of the folder, or cannot be
            read.
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
    """The text of a file in UTF-8; None if there is no such file.

    Raises:
        CheckpointError: see `read_bytes`; or the bytes are not UTF-8.
    """
    content = read_bytes(folder, name, MAX_TEXT)
    try:
        return None if content is None else content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{folder / name}: expected text in UTF-8, found other bytes ({error.reason}); convert "
            "or delete the file"
        ) from None


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: there is no such file, or see `read_text`.
        ConfigError: the text is not a JSON object, or `parse_json` refuses it.
    """
    path = folder / name
    text = read_text(folder, name)
    if text is None:
        raise CheckpointError(f"{path}: expected a file of JSON, found none")
    try:
        config = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: expected an object of named values, found {config!r:.60}")
    return config


def check_header(path: Path) -> None:
    """Check the lengths of a safetensors file and of its header.

    Raises:
        CheckpointError: the file is shorter than its header says, or the header is too long.
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
            "or download the file again"
        )


def load_pickle(path: Path, **options: Any) -> Any:
    """Read a file of `torch.save` that holds tensors, numbers, texts, lists and dictionaries alone.

    No code is run. Its checksums are compared, which `torch.load` does not do, and it cannot ask for
    more memory than it has bytes, as it could with ``weights_only`` alone.

    Args:
        path: the file.
        options: of `torch.load`, for example ``mmap``.

    Raises:
        pickle.UnpicklingError: the file names something else; the message ends with the name.
        Exception: of any type, for a file that is damaged or foreign.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type for entry in entries):
            raise ValueError("packed data")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("entries that overlap")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged!r:.60} does not match its checksum")
        for entry in entries:
            if not entry.filename.lower().endswith("data.pkl"):
                continue
            for code, name, _ in pickletools.genops(archive.read(entry)):
                if code.name in GLOBALS and not PLAIN.fullmatch(str(name)):
                    raise pickle.UnpicklingError(f"GLOBAL {str(name).replace(' ', '.')}")
    return torch.load(path, "cpu", weights_only=True, **options)


class StoredTensors:
    """An open safetensors file in a folder; all its errors are `CheckpointError`.

    Args:
        folder: the folder of the model.
        name: the name of the file in it.
        what: the content of the file, for the message if it is missing.
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
            raise self._damaged(ValueError("names of tensors that are too long or not printable"))
        return self

    def __exit__(self, *exception: Any) -> None:
        self.file.__exit__(*exception)

    def _damaged(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: not a whole safetensors file ({str(error)!a:.300}); copy or "
            "download the file again"
        )

    def metadata(self) -> dict[str, str]:
        """The metadata in the header."""
        return self.file.metadata() or {}

    def read(
        self, shapes: Mapping[str, tuple[int, ...]], kinds: Collection[str], hint: str
    ) -> dict[str, Tensor]:
        """The tensors as stored; names, shapes and types in the header are checked first.

        Args:
            shapes: the expected shape of each tensor, by name.
            kinds: the allowed types, as safetensors names them.
            hint: the end of the message for unexpected tensors.
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
            tensors = {name: self.file.get_tensor(name) for name in shapes}
        except SafetensorError as error:
            raise self._damaged(error) from None
        if self.metadata().get(DIGEST) not in (None, _digest(tensors)):
            raise CheckpointError(
                f"{self.path}: the tensors do not match the file's {DIGEST}, so the file is damaged; "
                "copy or download it again"
            )
        return tensors


def to_bytes(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with a digest in its metadata. Equal arguments give equal bytes."""
    content = to_safetensors(tensors, metadata={**metadata, DIGEST: _digest(tensors)})
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    # safetensors writes the metadata in a random order.
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return struct.pack("<Q", len(text)) + text + content[end:]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of tensors: names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        sha.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
