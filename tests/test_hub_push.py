"""Uploading to the Hub, by Python and while training."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, make_model, make_statistics
from hub_client import Client, ClientError, drawn, files_of
from hub_server import HubServer
from test_train_cli import TINY

from cdrl_infer.errors import CheckpointError
from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage import hub
from cdrl_infer.storage.folder import STATISTICS, model_files, save_model

pytest_plugins = ["hub_fixtures"]


def test_push_and_load(
    user: Client, server: HubServer, folder: Path, images: str, model: CDRLModel, tmp_path: Path
) -> None:
    server.objects.clear()  # other tests upload the same weights, and no file is sent twice
    with server.recorded() as requests:
        url = user.push(folder, "user/new", private=True, commit_message="First")
    repo = server.repositories["user/new"]
    assert repo.private and repo.messages == ["initial commit", "First"]
    assert url == f"{server.endpoint}/user/new/commit/{repo.branches['main']}"
    model.model_card = "# Mine\n"
    save_model(model, tmp_path / "model")
    sent = repo.head()
    del sent[".gitattributes"]
    assert sent == files_of(tmp_path / "model")
    uploaded = [r.path for r in requests if r.method == "PUT"]
    assert len(uploaded) == 2 and any(r.path.endswith("/verify") for r in requests)
    assert user.pixels("user/new") == images
    # The same again: nothing is new, so there is no commit.
    user.push(folder, "user/new")
    assert len(repo.messages) == 2


def test_a_variant_is_added_and_fetched_in_place_of_the_plain_weights(
    user: Client, server: HubServer, folder: Path, images: str, model: CDRLModel, tmp_path: Path
) -> None:
    save_model(model, tmp_path / "model", variant="fp16")
    half = drawn(CDRLPipeline.from_pretrained(tmp_path / "model", variant="fp16"))
    assert half != images
    user.push(folder, "user/varied")
    user.push(folder, "user/varied", variant="fp16")
    assert "ebm/model.safetensors stays in user/varied: this upload does not" in user.stderr
    names = set(server.repositories["user/varied"].head())
    assert {"ebm/model.safetensors", "ebm/model.fp16.safetensors"} <= names
    with server.recorded() as requests:
        assert user.pixels("user/varied", variant="fp16") == half
    got = {r.path.split("/")[-1] for r in requests if "initializer/model" in r.path}
    assert got == {"model.fp16.safetensors"}
    assert user.pixels("user/varied") == images


def test_statistics_go_with_their_weights(
    user: Client, server: HubServer, model: CDRLModel, folder: Path, tmp_path: Path
) -> None:
    model.statistics = make_statistics([1.0, 2.0, 3.0], model=model)
    save_model(model, tmp_path / "model")
    user.push(tmp_path / "model", "user/calibrated")
    repo = server.repositories["user/calibrated"]
    loaded = """
found = CDRLPipeline.from_pretrained("user/calibrated").model.statistics
result = found and found.scores("energy").tolist()
"""
    assert STATISTICS in repo.head() and user.run(loaded) == [1.0, 2.0, 3.0]
    user.push(folder, "user/calibrated")  # a model that was not calibrated
    text = f"{STATISTICS} is removed from user/calibrated: it belongs to other weights"
    assert text in user.stderr
    assert STATISTICS not in repo.head() and "ebm/config.json" in repo.head()
    assert user.run(loaded) is None
    user.push(folder, "user/calibrated")
    assert STATISTICS not in user.stderr


def test_the_card_of_the_repository_is_kept_unless_asked(
    user: Client, server: HubServer, folder: Path
) -> None:
    repo = server.add("user/carded", {"README.md": b"# By hand\n", "notes.txt": b"!"})
    user.push(folder, "user/carded")
    assert repo.head()["README.md"] == b"# By hand\n"
    assert repo.head()["notes.txt"] == b"!" and "ebm/config.json" in repo.head()
    user.push(folder, "user/carded", overwrite_card=True)
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
        ("PUT /lfs/", {"status": 403}, {}, "the token may not write .* are unchanged$"),
        (commit, {"status": 500}, {}, "upload again to go on"),
        (commit, {"status": 200, "cut": 0, "reset": True}, {}, "upload again to go on"),
        (commit, {"status": 500}, {"revision": "branch"}, "upload again to go on"),
    ]:
        with server.fault(pattern, **kinds), pytest.raises(ClientError, match=text):
            user.push(folder, "user/kept", **options)
        assert (dict(repo.branches), repo.head(), list(repo.messages)) == before, pattern
    with server.recorded() as requests:
        user.push(folder, "user/kept")
    assert not [r for r in requests if r.method == "PUT"]  # had arrived before the commit failed
    assert len(repo.messages) == len(before[2]) + 1


def test_branches_and_pull_requests(user: Client, server: HubServer, folder: Path) -> None:
    repo = server.add("user/branched", {"README.md": b"# By hand\n"})
    main = repo.branches["main"]
    url = user.push(folder, "user/branched", revision="v2")
    assert repo.branches["main"] == main and url.endswith(repo.branches["v2"])
    assert "ebm/config.json" in repo.head("v2")
    url = user.push(folder, "user/branched", create_pr=True)
    assert url == f"{server.endpoint}/user/branched/discussions/1"
    assert repo.branches["main"] == main and "ebm/config.json" in repo.head("refs/pr/1")
    assert user.pixels("user/branched", revision="refs/pr/1")
    # The repository of someone else takes a pull request, but no commit.
    server.add("other/model", {"README.md": b"# Theirs\n"})
    assert user.push(folder, "other/model", create_pr=True).endswith("/discussions/1")
    with pytest.raises(ClientError, match="the token may not write to other/model"):
        user.push(folder, "other/model")


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
        ("user/public", {"token": "user-token", "private": True}, "is public, but private was"),
        ("no-user", {}, "expected the name of a repository, user/model, got 'no-user'"),
        ("user/public", {"revision": "x", "create_pr": True}, "a pull request is made against"),
    ]:
        with pytest.raises(ClientError, match=text):
            client.push(folder, repo_id, **options)
    assert public.messages == before and "user/fresh" not in server.repositories


def test_training_uploads_as_it_goes(user: Client, server: HubServer, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", train_images=images, train_labels=np.arange(16) % 3)

    def train(out: str, repo_id: str, *more: str) -> tuple[int, str]:
        arguments = ["--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / out), *TINY]
        arguments += ["--set", "sample_every=2", "--push-to-hub", repo_id, "--private", *more]
        return user.cli(*arguments, module="cdrl_train.cli")

    # The first upload fails, and the run goes on.
    with server.fault("POST /api/models/user/trained/commit", status=500, times=1):
        code, output = train("run", "user/trained")
    assert code == 0, output
    assert "not sent (Training step 2)" in output and "(End of training, step 5)" in output
    repo = server.repositories["user/trained"]
    assert repo.private and repo.messages[-1] == "End of training, step 5"
    model = files_of(tmp_path / "run" / "model")
    assert {name: repo.head()[name] for name in model} == model

    with server.fault("POST /api/models/user/trained/commit", status=500):
        # With another seed, since the same model again would be no commit.
        code, output = train("again", "user/trained", "--set", "seed=1")
    assert code == 4 and "cdrl-hub push" in output and (tmp_path / "again/model").is_dir()
    code, output = train("refused", "other/trained")
    assert code == 2 and not (tmp_path / "refused").exists()


def test_a_link_out_of_the_folder_is_not_sent(folder: Path, tmp_path: Path) -> None:
    """The link is found before the Hub is asked: there is no Hub here."""
    shutil.copytree(folder, tmp_path / "model")
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    (tmp_path / "model" / "ebm" / "model.fp16.safetensors").symlink_to(secret)
    with pytest.raises(CheckpointError, match="found a link out of it"):
        hub.push(tmp_path / "model", "user/model")


def test_other_files_are_not_sent(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    for name in ("ebm/.env", "ebm/notes.txt", "ebm/other.safetensors", "train.py"):
        (tmp_path / "model" / name).write_text("mine")
    sent = hub.upload._names_to_push(tmp_path / "model")
    assert set(sent) <= set(model_files()) and "ebm/model.safetensors" in sent
    assert "ebm/.env, ebm/notes.txt, ebm/other.safetensors, train.py" in caplog.text
