"""Fixtures of the tests with the Hub: a server, clients, repositories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CLASSES, make_model
from hub_client import Client, drawn, files_of
from hub_protocol import Repository
from hub_server import HubServer

from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import save_model

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


@pytest.fixture(scope="session")
def server() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def files(folder: Path) -> dict[str, bytes]:
    """A repository: a model, its card, and files that nobody needs."""
    extra = {"notes.txt": b"!", "pytorch_model.bin": b"\0" * 20_000, "ebm/other.safetensors": b"!"}
    return {**files_of(folder), "README.md": CARD.encode(), **extra}


@pytest.fixture(scope="session")
def other_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same with other weights."""
    folder = tmp_path_factory.mktemp("other") / "model"
    save_model(make_model(CLASSES, seed=1), folder)
    return {**files_of(folder), "README.md": CARD.encode()}


@pytest.fixture(scope="session")
def images(pipe: CDRLPipeline) -> str:
    """What the model draws, loaded from its folder."""
    return drawn(pipe)


@pytest.fixture(scope="session")
def repo(server: HubServer, files: dict[str, bytes]) -> Repository:
    """user/tiny, which no test changes."""
    return server.add("user/tiny", files)
