"""Find a model by its name; download it if it is on the Hub.

`snapshot_download` could look up the revision and fall back to its cache. We do both ourselves. So a
missing file is reported before the download, the user reads why a cached copy is used, and without
the Hub a branch is its last complete download.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cdrl_infer.errors import CheckpointError, InputError, NetworkError, listing
from cdrl_infer.files import replaced_file
from cdrl_infer.storage.folder import OPTIONAL, find_model, model_files
from cdrl_infer.storage.hub.client import Target, Token, is_repo_id, patiently, timeout
from cdrl_infer.storage.hub.explain import explained
from cdrl_infer.version import __version__

WEIGHTS = re.compile(r"(?:ebm|initializer)/model(?:\.(?P<variant>[^/]+))?\.safetensors")

_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """Where a model lies, and its name. The last three are for models of a repository."""

    folder: Path  # on this machine; it holds the files that were asked for
    name: str  # for messages
    sizes: dict[str, int]  # bytes of each file, by name; also of files that were not downloaded
    repo_id: str | None = None
    commit: str | None = None  # 40 hexadecimal digits
    inside: str = ""  # the sub-folder of the repository, ending in a slash


def find(
    model: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    token: Token = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    variant: str | None = None,
    subfolder: str | None = None,
    with_weights: bool = True,
) -> Found:
    """Find a bundled model by its name, else a folder, else a repository ``user/model``.

    Files of a repository come from the cache or are downloaded; all are of one commit. If the Hub
    cannot be reached, a complete cached copy is used, and a line on stderr says so.

    Args:
        model: None is "fashion-mnist". A `Path` is never a repository.
        revision: branch, tag or commit of a repository.
        token: to read private repositories; by default the one of `hf auth login`.
        cache_dir: folder for downloads; by default the cache of the Hub's client.
        local_files_only: use the cache and do not ask the Hub.
        variant: ``"fp16"`` for ``model.fp16.safetensors``; None for the plain weights.
        subfolder: where in the folder or repository the model lies.
        with_weights: whether to download the weights too.

    Raises:
        CheckpointError: there is no such model, or it may not be read; the text says why.
        NetworkError: the Hub cannot be reached and the cache lacks the model.
        ConfigError: an unknown variant.
        InputError: an argument is invalid.
    """
    inside = _checked_subfolder(subfolder)
    if isinstance(model, str) and is_repo_id(model) and not Path(model).exists():
        names = model_files(variant)
        if not with_weights:
            names = [name for name in names if not name.endswith(".safetensors")]
        cache = None if cache_dir is None else os.fspath(cache_dir)
        wanted = _Wanted(Target(model, revision or "main", token), names, inside, cache)
        return _fetch(wanted, local_files_only)
    try:
        folder = find_model(model) / inside
    except CheckpointError as error:
        raise CheckpointError(f"{error}; on the Hub a name is user/model") from None
    if revision is not None:
        raise InputError(
            f"only repositories on the Hub have revisions, got {revision!r} for {folder}; leave it out"
        )
    return Found(folder, folder.resolve().name, file_sizes(folder))


def weights_header(found: Found, name: str, *, token: Token = None) -> dict[Any, int] | None:
    """Count the values of each type in a weights file; only its header is read.

    Args:
        found: result of `find`.
        name: of a weights file in ``found.sizes``. If it is not on this machine, its header is
            downloaded.
        token: see `find`.

    Returns:
        Counts by type ("F16", "F32" …); None if only the Hub has the file and cannot be reached.
    """
    from huggingface_hub import parse_local_safetensors_file_metadata

    file = found.folder / name
    target = Target(str(found.repo_id), str(found.commit), token)
    try:
        with explained(target):
            if file.is_file():
                return parse_local_safetensors_file_metadata(file).parameter_count
            ask = target.api().parse_safetensors_file_metadata
            where = target.repo_id, found.inside + name
            return patiently(
                lambda: ask(*where, revision=target.revision, timeout=timeout())
            ).parameter_count
    except NetworkError:
        return None


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below a folder, by its name in the folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


class _Wanted(NamedTuple):
    """Files of a model in a repository, by their names in its sub-folder ``inside``."""

    target: Target
    names: list[str]
    inside: str
    cache_dir: str | None

    def snapshot(self, revision: str, **options: Any) -> Path:
        """The folder of a commit in the cache, with the files that were asked for."""
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                self.target.repo_id,
                revision=revision,
                cache_dir=self.cache_dir,
                allow_patterns=[self.inside + name for name in self.names],
                token=self.target.token,
                library_name="cdrl",
                library_version=__version__,
                **options,
            )
        )

    def damaged(self, folder: Path) -> list[str]:
        """Those of the files in a folder of the cache whose content has changed there."""
        return [name for name in self.names if _is_damaged(folder / name)]

    def found(self, folder: Path, commit: str, sizes: dict[str, int]) -> Found:
        """The result of `find`."""
        return Found(folder, self.target.repo_id, sizes, self.target.repo_id, commit, self.inside)

    def lacking(self, present: Collection[str]) -> list[str]:
        """Files without which the model cannot be loaded, and which are not among ``present``.

        A model without an initializer has none of its files.
        """
        lacking = [name for name in self.names if name not in {*OPTIONAL, *present}]
        if not any(name.startswith("initializer/") for name in present):
            lacking = [name for name in lacking if not name.startswith("initializer/")]
        return lacking


def _fetch(wanted: _Wanted, local_files_only: bool) -> Found:
    """Files of one commit: from the Hub, or from the cache if the Hub cannot be reached."""
    from huggingface_hub import is_offline_mode

    if local_files_only or is_offline_mode():
        try:
            return _from_cache(wanted)
        except CheckpointError as error:
            raise CheckpointError(
                f"no folder {wanted.target.repo_id!r} here, and {error}; HF_HUB_OFFLINE or "
                "local_files_only forbids asking the Hub, load the model once without them"
            ) from None
    try:
        with explained(wanted.target):
            return _from_hub(wanted)
    except NetworkError as error:
        try:
            cached = _from_cache(wanted)
        except CheckpointError as lacks:
            raise NetworkError(
                f"no folder {wanted.target.repo_id!r} here, and {error} ({lacks})"
            ) from error
        _log.warning("%s; using the copy in the cache, commit %s", error, str(cached.commit)[:7])
        return cached


def _from_hub(wanted: _Wanted) -> Found:
    """Ask once which commit the revision is, then download files of that commit alone."""
    info = patiently(lambda: wanted.target.info(sizes=True))
    commit = str(info.sha)
    sizes = {
        sibling.rfilename.removeprefix(wanted.inside): sibling.size or 0
        for sibling in info.siblings or ()
        if sibling.rfilename.startswith(wanted.inside)
    }
    _check_complete(wanted, sizes)
    size = sum(sizes.get(name, 0) for name in wanted.names)
    folder = patiently(lambda: wanted.snapshot(commit), size) / wanted.inside
    if damaged := wanted.damaged(folder):
        _log.warning("%s in the cache is damaged and downloaded again", listing(damaged, 3))
        again = wanted._replace(names=damaged)
        patiently(lambda: again.snapshot(commit, force_download=True), size)
        if damaged := again.damaged(folder):
            raise CheckpointError(
                f"{listing(damaged, 3)} of {wanted.target.repo_id} does not have the content that the "
                "Hub names, also after a second download; is HF_ENDPOINT a Hub that you trust?"
            )
    _remember(wanted, commit)
    return wanted.found(folder, commit, sizes)


def _from_cache(wanted: _Wanted) -> Found:
    """The same without asking the Hub; CheckpointError if a file is missing or damaged."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, revision = wanted.target.repo_id, wanted.target.revision
    with explained(wanted.target), suppress(LocalEntryNotFoundError):
        snapshot = wanted.snapshot(revision, local_files_only=True)
        sizes = file_sizes(folder := snapshot / wanted.inside)
        if damaged := wanted.damaged(folder):
            raise CheckpointError(f"the cached {listing(damaged, 3)} of {repo} is damaged")
        if not wanted.lacking(sizes):
            return wanted.found(folder, snapshot.name, sizes)
    raise CheckpointError(f"the cache does not hold all files of {repo} ({revision})")


def _is_damaged(file: Path) -> bool:
    """Whether a file of the cache lacks the digest that is its name: sha256, or git's for small files."""
    if not (file.is_symlink() and file.is_file()):
        return False  # where there are no links, there is no such name
    name = os.path.basename(os.readlink(file))
    size = file.stat().st_size
    digests = {64: hashlib.sha256(), 40: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)}
    if (digest := digests.get(len(name))) is None:
        return False
    with file.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest() != name


def _check_complete(wanted: _Wanted, present: dict[str, int]) -> None:
    """Raise `CheckpointError` if a repository lacks files of a model, and say which."""
    lacking = wanted.lacking(present)
    if not lacking:
        return
    repo, names = wanted.target.repo_id, [wanted.inside + name for name in lacking]
    found = {m["variant"] or "none" for m in map(WEIGHTS.fullmatch, present) if m}
    if found and all(map(WEIGHTS.fullmatch, lacking)):
        raise CheckpointError(
            f"{repo} lacks {listing(names, 3)}; its variants: {listing(sorted(found))}"
        )
    raise CheckpointError(
        f"{repo} ({wanted.target.revision}) is not a CDRL model: it lacks {listing(names, 4)}; "
        "is the model in a subfolder, or is it for another library?"
    )


def _remember(wanted: _Wanted, commit: str) -> None:
    """Note in the cache which commit a branch or tag is, for times without the Hub."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    repo_id, revision = wanted.target.repo_id, wanted.target.revision
    if revision == commit:
        return
    root = Path(wanted.cache_dir or HF_HUB_CACHE).expanduser()
    ref = root / repo_folder_name(repo_id=repo_id, repo_type="model") / "refs" / revision
    with suppress(OSError):  # a read-only cache still serves
        ref.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(ref) as new:
            new.write_text(commit, encoding="utf-8")


def _checked_subfolder(subfolder: str | None) -> str:
    """The sub-folder ending in a slash, or ``""``."""
    if subfolder is None:
        return ""
    if not re.fullmatch(r"(?:(?!\.\.?/)[\w. -]+/)+", (folder := subfolder.rstrip("/") + "/")):
        raise InputError(
            f"subfolder must be a path inside the repository, for example models/tiny, got {subfolder!r}"
        )
    return folder
