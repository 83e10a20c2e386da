"""The Hub: the real client, in processes of their own, against a server on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import CLASSES, make_model, make_statistics
from hub_server import HubServer, Repository, Request
from test_train_cli import TINY

from cdrl_infer.cli.hub import main
from cdrl_infer.errors import CheckpointError, InputError
from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage import hub
from cdrl_infer.storage.folder import STATISTICS, model_files, save_model

ROOT = Path(__file__).parents[1]
LIMIT = 300  # seconds for one command of a client
# Reads code, a JSON text a line; answers with what it left in `result`, and what it wrote.
DRIVER = """
import contextlib, io, json, os, sys

channel, sys.stdout = sys.stdout, sys.stderr
from click.testing import CliRunner
from cdrl_infer.storage import hub
from cdrl_infer.pipeline import CDRLPipeline

CDRLPipeline.from_pretrained()
LIGHT = [name for name in sys.modules if name.startswith("huggingface_hub")]

def pixels(*args, **options):
    pipe = CDRLPipeline.from_pretrained(*args, **options)
    return pipe(num_images=2, seeds=7, output_type="np", progress=False).images.tobytes().hex()

def cli(*arguments):
    from cdrl_infer.cli.hub import main
    answer = CliRunner().invoke(main, arguments)
    if answer.exception and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    return answer

scope = globals()
for line in sys.stdin:
    written, scope["result"], error = io.StringIO(), None, None
    with contextlib.redirect_stderr(written):
        try:
            exec(json.loads(line), scope)
        except Exception as caught:
            error = [type(caught).__name__, str(caught)]
    answer = {"result": scope["result"], "error": error, "stderr": written.getvalue()}
    print(json.dumps(answer), file=channel, flush=True)
"""


class Client:
    """A process with the real client, set up by its environment alone."""

    def __init__(self, endpoint: str, home: Path, **environment: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            env={
                **kept,
                "PYTHONPATH": path,
                "HF_ENDPOINT": endpoint,
                "HF_HOME": str(home),
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_ETAG_TIMEOUT": "60",
                **environment,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.stderr = ""

    def run(self, code: str, **names: Any) -> Any:
        """What the code leaves in ``result``; a `ClientError` if it raises."""
        assert self.process.stdin and self.process.stdout
        given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        print(json.dumps(given + code), file=self.process.stdin, flush=True)
        watch = threading.Timer(LIMIT, self.process.kill)  # the pipe then ends, and the test fails
        watch.start()
        answer = json.loads(self.process.stdout.readline())
        watch.cancel()
        self.stderr = answer["stderr"]
        if answer["error"]:
            raise ClientError(*answer["error"])
        return answer["result"]

    def pixels(self, model: str, **options: Any) -> str:
        return str(self.run(f"result = pixels({model!r}, **{options!r})"))

    def cli(self, *arguments: str) -> tuple[int, str]:
        code, output = self.run(
            "answer = cli(*arguments); result = answer.exit_code, answer.output",
            arguments=arguments,
        )
        return code, output

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


class ClientError(Exception):
    """An error in the client's process."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def clients(
    server: HubServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Client, Client]]:
    """Two processes with one cache, started together."""
    home = tmp_path_factory.mktemp("home")
    clients = Client(server.endpoint, home), Client(server.endpoint, home, HF_HUB_OFFLINE="1")
    yield clients
    for client in clients:
        client.close()


@pytest.fixture
def client(clients: tuple[Client, Client]) -> Client:
    """Online, without a token."""
    clients[0].run("os.environ.pop('HF_TOKEN', None)")
    return clients[0]


@pytest.fixture
def user(client: Client) -> Client:
    """Online, as the owner of user/…"""
    client.run("os.environ['HF_TOKEN'] = 'user-token'")
    return client


@pytest.fixture
def offline(clients: tuple[Client, Client]) -> Client:
    """With HF_HUB_OFFLINE."""
    return clients[1]


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, bytes]:
    """A repository: a model, its card, and files that nobody needs."""
    extra = {"notes.txt": b"!", "pytorch_model.bin": b"\0" * 20_000, "ebm/other.safetensors": b"!"}
    return {**files_of(folder), "README.md": CARD.encode(), **extra}


@pytest.fixture(scope="module")
def other_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same with other weights."""
    folder = tmp_path_factory.mktemp("other") / "model"
    save_model(make_model(CLASSES, seed=1), folder)
    return {**files_of(folder), "README.md": CARD.encode()}


@pytest.fixture(scope="module")
def images(pipe: CDRLPipeline) -> str:
    """What the model draws, loaded from its folder."""
    return drawn(pipe)


@pytest.fixture(scope="module")
def repo(server: HubServer, files: dict[str, bytes]) -> Repository:
    """user/tiny: loaded by many, changed by none."""
    return server.add("user/tiny", files)


CARD = """---
library_name: cdrl
license: mit
datasets: [fashion_mnist]
model-index:
- name: tiny
  results:
  - task: {type: unconditional-image-generation}
    dataset: {type: fashion_mnist, name: Fashion-MNIST}
    metrics:
    - {type: frechet, name: Fréchet distance, value: 101.2, args: {n: 5000, extractor: lite0}}
---

# Tiny

A model\x1b[2J\x07 of nothing.
"""


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def drawn(pipe: CDRLPipeline) -> str:
    images = pipe(num_images=2, seeds=7, output_type="np", progress=False).images
    assert isinstance(images, np.ndarray)
    return images.tobytes().hex()


def weights(requests: list[Request]) -> list[Request]:
    return [r for r in requests if r.method == "GET" and "/cdn/" in r.path]


# -- loading ------------------------------------------------------------------------------------


def test_nothing_is_imported_until_a_repository_is_asked_for(client: Client) -> None:
    """First of all tests here: the process has loaded a bundled model and no more."""
    assert client.run("result = LIGHT") == []


def test_loads_the_same_model_from_one_commit_and_only_what_it_needs(
    client: Client, server: HubServer, repo: Repository, images: str
) -> None:
    commit = repo.branches["main"]
    with server.recorded() as requests:
        assert client.pixels("user/tiny") == images
    assert "Fetching 7 files" in client.stderr
    revisions = [r for r in requests if "/main" in r.path]
    assert [r.path.split("?")[0] for r in revisions] == ["/api/models/user/tiny/revision/main"]
    assert all(commit in r.path or "/cdn/" in r.path for r in requests if r not in revisions)
    got = {r.path.partition(f"/resolve/{commit}/")[2] for r in requests} - {""}
    assert got == {name for name in repo.head() if name in model_files()}
    assert len(weights(requests)) == 2
    assert (client.home / "hub" / "models--user--tiny" / "snapshots" / commit).is_dir()
    # What the Hub counts as one download.
    assert [r.method for r in requests if r.path.endswith(f"{commit}/config.json")].count(
        "GET"
    ) >= 1

    with server.recorded() as requests:
        assert client.pixels("user/tiny") == images
    assert requests == revisions


def test_the_branch_moves_and_tags_and_commits_stay(
    client: Client,
    server: HubServer,
    files: dict[str, bytes],
    other_files: dict[str, bytes],
    images: str,
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
    with pytest.raises(ClientError, match=r"has no revision 'v2'; it has main, .*v1") as caught:
        client.pixels("user/moving", revision="v2")
    assert caught.value.kind == "CheckpointError" and "did you mean 'v1'?" in str(caught.value)


def test_a_branch_that_moves_while_it_is_downloaded(
    client: Client,
    server: HubServer,
    files: dict[str, bytes],
    other_files: dict[str, bytes],
    images: str,
) -> None:
    """Files are of the commit that was resolved, though main is another before the first is got."""
    server.add("user/racing", files)
    move = "/api/models/user/racing/tree/"
    with server.fault(move, act=lambda: server.add("user/racing", other_files)):
        assert client.pixels("user/racing") == images


def test_private_repositories_and_tokens(
    client: Client, server: HubServer, files: dict[str, bytes], images: str
) -> None:
    server.add("user/secret", files, private=True)
    with pytest.raises(ClientError, match="If it is private, log in with `hf auth login`"):
        client.pixels("user/secret")
    with pytest.raises(ClientError, match="token may not be allowed to read it"):
        client.pixels("user/secret", token="other-token")
    with pytest.raises(ClientError, match="the Hub does not accept the token: make a new one"):
        client.pixels("user/secret", token="wrong-token")
    with server.recorded() as requests:
        assert client.pixels("user/secret", token="read-token") == images
    # The token is for the Hub alone, not for the host that holds the weights.
    assert {r.token for r in requests if "/cdn/" not in r.path} == {"read-token"}
    assert {r.token for r in weights(requests)} == {None}
    client.run("os.environ['HF_TOKEN'] = 'user-token'")
    assert client.pixels("user/secret") == images


def test_gated_repositories(client: Client, server: HubServer, files: dict[str, bytes]) -> None:
    server.add("user/gated", files, gated=True)
    with pytest.raises(ClientError, match=r"user/gated is gated: ask for access .*hf auth login"):
        client.pixels("user/gated")
    assert client.pixels("user/gated", token="user-token")


def test_what_cannot_be_loaded(
    client: Client, server: HubServer, repo: Repository, files: dict[str, bytes]
) -> None:
    server.add("user/bert", {"config.json": b"{}", "model.safetensors": b"0" * 64})
    server.add("user/foreign", {**files, "config.json": b'{"library": "other"}'})
    for model, options, kind, text in [
        (
            "user/nothing",
            {},
            "CheckpointError",
            "no repository user/nothing on the Hub, and no such",
        ),
        (
            "user/bert",
            {},
            "CheckpointError",
            "not a CDRL model: it lacks model_index.json, ebm/config.json",
        ),
        ("user/foreign", {}, "CheckpointError", 'expected "library": "cdrl"'),
        (
            "user/tiny",
            {"variant": "bf16"},
            "CheckpointError",
            "lacks ebm/model.bf16.safetensors.* variants: none",
        ),
        ("user/tiny", {"subfolder": "inner"}, "CheckpointError", "lacks inner/config.json"),
        ("user/tiny", {"variant": "fp8"}, "ConfigError", "unknown variant 'fp8', expected fp16"),
        ("user/tiny", {"subfolder": "../up"}, "InputError", "inside the repository"),
        ("user/tiny", {"subfolder": "*"}, "InputError", "names with / between"),
        ("user/ti--ny", {}, "InputError", "cannot be the name of a repository"),
        ("tiny", {}, "CheckpointError", "no model 'tiny'.*on the Hub a name is user/model"),
        ("fashion-mnist", {"revision": "v1"}, "InputError", "only a repository on the Hub has rev"),
    ]:
        with server.recorded() as requests, pytest.raises(ClientError, match=text) as caught:
            client.pixels(model, **options)
        assert caught.value.kind == kind and "\n" not in str(caught.value)
        assert not weights(requests) or model == "user/foreign"


def test_names_of_files_are_no_way_out(
    client: Client, server: HubServer, files: dict[str, bytes], images: str
) -> None:
    """Neither ``..`` nor an absolute path of a repository is written anywhere."""
    outside = client.home.parent / "outside"
    server.add("user/evil", {**files, "ebm/../../outside": b"!", f"{outside}": b"!"})
    assert client.pixels("user/evil") == images
    assert not outside.exists() and not list(client.home.rglob("outside"))


def test_subfolder_and_local_folders(
    client: Client,
    server: HubServer,
    files: dict[str, bytes],
    folder: Path,
    images: str,
    tmp_path: Path,
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
    client: Client, server: HubServer, files: dict[str, bytes], images: str
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
        for who, model, options in (
            (offline, "user/never-loaded", {}),
            (client, "user/tiny", {"variant": "fp16", "local_files_only": True}),
            (client, "user/tiny", {"revision": "v1", "local_files_only": True}),
        ):
            with pytest.raises(ClientError, match="is not whole in the cache") as caught:
                who.pixels(model, **options)
            assert caught.value.kind == "CheckpointError"
        with pytest.raises(
            ClientError, match=r"the Hub cannot be reached .* a network\?"
        ) as caught:
            client.pixels("user/never-loaded")
        assert caught.value.kind == "NetworkError"
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
    client: Client,
    server: HubServer,
    files: dict[str, bytes],
    other_files: dict[str, bytes],
    images: str,
) -> None:
    server.add("user/broken", files)
    with server.recorded() as requests, server.fault("GET /cdn/", cut=5000, times=1):
        assert client.pixels("user/broken") == images
    assert len(weights(requests)) == 3  # the client itself tried again

    repo = server.add("user/cut", files)
    sha = repo.commits[repo.branches["main"]]["initializer/model.safetensors"].sha256
    with (
        server.fault(f"GET /cdn/{sha}", cut=5000, reset=True),
        pytest.raises(ClientError, match=r"broke off .* whole files are kept") as caught,
    ):
        client.pixels("user/cut")
    assert caught.value.kind == "NetworkError"
    with server.recorded() as requests:
        assert client.pixels("user/cut") == images
    assert [(r.path, r.range) for r in weights(requests)] == [(f"/cdn/{sha}", None)]

    # A newer commit that does not arrive: the older one is whole, and is said to be used.
    server.add("user/cut", other_files)
    with server.fault("GET /cdn/", cut=5000, reset=True):
        assert client.pixels("user/cut") == images
    assert "using the copy in the cache" in client.stderr
    assert client.pixels("user/cut") != images


def test_a_busy_hub_is_asked_again(
    client: Client, server: HubServer, files: dict[str, bytes], images: str
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
    with (
        server.fault("user/busier", status=429, headers={"Retry-After": "3600"}),
        pytest.raises(
            ClientError, match=r"too busy or broken \(429\); try again in 3600"
        ) as caught,
    ):
        client.pixels("user/busier")
    assert caught.value.kind == "NetworkError"
    with (
        server.recorded() as requests,
        server.fault("user/busier", status=500),
        pytest.raises(ClientError, match=r"too busy or broken \(500\); try again later"),
    ):
        client.pixels("user/busier")
    assert len(requests) == 3


def test_an_address_that_is_no_hub(client: Client, server: HubServer) -> None:
    with (
        server.fault("user/portal", status=200),
        pytest.raises(ClientError, match=r"makes no sense .* is HF_ENDPOINT that of a Hub\?"),
    ):
        client.pixels("user/portal")


# -- uploading ----------------------------------------------------------------------------------

LOADED = "pipe = CDRLPipeline.from_pretrained({folder!r})\npipe.model.model_card = '# Mine\\n'\n"


def push(client: Client, folder: Path, repo_id: str, **options: Any) -> str:
    code = LOADED.format(folder=str(folder))
    return str(client.run(f"{code}result = pipe.push_to_hub({repo_id!r}, **{options!r})"))


def test_push_and_load(
    user: Client, server: HubServer, folder: Path, images: str, model: CDRLModel, tmp_path: Path
) -> None:
    with server.recorded() as requests:
        url = push(user, folder, "user/new", private=True, commit_message="First")
    repo = server.repositories["user/new"]
    assert repo.private and repo.messages == ["initial commit", "First"]
    assert url == f"{server.endpoint}/user/new/commit/{repo.branches['main']}"
    model.model_card = "# Mine\n"
    save_model(model, tmp_path / "model")
    assert repo.head() == {
        **files_of(tmp_path / "model"),
        ".gitattributes": repo.head()[".gitattributes"],
    }
    uploaded = [r.path for r in requests if r.method == "PUT"]
    assert len(uploaded) == 2 and any(r.path.endswith("/verify") for r in requests)
    assert user.pixels("user/new") == images
    # The same again: nothing is new, so there is no commit.
    push(user, folder, "user/new")
    assert len(repo.messages) == 2


def test_a_variant_is_added_and_fetched_in_place_of_the_plain_weights(
    user: Client, server: HubServer, folder: Path, images: str, model: CDRLModel, tmp_path: Path
) -> None:
    save_model(model, tmp_path / "model", variant="fp16")
    half = drawn(CDRLPipeline.from_pretrained(tmp_path / "model", variant="fp16"))
    assert half != images
    push(user, folder, "user/varied")
    push(user, folder, "user/varied", variant="fp16")
    assert "ebm/model.safetensors stays in user/varied: this upload does not" in user.stderr
    names = set(server.repositories["user/varied"].head())
    assert {"ebm/model.safetensors", "ebm/model.fp16.safetensors"} <= names
    with server.recorded() as requests:
        assert user.pixels("user/varied", variant="fp16") == half
    assert {r.path.split("/")[-1] for r in requests if "initializer/model" in r.path} == {
        "model.fp16.safetensors"
    }
    assert user.pixels("user/varied") == images


def test_statistics_go_with_their_weights(
    user: Client, server: HubServer, model: CDRLModel, folder: Path, tmp_path: Path
) -> None:
    model.statistics = make_statistics([1.0, 2.0, 3.0], model=model)
    save_model(model, tmp_path / "model")
    push(user, tmp_path / "model", "user/calibrated")
    repo = server.repositories["user/calibrated"]
    loaded = """
found = CDRLPipeline.from_pretrained("user/calibrated").model.statistics
result = found and found.scores["energy"].tolist()
"""
    assert STATISTICS in repo.head() and user.run(loaded) == [1.0, 2.0, 3.0]
    push(user, folder, "user/calibrated")  # a model that was not calibrated
    assert f"{STATISTICS} is removed from user/calibrated: it is of other weights" in user.stderr
    assert STATISTICS not in repo.head() and "ebm/config.json" in repo.head()
    assert user.run(loaded) is None
    push(user, folder, "user/calibrated")
    assert STATISTICS not in user.stderr


def test_the_card_of_the_repository_is_kept_unless_asked(
    user: Client, server: HubServer, folder: Path
) -> None:
    repo = server.add("user/carded", {"README.md": b"# By hand\n", "notes.txt": b"!"})
    push(user, folder, "user/carded")
    assert repo.head()["README.md"] == b"# By hand\n"
    assert repo.head()["notes.txt"] == b"!" and "ebm/config.json" in repo.head()
    push(user, folder, "user/carded", overwrite_card=True)
    assert repo.head()["README.md"] == b"# Mine\n"


def test_a_failed_upload_changes_nothing_and_the_next_goes_on(
    user: Client, server: HubServer, other_files: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save_model(make_model(CLASSES, seed=2), folder)
    repo = server.add("user/kept", other_files)
    before = (dict(repo.branches), repo.head(), list(repo.messages))
    commit = "POST /api/models/user/kept/commit"
    for pattern, kinds, options, text in [
        ("PUT /lfs/", {"status": 403}, {}, "the token may not write .* are as they were$"),
        (commit, {"status": 500}, {}, "do the same again to go on"),
        (commit, {"status": 200, "cut": 0, "reset": True}, {}, "do the same again to go on"),
        (commit, {"status": 500}, {"revision": "branch"}, "do the same again to go on"),
    ]:
        with server.fault(pattern, **kinds), pytest.raises(ClientError, match=text):
            push(user, folder, "user/kept", **options)
        assert (dict(repo.branches), repo.head(), list(repo.messages)) == before, pattern
    with server.recorded() as requests:
        push(user, folder, "user/kept")
    assert not [r for r in requests if r.method == "PUT"]  # had arrived before the commit failed
    assert len(repo.messages) == len(before[2]) + 1


def test_branches_and_pull_requests(
    user: Client, server: HubServer, files: dict[str, bytes], folder: Path
) -> None:
    repo = server.add("user/branched", {"README.md": b"# By hand\n"})
    main = repo.branches["main"]
    url = push(user, folder, "user/branched", revision="v2")
    assert repo.branches["main"] == main and url.endswith(repo.branches["v2"])
    assert "ebm/config.json" in repo.head("v2")
    url = push(user, folder, "user/branched", create_pr=True)
    assert url == f"{server.endpoint}/user/branched/discussions/1"
    assert repo.branches["main"] == main and "ebm/config.json" in repo.head("refs/pr/1")
    assert user.pixels("user/branched", revision="refs/pr/1")
    # Another's repository takes a pull request, and no commit.
    server.add("other/model", {"README.md": b"# Theirs\n"})
    assert push(user, folder, "other/model", create_pr=True).endswith("/discussions/1")
    with pytest.raises(ClientError, match="the token may not write to other/model"):
        push(user, folder, "other/model")


def test_what_cannot_be_uploaded(client: Client, server: HubServer, folder: Path) -> None:
    public = server.add("user/public", {"README.md": b"# By hand\n"})
    before = list(public.messages)
    login = "needs a token with the right to write: log in with `hf auth login`"
    for repo_id, options, text in [
        ("user/public", {}, login),
        ("user/fresh", {}, login),
        ("user/fresh", {"token": "wrong"}, "does not accept the token"),
        ("user/fresh", {"token": "read-token"}, "the token may not write to user/fresh"),
        ("user/public", {"token": "read-token"}, "the token may not write to user/public"),
        ("user/public", {"token": "user-token", "private": True}, "is public, private was asked"),
        ("no-user", {}, "expected the name of a repository, user/model, got 'no-user'"),
        ("user/public", {"revision": "x", "create_pr": True}, "a pull request is made against"),
    ]:
        with pytest.raises(ClientError, match=text):
            push(client, folder, repo_id, **options)
    assert public.messages == before and "user/fresh" not in server.repositories


# -- commands -----------------------------------------------------------------------------------


def test_info_downloads_no_weights(
    client: Client, server: HubServer, files: dict[str, bytes], folder: Path
) -> None:
    server.add("user/shown", files)
    with server.recorded() as requests:
        code, output = client.cli("info", "user/shown", "--json")
    assert code == 0, output
    facts = json.loads(output[output.index("{") :])
    assert facts["labels"] == [{"name": "attribute 0", "values": list(CLASSES)}]
    assert facts["image"] == {"channels": 1, "height": 8, "width": 8}
    assert facts["networks"] == {"ebm": "EnergyUNet", "initializer": "PatchInitializer"}
    size = len(files["ebm/model.safetensors"])
    ebm = facts["weights"][0]
    assert (ebm["file"], ebm["variant"], ebm["bytes"]) == ("ebm/model.safetensors", None, size)
    assert 0 < ebm["values"]["F32"] <= size // 4
    assert facts["license"] == "mit" and facts["datasets"] == ["fashion_mnist"]
    assert facts["figures"] == [
        {
            "dataset": "Fashion-MNIST",
            "metric": "Fréchet distance",
            "value": 101.2,
            "settings": {"n": 5000, "extractor": "lite0"},
        }
    ]
    assert "# Tiny" in facts["card"]
    assert all(r.range for r in requests if "/cdn/" in r.path)  # headers alone
    assert list((client.home / "hub" / "models--user--shown").rglob("config.json"))
    assert not list((client.home / "hub" / "models--user--shown").rglob("*.safetensors"))

    code, output = client.cli("info", "user/shown")
    assert code == 0 and not {"\x1b", "\x07"} & set(output)  # a card cannot write over the terminal
    for text in (
        "8 × 8",
        "Shirt, Sneaker, Bag",
        "Fréchet distance 101.2 on Fashion-MNIST",
        "# Tiny",
    ):
        assert text in output
    for model in (str(folder), "fashion-mnist"):
        with server.recorded() as requests:
            code, output = client.cli("info", model)
        assert (code, requests) == (0, []) and "weights" in output


def test_push_by_command(user: Client, server: HubServer, folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    (mine / "README.md").write_text("# Mine\n")
    (mine / "secrets.txt").write_text("?")
    code, output = user.cli("push", str(mine), "user/commanded", "--private", "--json")
    assert code == 0, output
    repo = server.repositories["user/commanded"]
    made = json.loads(output[output.index("{") :])
    assert made["repo_id"] == "user/commanded" and made["commit"] == repo.branches["main"]
    assert sorted(made["files"]) == sorted([*files_of(folder), "README.md"])
    assert repo.private and "secrets.txt" not in repo.head()
    code, output = user.cli("push", str(mine), "user/commanded")
    assert code == 0 and "keeps its README.md; --overwrite-card replaces it" in output

    with open(mine / "ebm" / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    with server.recorded() as requests:
        code, output = user.cli("push", str(mine), "user/commanded")
        assert code == 2 and "not a whole safetensors file" in output
        code, output = user.cli("push", str(tmp_path), "user/commanded")
        assert code == 2 and "found no weights in it" in output
    assert requests == []


def test_exit_codes(client: Client, offline: Client, server: HubServer, folder: Path) -> None:
    def exits(who: Client, *arguments: str) -> int:
        code, output = who.cli(*arguments)
        assert output.splitlines()[-1].startswith("cdrl-hub: error: "), output
        return code

    assert exits(client, "info", "user/nothing") == 2
    assert exits(client, "info", "nothing") == 2
    assert exits(client, "push", str(folder), "user/x") == 2  # no token
    assert exits(client, "pish") == 2
    assert exits(offline, "info", "user/never-loaded") == 2
    assert exits(offline, "push", str(folder), "user/x") == 4
    with server.down():
        assert exits(client, "info", "user/never-loaded") == 4
        assert exits(client, "push", str(folder), "user/x") == 4


def test_shells_complete_the_command() -> None:
    env = {"_CDRL_HUB_COMPLETE": "bash_complete", "COMP_WORDS": "cdrl-hub in", "COMP_CWORD": "1"}
    assert CliRunner().invoke(main, env=env, prog_name="cdrl-hub").output == "plain,info\n"


def test_commands_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "plug-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[cdrl.hub_commands]\nfrob = plug_in:frob\nlost = plug_gone:frob\ninfo = plug_in:frob\n"
    )
    (tmp_path / "plug_in.py").write_text(
        "import click\n@click.command()\ndef frob():\n    'Frobs.'\n    click.echo('frobbed')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = CliRunner().invoke
    assert run(main, ["frob"]).output == "frobbed\n"
    assert "Show this" in run(main, ["info", "--help"]).output  # ours goes first
    lost = run(main, ["lost"])
    assert lost.exit_code == 2 and "plug_gone" in lost.output
    listed = run(main, ["--help"])
    assert listed.exit_code == 0 and "Frobs." in listed.output and "info" in listed.output


def test_training_uploads_as_it_goes(user: Client, server: HubServer, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", train_images=images, train_labels=np.arange(16) % 3)
    arguments = [
        *("--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "run"), *TINY),
        *("--set", "sample_every=2", "--push-to-hub", "user/trained", "--private"),
    ]
    # The first upload fails; the rest of the run does not mind.
    with server.fault("POST /api/models/user/trained/commit", status=500, times=1):
        code, output = user.run(TRAIN, arguments=arguments)
    assert code == 0, output
    assert "not sent (Training step 2)" in output and "(End of training, step 5)" in output
    repo = server.repositories["user/trained"]
    assert repo.private and repo.messages[-1] == "End of training, step 5"
    model = files_of(tmp_path / "run" / "model")
    assert {name: repo.head()[name] for name in model} == model

    arguments[arguments.index("--out") + 1] = str(tmp_path / "again")
    arguments += ["--set", "seed=1"]  # the same model again would be no commit
    with server.fault("POST /api/models/user/trained/commit", status=500):
        code, output = user.run(TRAIN, arguments=arguments)
    assert code == 4 and "cdrl-hub push" in output and (tmp_path / "again/model").is_dir()
    arguments[arguments.index("--out") + 1] = str(tmp_path / "refused")
    arguments[arguments.index("user/trained")] = "other/trained"
    code, output = user.run(TRAIN, arguments=arguments)
    assert code == 2 and not (tmp_path / "refused").exists()


TRAIN = """
from cdrl_train.cli import main as train
answer = CliRunner().invoke(train, arguments)
result = answer.exit_code, answer.output
"""


def test_dtype_and_device_are_checked_first(folder: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16, "float64"):
        with pytest.raises(InputError, match=r"dtype must be torch\.float32"):
            CDRLPipeline.from_pretrained("user/nothing", dtype=dtype)
    with pytest.raises(InputError, match="toaster"):
        CDRLPipeline.from_pretrained("user/nothing", device="toaster")
    pipe = CDRLPipeline.from_pretrained(folder, dtype=torch.float32, device="cpu")
    assert next(pipe.model.ebm.parameters()).dtype == torch.float32


def test_a_link_out_of_the_folder_is_not_sent(folder: Path, tmp_path: Path) -> None:
    """It is found before the Hub is asked: there is none here."""
    shutil.copytree(folder, tmp_path / "model")
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    (tmp_path / "model" / "ebm" / "model.fp16.safetensors").symlink_to(secret)
    with pytest.raises(CheckpointError, match="found a link out of it"):
        hub.push(tmp_path / "model", "user/model")


def test_what_is_no_part_of_a_model_is_not_sent(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    for name in ("ebm/.env", "ebm/notes.txt", "ebm/other.safetensors", "train.py"):
        (tmp_path / "model" / name).write_text("mine")
    sent = hub._names_to_push(tmp_path / "model")
    assert set(sent) <= set(model_files()) and "ebm/model.safetensors" in sent
    assert "ebm/.env, ebm/notes.txt, ebm/other.safetensors, train.py" in caplog.text
