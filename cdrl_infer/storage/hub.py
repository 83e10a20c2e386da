"""Hugging Face Hub <-> folder: find a model, download it, upload one.

`huggingface_hub` is imported when a repository is first asked for, so that bundled models and local
folders cost nothing. It reads ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE``.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cdrl_infer.errors import (
    CDRLError,
    CheckpointError,
    InputError,
    NetworkError,
    did_you_mean,
    listing,
)
from cdrl_infer.files import replaced_file
from cdrl_infer.scoring.reference import STATISTICS
from cdrl_infer.storage.folder import CARD, OPTIONAL, VARIANTS, find_model, model_files
from cdrl_infer.untrusted import inside
from cdrl_infer.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")
Token = str | bool | None

LOGIN = "log in with `hf auth login`, set HF_TOKEN or pass token=…"
BUSY = (408, 429, 500, 502, 503, 504)  # HTTP answers after which trying again may help
WAITS = (1.0, 2.0)  # seconds before a busy Hub is asked again …
LONGEST_WAIT = 60.0  # … unless it asks for more, up to this
WEIGHTS = re.compile(r"(?:ebm|initializer)/model(?:\.(?P<variant>[^/]+))?\.safetensors")

_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """Where a model lies, and what to call it.

    Attributes:
        folder: on the disk; of a repository it holds what was asked for.
        name: for messages.
        sizes: in bytes, by name, of the files in it; of a repository also of those not downloaded.
        repo_id: "user/model"; None for what was on the disk.
        commit: 40 hexadecimal digits; None likewise.
        inside: the sub-folder of the repository, with a slash at its end, or "".
    """

    folder: Path
    name: str
    sizes: dict[str, int]
    repo_id: str | None = None
    commit: str | None = None
    inside: str = ""


class _Snapshot(NamedTuple):
    """A commit of a repository: where what was asked for lies, and the sizes of all its files."""

    folder: Path
    commit: str
    sizes: dict[str, int]


class Pushed(NamedTuple):
    """What an upload made.

    Attributes:
        url: of the commit or the pull request.
        commit: 40 hexadecimal digits.
        files: what the commit brought, by name.
        card_kept: whether the repository's README.md was there already and was left alone.
    """

    url: str
    commit: str
    files: tuple[str, ...]
    card_kept: bool


def is_repo_id(name: object) -> bool:
    """Whether a text names a repository: ``user/model``."""
    return isinstance(name, str) and bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w", name))


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
    """A bundled model by its name, else a folder that exists, else a repository ``user/model``.

    Files of a repository are downloaded unless the cache has them, all of one commit. If the Hub
    cannot be reached, a copy in the cache is used, and a line on stderr says so.

    Args:
        model: None is "fashion-mnist"; a `Path` is never a repository.
        revision: branch, tag or commit of a repository.
        token: to read private repositories with; by default the one of `hf auth login`.
        cache_dir: where downloads are kept; by default the cache of the Hub's client.
        local_files_only: look up no more than the cache.
        variant: which weights, ``"fp16"`` for ``model.fp16.safetensors``; None for the plain ones.
        subfolder: of the folder or repository, where the model lies.
        with_weights: whether to download the weights too.

    Raises:
        CheckpointError: no such model, or it may not be read; the text says why.
        NetworkError: the Hub could not be reached and the cache lacks the model.
        ConfigError: an unknown variant.
        InputError: an argument that cannot be right.
    """
    inside = _checked_subfolder(subfolder)
    if isinstance(model, str) and is_repo_id(model) and not Path(model).exists():
        names = [name for name in model_files(variant) if with_weights or not _is_weights(name)]
        cache = None if cache_dir is None else os.fspath(cache_dir)
        where = _Where(model, revision or "main", cache)
        needed = [inside + name for name in names if _is_needed(name)]
        snapshot = _fetch(where, [inside + n for n in names], needed, token, local_files_only)
        sizes = {
            name.removeprefix(inside): size
            for name, size in snapshot.sizes.items()
            if name.startswith(inside)
        }
        return Found(snapshot.folder / inside, model, sizes, model, snapshot.commit, inside)
    try:
        folder = find_model(model) / inside
    except CheckpointError as error:
        raise CheckpointError(f"{error}; on the Hub a name is user/model") from None
    if revision is not None:
        raise InputError(
            f"only a repository on the Hub has revisions, got {revision!r} for {folder}; leave it out"
        )
    return Found(folder, folder.resolve().name, _sizes(folder))


def weights_header(found: Found, name: str, *, token: Token = None) -> dict[Any, int] | None:
    """How many values of each type a weights file holds, from its header alone.

    Args:
        found: by `find`.
        name: of a weights file in ``found.sizes``; if it is not on the disk, only its header is
            downloaded.
        token: see `find`.

    Returns:
        By type ("F16", "F32" …); None where only the Hub has the file and could not be asked.
    """
    from huggingface_hub import parse_local_safetensors_file_metadata

    file = found.folder / name
    repo_id, commit = str(found.repo_id), str(found.commit)
    try:
        with _explained(_Where(repo_id, commit), token):
            if file.is_file():
                return parse_local_safetensors_file_metadata(file).parameter_count
            api = _api(token)
            return _patiently(
                lambda: api.parse_safetensors_file_metadata(
                    repo_id, found.inside + name, revision=commit, timeout=_timeout()
                )
            ).parameter_count
    except NetworkError:
        return None


def variants(folder: str | os.PathLike[str]) -> list[str | None]:
    """The variants of the weights in a model folder, None (the plain ones) first if there.

    Raises:
        CheckpointError: there are no weights.
    """
    found = {m["variant"] for m in map(WEIGHTS.fullmatch, _sizes(Path(folder))) if m}
    if not found:
        raise CheckpointError(f"{folder}: expected a model folder, found no weights in it")
    return sorted(found, key=lambda variant: variant or "")


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: Token = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    overwrite_card: bool = False,
) -> Pushed:
    """Upload a model folder in one commit; the repository is made if there is none.

    A failed upload leaves the files of the repository as they were. Other files in it stay, but not
    the reference statistics of another model's scores.

    Args:
        folder: as `cdrl_infer.storage.folder.save_model` writes it; its files alone are sent.
        repo_id: ``user/model``.
        private: of a repository that is made; None is the account's default. True is refused where
            the repository is there already and public.
        token: with the right to write; by default the one of `hf auth login`.
        revision: the branch, made if it does not exist; None is "main".
        create_pr: open a pull request in place of committing to the branch.
        commit_message: by default "Upload a CDRL model".
        overwrite_card: replace a README.md that is there already.

    Raises:
        CheckpointError: the Hub refused; the text says why and how to go on.
        NetworkError: it could not be reached, or the connection broke.
        InputError: an argument that cannot be right.
    """
    check_push(repo_id, revision=revision, create_pr=create_pr)
    folder = Path(folder)
    names = _names_to_push(folder)
    where = _Where(repo_id, revision or "main")
    try:
        make_repository(repo_id, private=private, token=token)
        with _explained(where, token, writing=True):
            from huggingface_hub import CommitOperationAdd, CommitOperationDelete

            api = _api(token)
            with _branch(api, repo_id, revision) as there:
                card_kept = CARD in there and CARD in names and not overwrite_card
                if card_kept:
                    names.remove(CARD)
                for stale in sorted(filter(WEIGHTS.fullmatch, there - set(names))):
                    _log.warning("%s stays in %s: this upload does not replace it", stale, repo_id)
                old = sorted({STATISTICS} & there - set(names))
                for name in old:
                    _log.warning("%s is removed from %s: it is of other weights", name, repo_id)
                made = api.create_commit(
                    repo_id,
                    [
                        *(CommitOperationAdd(name, folder / name) for name in names),
                        *map(CommitOperationDelete, old),
                    ],
                    commit_message=commit_message or "Upload a CDRL model",
                    revision=revision,
                    create_pr=create_pr,
                )
    except CheckpointError as error:
        again = ": do the same again to go on, what has arrived is not sent twice"
        raise type(error)(
            f"{error}; an upload is one commit, and the files of {repo_id} are as they were"
            f"{again if isinstance(error, NetworkError) else ''}"
        ) from error
    return Pushed(str(made.pr_url or made.commit_url), made.oid, tuple(names), card_kept)


def check_push(repo_id: str, *, revision: str | None = None, create_pr: bool = False) -> None:
    """Raise `InputError` for what no upload could be asked for."""
    if not is_repo_id(repo_id):
        raise InputError(f"expected the name of a repository, user/model, got {repo_id!r}")
    if create_pr and revision not in (None, "main"):
        raise InputError(
            f"a pull request is made against main, got revision {revision!r}; leave one of them out"
        )


def make_repository(repo_id: str, *, private: bool | None = None, token: Token = None) -> None:
    """Make a repository unless it exists; the errors are those of `push`."""
    check_push(repo_id)
    with _explained(_Where(repo_id, "main"), token, writing=True):
        api = _api(token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        public = private and not api.model_info(repo_id, timeout=_timeout()).private
    if public:
        raise InputError(
            f"{repo_id} exists and is public, private was asked; change that in its settings on the "
            "Hub, or name another repository"
        )


# -- the parts of it ----------------------------------------------------------------------------


class _Where(NamedTuple):
    """What is asked for, for messages and the cache."""

    repo_id: str
    revision: str
    cache_dir: str | None = None


def _fetch(
    where: _Where, files: list[str], needed: list[str], token: Token, local_files_only: bool
) -> _Snapshot:
    """Files of a repository by name or pattern, from the Hub or, failing that, from the cache."""
    from huggingface_hub import is_offline_mode

    if local_files_only or is_offline_mode():
        return _from_cache(where, files, needed)
    try:
        return _from_hub(where, files, needed, token)
    except NetworkError as error:
        try:
            cached = _from_cache(where, files, needed)
        except CheckpointError:
            raise error from None
        _log.warning("%s; using the copy in the cache, commit %s", error, cached.commit[:7])
        return cached


def _from_hub(where: _Where, files: list[str], needed: list[str], token: Token) -> _Snapshot:
    """Ask once which commit the revision is, then for files of that commit alone."""
    with _explained(where, token):
        from huggingface_hub import snapshot_download

        api = _api(token)
        info = _patiently(
            lambda: api.model_info(
                where.repo_id, revision=where.revision, files_metadata=True, timeout=_timeout()
            )
        )
        commit = str(info.sha)
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
        _check_complete(where, sizes, needed)
        folder = _patiently(
            lambda: snapshot_download(
                where.repo_id,
                revision=commit,
                cache_dir=where.cache_dir,
                token=token,
                allow_patterns=files,
                library_name="cdrl",
                library_version=__version__,
            )
        )
    _remember(where, commit)
    return _Snapshot(Path(folder), commit, sizes)


def _from_cache(where: _Where, files: list[str], needed: list[str]) -> _Snapshot:
    """The same without asking the Hub; CheckpointError if the cache does not hold all of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    missing = CheckpointError(
        f"{where.repo_id} ({where.revision}) is not whole in the cache and the Hub may not be asked; "
        "load it once with a network, without HF_HUB_OFFLINE or local_files_only"
    )
    with _explained(where, None):
        try:
            folder = Path(
                snapshot_download(
                    where.repo_id,
                    revision=where.revision,
                    cache_dir=where.cache_dir,
                    local_files_only=True,
                    allow_patterns=files,
                )
            )
        except LocalEntryNotFoundError:
            raise missing from None
    if not all((folder / name).is_file() for name in needed):
        raise missing
    return _Snapshot(folder, folder.name, _sizes(folder))


def _sizes(folder: Path) -> dict[str, int]:
    """Of all files below a folder, in bytes, by name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _check_complete(where: _Where, present: Iterable[str], needed: list[str]) -> None:
    """Raise `CheckpointError` if a repository lacks files of a model, and say which."""
    names = set(present)
    lacking = [name for name in needed if name not in names]
    if not lacking:
        return
    if all(WEIGHTS.search(name) for name in lacking):
        found = sorted({m["variant"] or "none" for m in map(WEIGHTS.search, names) if m})
        if found:
            raise CheckpointError(
                f"{where.repo_id} lacks {listing(lacking, 3)}; its variants: {listing(found)}"
            )
    raise CheckpointError(
        f"{where.repo_id} ({where.revision}) is not a CDRL model: it lacks {listing(lacking, 4)}; "
        "is there a subfolder to name, or is it a model for another library?"
    )


def _remember(where: _Where, commit: str) -> None:
    """Note in the cache which commit a branch or tag is, for when the Hub cannot be asked."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    if where.revision == commit:
        return
    root = Path(where.cache_dir or HF_HUB_CACHE).expanduser()
    refs = root / repo_folder_name(repo_id=where.repo_id, repo_type="model") / "refs"
    with suppress(OSError):  # a cache that cannot be written to can still be read
        (refs / where.revision).parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(refs / where.revision) as new:
            new.write_text(commit, encoding="utf-8")


@contextmanager
def _branch(api: HfApi, repo_id: str, revision: str | None) -> Iterator[set[str]]:
    """The files of a branch; one that has to be made for the block goes again if that fails."""
    from huggingface_hub.errors import RevisionNotFoundError

    made = False
    try:
        info = api.model_info(repo_id, revision=revision, timeout=_timeout())
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=str(revision))
        made = True
        info = api.model_info(repo_id, revision=revision, timeout=_timeout())
    try:
        yield {sibling.rfilename for sibling in info.siblings or ()}
    except BaseException:
        if made:
            with suppress(Exception):  # the error on its way says more
                api.delete_branch(repo_id, branch=str(revision))
        raise


def _names_to_push(folder: Path) -> list[str]:
    """The files of a model folder, in all its variants; what else lies there is not sent.

    Raises:
        CheckpointError: not a model folder, or a link that leads out of it.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: expected a model folder, found no config.json in it")
    names = sorted(_sizes(folder))
    known = {name for variant in VARIANTS for name in model_files(variant)}
    sent = [name for name in names if name in known]
    for name in sent:
        inside(folder, name)
    if left := [name for name in names if name not in sent]:
        _log.warning("not sent, since no part of a model: %s", listing(left))
    return sent


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _is_needed(name: str) -> bool:
    """Whether a model cannot be loaded without this file of `model_files`."""
    return name not in OPTIONAL


def _checked_subfolder(subfolder: str | None) -> str:
    """``""`` or the sub-folder with a slash at its end."""
    if subfolder is None:
        return ""
    parts = subfolder.strip("/").split("/")
    if subfolder.startswith("/") or not all(re.fullmatch(r"[\w. -]+", p) for p in parts):
        raise InputError(f"subfolder must be names with / between, got {subfolder!r}")
    if {".", ".."} & set(parts):
        raise InputError(f"subfolder must lie inside the repository, got {subfolder!r}")
    return "/".join(parts) + "/"


def _api(token: Token) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="cdrl", library_version=__version__)


def _timeout() -> float:
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    return HF_HUB_ETAG_TIMEOUT


def _patiently(ask: Callable[[], T]) -> T:
    """Ask again where the Hub is busy, after as long as it says."""
    from huggingface_hub.errors import HfHubHTTPError

    for wait in WAITS:
        try:
            return ask()
        except HfHubHTTPError as error:
            asked = _retry_after(error)
            if error.response.status_code not in BUSY or asked > LONGEST_WAIT:
                raise
            time.sleep(max(wait, asked))
    return ask()


def _retry_after(error: HfHubHTTPError) -> float:
    """The seconds a busy Hub asked to wait, 0 if it did not say."""
    text = str(error.response.headers.get("Retry-After", ""))
    return float(text) if re.fullmatch(r"\d{1,6}", text) else 0.0


@contextmanager
def _explained(where: _Where, token: Token, *, writing: bool = False) -> Iterator[None]:
    """Whatever the Hub's client raises, as one of our errors, in one line."""
    try:
        yield
    except CDRLError:
        raise
    except Exception as error:
        raise _explain(error, where, token, writing) from error


def _explain(error: BaseException, where: _Where, token: Token, writing: bool) -> CDRLError:
    from huggingface_hub import errors, get_token
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    repo = where.repo_id
    reason = _one_line(str(error))
    cause = error.__cause__
    if isinstance(error, (errors.LocalEntryNotFoundError, RuntimeError)) and cause is not None:
        return _explain(cause, where, token, writing)  # the wrapping says less than what it wraps
    if isinstance(error, errors.HFValidationError):
        return InputError(f"{repo!r} cannot be the name of a repository: {reason}")
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"{repo} is gated: ask for access on its page on the Hub, then {LOGIN}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(
            f"{repo} has no revision {where.revision!r}{_revisions(where, token)}"
        )
    known = bool(token) if token is not None else get_token() is not None
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    if writing and not known and status in (401, 403, 404):
        return CheckpointError(
            f"uploading to {repo} needs a token with the right to write: {LOGIN}"
        )
    # To a stranger the Hub does not tell what is missing from what is private.
    if isinstance(error, errors.RepositoryNotFoundError) or (status == 401 and not known):
        return CheckpointError(
            f"no repository {repo} on the Hub, and no such folder here; is the name right? "
            + ("The token may not be allowed to read it" if known else f"If it is private, {LOGIN}")
        )
    if isinstance(error, errors.HfHubHTTPError):
        said = _one_line(error.server_message or reason)
        if status == 401:
            return CheckpointError(f"the Hub does not accept the token: make a new one and {LOGIN}")
        if status == 403:
            return CheckpointError(
                f"the token may not {'write to' if writing else 'read'} {repo} ({said}); take one "
                f"that may: {LOGIN}"
            )
        if status in BUSY:
            wait = _retry_after(error)
            when = f"in {wait:.0f} seconds" if wait else "later"
            return NetworkError(f"the Hub is too busy or broken ({status}); try again {when}")
        return CheckpointError(f"the Hub refused ({status}): {said}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return NetworkError("HF_HUB_OFFLINE is set, so the Hub was not asked; unset it")
    if isinstance(error, HTTPError) and type(error).__name__.startswith("Connect"):
        return NetworkError(f"the Hub cannot be reached ({reason}); is there a network?")
    # RuntimeError: what hf_xet, which moves large files, raises when its transfer fails.
    broken = isinstance(error, (HTTPError, ConnectionError, TimeoutError, RuntimeError))
    if isinstance(error, OSError) and error.errno is not None and not broken:
        return CheckpointError(f"cannot read or write files for {repo}: {error.strerror}")
    if broken or isinstance(error, OSError):
        return NetworkError(
            f"the connection to the Hub broke off ({reason or type(error).__name__}); try again: "
            "whole files are kept, the one that was interrupted starts anew"
        )
    if isinstance(error, errors.SafetensorsParsingError):
        return CheckpointError(f"weights that are not a safetensors file: {reason}")
    if isinstance(error, ValueError) and CARD in reason:
        return InputError(f"the Hub does not accept the card: {reason}")
    return CheckpointError(
        f"the answer of the Hub makes no sense ({type(error).__name__}: {reason}); is HF_ENDPOINT "
        "that of a Hub?"
    )


def _one_line(text: str) -> str:
    """What another machine says, short and without characters that steer a terminal."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:300]


def _revisions(where: _Where, token: Token) -> str:
    """``"; it has …"``, as far as the Hub tells."""
    try:
        refs = _api(token).list_repo_refs(where.repo_id)
    except Exception:  # only a hint; the error it belongs to is on its way
        return ""
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    return f"; it has {listing(names)}{did_you_mean(where.revision, names)}"
