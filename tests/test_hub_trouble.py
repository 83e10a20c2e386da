"""The Hub in trouble: silence, Ctrl-C, damaged files of the cache, tokens, proxies, hostile texts."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import CLASSES, make_model
from hub_client import Client, ClientError, files_of
from hub_protocol import Repository
from hub_server import HubServer

from cdrl_infer.cli.hub import main
from cdrl_infer.errors import CheckpointError, InputError, NetworkError
from cdrl_infer.storage import card
from cdrl_infer.storage.folder import save_model
from cdrl_infer.storage.hub.client import Target
from cdrl_infer.storage.hub.explain import explained

pytest_plugins = ["hub_fixtures"]
SECRET = "hf_SECRETsecretSECRET"
SILENT = "did not answer|was not done within"


@pytest.fixture
def hasty(user: Client) -> Iterator[Client]:
    """A client that waits a second for the Hub."""
    patience = "from cdrl_infer.storage.hub import client; client.PATIENCE = {}"
    user.run(patience.format(1.0))
    yield user
    user.run(patience.format(60.0))


@pytest.mark.parametrize("pattern", ["HEAD /user/stalled/", "GET /api/models/user/stalled/tree"])
def test_a_hub_that_falls_silent_while_loading(
    hasty: Client, server: HubServer, files: dict[str, bytes], pattern: str
) -> None:
    server.add("user/stalled", files)
    started = time.monotonic()
    with server.fault(pattern, delay=30):
        hasty.fails(SILENT, "user/stalled", "NetworkError")
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("pattern", ["POST .*/commit", "PUT /lfs/", "POST /api/repos/create"])
def test_a_hub_that_falls_silent_while_uploading(
    hasty: Client, server: HubServer, pattern: str, tmp_path: Path
) -> None:
    save_model(make_model(CLASSES, seed=len(pattern)), tmp_path / "model")  # not sent before
    started = time.monotonic()
    with server.fault(pattern, delay=30), pytest.raises(ClientError, match=SILENT) as caught:
        hasty.push(tmp_path / "model", "user/silent")
    assert caught.value.kind == "NetworkError" and "upload again to go on" in str(caught.value)
    assert time.monotonic() - started < 15


def listen() -> None:
    """A shell's background job, and all that it starts, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("pattern", ["GET /api/models/user/tiny/revision", "HEAD /user/tiny/"])
def test_ctrl_c_ends_a_program_at_once(
    client: Client, server: HubServer, repo: Repository, tmp_path: Path, pattern: str
) -> None:
    """Also while threads of the client wait for the Hub."""
    code = "from cdrl_infer.cli.hub import main; main(['info', 'user/tiny'])"
    env = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path)}
    with server.fault(pattern, delay=60):
        program = subprocess.Popen(
            [sys.executable, "-c", code],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=listen,
        )
        while server.faults[-1].times == 1_000_000 and program.poll() is None:
            time.sleep(0.1)
        program.send_signal(signal.SIGINT)
        _, written = program.communicate(timeout=20)
    assert program.returncode == 130 and "cdrl-hub: interrupted" in written


@pytest.mark.parametrize("name", ["ebm/model.safetensors", "config.json"])
def test_a_damaged_file_of_the_cache_is_downloaded_again(
    client: Client, server: HubServer, files: dict[str, bytes], images: str, name: str
) -> None:
    repo = f"user/damaged-{len(name)}"
    server.add(repo, files)
    assert client.pixels(repo) == images
    [file] = client.home.glob(f"hub/models--{repo.replace('/', '--')}/snapshots/*/{name}")
    if not file.is_symlink():
        pytest.skip("no symbolic links here")
    file.resolve().write_bytes(files[name][:100])
    client.fails(f"cached {name} of {repo} is damaged", repo, local_files_only=True)
    assert client.pixels(repo) == images
    assert f"{name} in the cache is damaged and downloaded again" in client.stderr
    assert client.pixels(repo, local_files_only=True) == images


def test_a_folder_that_is_mistyped(client: Client, server: HubServer) -> None:
    with server.down():
        text = "no folder 'runs/modle' here, and the Hub cannot be reached"
        client.fails(text, "runs/modle", "NetworkError")
    text = "no folder 'runs/modle' here, and the cache does not"
    client.fails(text, "runs/modle", local_files_only=True)


# -- tokens, proxies, certificates --------------------------------------------------------------


def test_a_token_is_stripped_and_never_shown(
    client: Client, server: HubServer, files: dict[str, bytes], images: str
) -> None:
    server.add("user/hidden", files, private=True)
    for token in ("user-token\n", "\tuser-token "):
        assert client.pixels("user/hidden", token=token) == images
    client.fails("If it is private, log in", "user/hidden", token=" \n")
    for token, kind, text in (
        (SECRET, "CheckpointError", "does not accept the token"),
        (f"{SECRET}\nx", "InputError", "has a character that no token has"),
        (f"{SECRET}é", "InputError", "has a character that no token has"),
    ):
        client.fails(text, "user/hidden", kind, token=token)
        with pytest.raises(ClientError) as caught:
            client.pixels("user/hidden", token=token)
        assert SECRET not in str(caught.value) + client.stderr
    echo = {"X-Error-Message": f"Bearer {SECRET} is \x1b[2Jbad", "X-Request-Id": "1"}
    with server.fault("user/hidden", status=418, headers=echo):
        client.fails(r"\(418\): .*<token> is \?\[2Jbad", "user/hidden", token=SECRET)
    assert SECRET not in repr(Target("user/hidden", token=SECRET))
    with pytest.raises(InputError, match="token must be a text, got int"):
        Target("user/hidden", token=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"HTTP_PROXY": "http://me:pass@127.0.0.1:9"}, "through the proxy of HTTP_PROXY"),
        ({"HTTP_PROXY": "foo://me:pass@127.0.0.1:9"}, "settings of a proxy or of certificates"),
        ({"SSL_CERT_FILE": "/no/such/file"}, "settings of a proxy or of certificates"),
    ],
)
def test_a_proxy_or_certificates_that_do_not_work(
    client: Client, repo: Repository, images: str, settings: dict[str, str], text: str
) -> None:
    """They are called by their names, and a whole copy in the cache is used."""
    client.pixels("user/tiny")
    fresh = "from huggingface_hub import close_session; close_session()\n"
    client.run(f"{fresh}os.environ.update({settings!r})")
    try:
        assert client.pixels("user/tiny") == images
        assert text in client.stderr and "using the copy in the cache" in client.stderr
        assert "pass@" not in client.stderr
        client.fails(text, "user/never-loaded", "NetworkError")
    finally:
        client.run(f"{fresh}for name in {list(settings)!r}: del os.environ[name]")


def test_a_certificate_that_is_not_accepted() -> None:
    with (
        pytest.raises(
            NetworkError, match="certificate of the Hub, or of a proxy before it, is not"
        ),
        explained(Target("user/model")),
    ):
        raise ConnectionError("[SSL]") from ssl.SSLCertVerificationError(1, "verify failed")


# -- texts from outside -------------------------------------------------------------------------


def test_a_hostile_model_is_described_clean_and_short(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    for name, content in files_of(folder).items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(content)
    config = json.loads((model / "config.json").read_text())
    config["labels"][0]["name"] = "a\x1b[2J\u202eb" + "x" * 100_000
    (model / "config.json").write_text(json.dumps(config))
    front = "---\nlicense: mit\u202e\n2020-01-01: 1\n---\n"
    (model / "README.md").write_text(front + "# Tiny\x07\n" + "    code\x9b\n" * 30_000)
    result = CliRunner().invoke(main, ["info", str(model)])
    assert result.exit_code == 0, result.output
    assert len(result.output) < 25_000 and "a?[2J?b" in result.output
    assert "    code?\n" in result.output and "--json prints them" in result.output
    assert all(c.isprintable() or c == "\n" for c in result.output)
    asked = CliRunner().invoke(main, ["info", str(model), "--json"])
    assert asked.exit_code == 0 and "\x1b" not in asked.output


@pytest.mark.parametrize(
    "front",
    [
        "a: [" + "{b: c}, " * 40_000 + "]\n",
        "a: " + "[" * 5000 + "]" * 5000 + "\n",
        "a: &a [x]\nb: [*a, *a]\n",
        "- a\n",
        "a: 2001-99-99\n",
    ],
)
def test_front_matter_that_is_not_read(front: str) -> None:
    """It is refused before it takes seconds, or memory."""
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="front matter cannot be edited") as caught:
        card.with_figures(f"---\n{front}---\n# Mine\n", [], dataset=None, model="mine")
    assert time.monotonic() - started < 2 and len(str(caught.value)) < 400
