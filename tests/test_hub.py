"""Loading from the Hub, also with a network that fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_client import Client, weights
from hub_protocol import Repository
from hub_server import HubServer

from cdrl_infer.errors import InputError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import model_files

pytest_plugins = ["hub_fixtures"]
Bytes = dict[str, bytes]


def test_nothing_is_imported_until_a_repository_is_asked_for(client: Client) -> None:
    """Loading a bundled model does not import the Hub's client."""
    assert client.run("result = LIGHT") == []


def test_loads_the_same_model_from_one_commit_and_only_what_it_needs(
    client: Client, server: HubServer, repo: Repository, images: str
) -> None:
    commit = repo.branches["main"]
    with server.recorded() as requests:
        assert client.pixels("user/tiny") == images
    assert "Fetching 7 files" in client.stderr
    revisions = [r for r in requests if "/main" in r.path]
    assert [r.path for r in revisions] == ["/api/models/user/tiny/revision/main"]
    assert all(commit in r.path or "/cdn/" in r.path for r in requests if r not in revisions)
    got = {r.path.partition(f"/resolve/{commit}/")[2] for r in requests} - {""}
    assert got == {name for name in repo.head() if name in model_files()}
    assert len(weights(requests)) == 2
    assert (client.home / "hub" / "models--user--tiny" / "snapshots" / commit).is_dir()
    # The Hub counts a GET of config.json as a download.
    assert any(r.method == "GET" and r.path.endswith(f"{commit}/config.json") for r in requests)

    with server.recorded() as requests:
        assert client.pixels("user/tiny") == images
    assert requests == revisions


def test_the_branch_moves_and_tags_and_commits_stay(
    client: Client, server: HubServer, files: Bytes, other_files: Bytes, images: str
) -> None:
    repo = server.add("user/moving", files)
    repo.tags["v1"] = first = repo.branches["main"]
    assert client.pixels("user/moving") == images
    server.add("user/moving", other_files)
    repo.branches["feature/x"] = repo.branches["main"]
    newer = client.pixels("user/moving")
    assert newer != images
    assert client.pixels("user/moving", revision="feature/x") == newer
    assert client.pixels("user/moving", revision="v1") == images
    assert client.pixels("user/moving", revision=first) == images
    text = r"has no revision 'v2'; it has main, .*v1.* did you mean 'v1'\?"
    client.fails(text, "user/moving", revision="v2")


def test_a_branch_that_moves_while_it_is_downloaded(
    client: Client, server: HubServer, files: Bytes, other_files: Bytes, images: str
) -> None:
    """All files are of the commit that was looked up first."""
    server.add("user/racing", files)
    move = "/api/models/user/racing/tree/"
    with server.fault(move, act=lambda: server.add("user/racing", other_files)):
        assert client.pixels("user/racing") == images


def test_private_repositories_and_tokens(
    client: Client, server: HubServer, files: Bytes, images: str
) -> None:
    server.add("user/secret", files, private=True)
    client.fails("If it is private, log in with `hf auth login`", "user/secret")
    client.fails("token may not be allowed to read it", "user/secret", token="other-token")
    client.fails("does not accept the token: make a new", "user/secret", token="wrong-token")
    with server.recorded() as requests:
        assert client.pixels("user/secret", token="read-token") == images
    # The token is for the Hub alone, not for the host that holds the weights.
    assert {r.token for r in requests if "/cdn/" not in r.path} == {"read-token"}
    assert {r.token for r in weights(requests)} == {None}
    client.run("os.environ['HF_TOKEN'] = 'user-token'")
    assert client.pixels("user/secret") == images


def test_gated_repositories(client: Client, server: HubServer, files: Bytes) -> None:
    server.add("user/gated", files, gated=True)
    client.fails("user/gated is gated: ask for access .*hf auth login", "user/gated")
    assert client.pixels("user/gated", token="user-token")


def test_what_cannot_be_loaded(
    client: Client, server: HubServer, repo: Repository, files: Bytes
) -> None:
    server.add("user/bert", {"config.json": b"{}", "model.safetensors": b"0" * 64})
    server.add("user/foreign", {**files, "config.json": b'{"library": "other"}'})
    del (torn := dict(files))["initializer/model.safetensors"]
    server.add("user/torn", torn)
    missing, argument = "CheckpointError", "InputError"
    cases: list[tuple[str, dict[str, str], str, str]] = [
        ("user/nothing", {}, missing, "no repository user/nothing on the Hub, and no such"),
        ("user/bert", {}, missing, "not a CDRL model: it lacks model_index.json, ebm/config"),
        ("user/torn", {}, missing, "lacks initializer/model.safetensors"),
        ("user/tiny", {"variant": "bf16"}, missing, "lacks ebm/model.bf16.* variants: none"),
        ("user/tiny", {"subfolder": "inner"}, missing, "lacks inner/config.json"),
        ("user/tiny", {"variant": "fp8"}, "ConfigError", "unknown variant 'fp8', expected fp16"),
        ("user/tiny", {"subfolder": "../up"}, argument, "must be a path inside the rep"),
        ("user/tiny", {"subfolder": "*"}, argument, "must be a path inside the repository"),
        ("user/ti--ny", {}, argument, "cannot be the name of a repository"),
        ("tiny", {}, missing, "no model 'tiny'.*on the Hub a name is user/model"),
        ("fashion-mnist", {"revision": "v1"}, argument, "only repositories on the Hub have rev"),
    ]
    with server.recorded() as requests:
        for model, options, kind, text in cases:
            client.fails(text, model, kind, **options)
    assert not weights(requests)
    client.fails('expected "library": "cdrl"', "user/foreign")


def test_names_of_files_cannot_lead_out(
    client: Client, server: HubServer, files: Bytes, images: str
) -> None:
    """Nothing is written to a path with ``..`` or an absolute path."""
    outside = client.home.parent / "outside"
    server.add("user/evil", {**files, "ebm/../../outside": b"!", f"{outside}": b"!"})
    assert client.pixels("user/evil") == images
    assert not outside.exists() and not list(client.home.rglob("outside"))


def test_subfolder_and_local_folders(
    client: Client, server: HubServer, files: Bytes, folder: Path, images: str, tmp_path: Path
) -> None:
    server.add("user/nested", {f"models/tiny/{name}": data for name, data in files.items()})
    assert client.pixels("user/nested", subfolder="models/tiny") == images
    assert client.pixels("user/nested", subfolder="models/tiny", cache_dir=str(tmp_path)) == images
    assert list(tmp_path.glob("models--user--nested/snapshots/*/models/tiny/config.json"))
    with server.recorded() as requests:
        assert client.pixels(str(folder)) == images
        assert client.pixels(str(folder.parent), subfolder=folder.name) == images
    assert requests == []


def test_blobs_that_the_cache_shares_between_repositories(
    client: Client, server: HubServer, files: Bytes, images: str
) -> None:
    """As hf_xet leaves them: snapshot -> blobs of the repository -> blobs of the cache."""
    server.add("user/shared", files)
    client.pixels("user/shared")
    cache = client.home / "hub"
    [link] = cache.glob("models--user--shared/snapshots/*/ebm/model.safetensors")
    if not link.is_symlink():
        pytest.skip("no symbolic links here")
    blob, shared = link.resolve(), cache / "blobs" / "ab" / "abcd"
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    assert client.pixels("user/shared") == images


def test_dtype_and_device_are_checked_first(folder: Path) -> None:
    dtypes: list[Any] = [torch.bfloat16, torch.float16, "float64"]
    for dtype in dtypes:
        with pytest.raises(InputError, match=r"dtype must be torch\.float32"):
            CDRLPipeline.from_pretrained("user/nothing", dtype=dtype)
    with pytest.raises(InputError, match="toaster"):
        CDRLPipeline.from_pretrained("user/nothing", device="toaster")
    pipe = CDRLPipeline.from_pretrained(folder, dtype=torch.float32, device="cpu")
    assert next(pipe.model.ebm.parameters()).dtype == torch.float32


# -- a network that fails -----------------------------------------------------------------------


def test_offline_after_online(
    client: Client, offline: Client, server: HubServer, repo: Repository, images: str
) -> None:
    client.pixels("user/tiny")
    with server.recorded() as requests, server.down():
        for options in ({}, {"revision": repo.branches["main"]}):
            assert offline.pixels("user/tiny", **options) == images
            assert client.pixels("user/tiny", local_files_only=True, **options) == images
            assert client.pixels("user/tiny", **options) == images
            assert client.stderr.startswith("the Hub cannot be reached")
            assert "using the copy in the cache, commit" in client.stderr
        lacks = "the cache does not hold all files of"
        offline.fails(lacks, "user/never-loaded")
        client.fails(lacks, "user/tiny", variant="fp16", local_files_only=True)
        client.fails(lacks, "user/tiny", revision="v1", local_files_only=True)
        client.fails(r"cannot be reached .* a network\?", "user/never-loaded", "NetworkError")
    assert requests == []


def test_a_hub_that_does_not_answer_in_time(
    client: Client, server: HubServer, repo: Repository, images: str
) -> None:
    client.pixels("user/tiny")
    patience = "from huggingface_hub import constants; constants.HF_HUB_ETAG_TIMEOUT = {}"
    client.run(patience.format(1))
    with server.fault("/api/models/user/tiny", delay=2):
        assert client.pixels("user/tiny") == images
    assert "using the copy in the cache" in client.stderr
    client.run(patience.format(60))


def test_interrupted_and_tried_again(
    client: Client, server: HubServer, files: Bytes, other_files: Bytes, images: str
) -> None:
    server.add("user/broken", files)
    with server.recorded() as requests, server.fault("GET /cdn/", cut=5000, times=1):
        assert client.pixels("user/broken") == images
    assert len(weights(requests)) == 3  # the client itself tried again

    repo = server.add("user/cut", files)
    sha = repo.files("main")["initializer/model.safetensors"].sha256
    with server.fault(f"GET /cdn/{sha}", cut=5000, reset=True):
        client.fails("broke off .* complete files are kept", "user/cut", "NetworkError")
    with server.recorded() as requests:
        assert client.pixels("user/cut") == images
    assert [(r.path, r.range) for r in weights(requests)] == [(f"/cdn/{sha}", None)]

    # A newer commit does not arrive: the older one, which is complete, is used.
    server.add("user/cut", other_files)
    with server.fault("GET /cdn/", cut=5000, reset=True):
        assert client.pixels("user/cut") == images
    assert "using the copy in the cache" in client.stderr
    assert client.pixels("user/cut", local_files_only=True) == images
    assert client.pixels("user/cut") != images


def test_a_busy_hub_is_asked_again(
    client: Client, server: HubServer, files: Bytes, images: str
) -> None:
    server.add("user/busy", files)
    wait = {"Retry-After": "1"}
    with (
        server.fault("GET /api/models/user/busy/revision", status=429, headers=wait, times=1),
        server.fault("GET /api/models/user/busy/tree", status=503, times=1),
        server.fault("HEAD /user/busy/resolve/.*/ebm/model", status=503, times=1),
        server.fault("GET /cdn/", status=429, headers=wait, times=1),
    ):
        assert client.pixels("user/busy") == images

    server.add("user/busier", files)
    with server.fault("user/busier", status=429, headers={"Retry-After": "3600"}):
        text = r"too busy or broken \(429\); try again in 3600"
        client.fails(text, "user/busier", "NetworkError")
    with server.recorded() as requests, server.fault("user/busier", status=500):
        text = r"too busy or broken \(500\); try again later"
        client.fails(text, "user/busier", "NetworkError")
    assert len(requests) == 3


def test_an_address_that_is_no_hub(client: Client, server: HubServer) -> None:
    with server.fault("user/portal", status=200):
        text = r"cannot be understood .* is HF_ENDPOINT the address of a Hub, or does the network"
        client.fails(text, "user/portal", "NetworkError")
