"""`cdrl-hub`: info, push, exit codes, and commands of other packages."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import CLASSES
from hub_client import Client, drawn, files_of
from hub_server import HubServer

from cdrl_infer.cli.hub import main
from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import bundled_models, save_model

pytest_plugins = ["hub_fixtures"]


def told(output: str) -> Any:
    """The JSON at the end of an output."""
    return json.loads(output[output.index("{") :])


def test_info_downloads_no_weights(
    client: Client, server: HubServer, files: dict[str, bytes], folder: Path
) -> None:
    server.add("user/shown", files)
    with server.recorded() as requests:
        code, output = client.cli("info", "user/shown", "--json")
    assert code == 0, output
    facts = told(output)
    assert facts["labels"] == [{"name": "attribute 0", "values": list(CLASSES)}]
    assert facts["image"] == {"channels": 1, "height": 8, "width": 8}
    assert set(facts["networks"]) == {"ebm", "initializer"}
    size = len(files["ebm/model.safetensors"])
    ebm = facts["weights"][0]
    assert (ebm["file"], ebm["variant"], ebm["bytes"]) == ("ebm/model.safetensors", None, size)
    assert 0 < ebm["values"]["F32"] <= size // 4
    assert facts["license"] == "mit" and facts["datasets"] == ["fashion_mnist"]
    settings = {"n": 5000, "extractor": "lite0"}
    result = {"metric": "Fréchet distance", "value": 101.2, "settings": settings}
    assert facts["results"] == [{"dataset": "Fashion-MNIST", **result}]
    assert "# Tiny" in facts["card"]
    assert all(r.range for r in requests if "/cdn/" in r.path)  # headers alone
    cache = client.home / "hub" / "models--user--shown"
    assert list(cache.rglob("config.json")) and not list(cache.rglob("*.safetensors"))

    code, output = client.cli("info", "user/shown")
    assert code == 0 and not {"\x1b", "\x07"} & set(output)  # a card cannot write over the terminal
    labels, result = "Shirt, Sneaker, Bag", "Fréchet distance 101.2 on Fashion-MNIST"
    for text in ("8 × 8", labels, result, "# Tiny"):
        assert text in output
    for model in (str(folder), "fashion-mnist"):
        with server.recorded() as requests:
            code, output = client.cli("info", model)
        assert (code, requests) == (0, []) and "weights" in output


def test_bundled_models_are_listed() -> None:
    result = CliRunner().invoke(main, ["models"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines] == bundled_models()
    for line in lines:
        pipe = CDRLPipeline.from_pretrained(line.split()[0])
        sizes = [
            p.numel() for network in pipe.model.networks.values() for p in network.parameters()
        ]
        image = pipe.model.image
        assert f"{image.height} × {image.width}" in line
        assert f"{sum(sizes) / 1e6:.1f} M values" in line
        for attribute in pipe.model.labels:
            assert f"{attribute.name} ({len(attribute.values)})" in line
    found = json.loads(CliRunner().invoke(main, ["models", "--json"]).output)
    assert [facts["model"] for facts in found] == bundled_models()


def test_a_model_without_initializer(
    user: Client, server: HubServer, model: CDRLModel, tmp_path: Path
) -> None:
    model.initializer = None
    save_model(model, tmp_path / "alone")
    code, output = user.cli("push", str(tmp_path / "alone"), "user/alone", "--json")
    assert code == 0 and sorted(told(output)["files"]) == sorted(files_of(tmp_path / "alone"))
    code, output = user.cli("info", "user/alone", "--json")
    assert code == 0 and told(output)["networks"]["initializer"] is None
    assert [file["file"] for file in told(output)["weights"]] == ["ebm/model.safetensors"]
    code, output = user.cli("info", "user/alone")
    assert code == 0 and "initializer  none" in output
    images = drawn(CDRLPipeline.from_pretrained(tmp_path / "alone"))
    assert user.pixels("user/alone") == images
    assert user.pixels("user/alone", local_files_only=True) == images


def test_push_by_command(user: Client, server: HubServer, folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    (mine / "README.md").write_text("# Mine\n")
    (mine / "secrets.txt").write_text("?")
    code, output = user.cli("push", str(mine), "user/commanded", "--private", "--json")
    assert code == 0, output
    repo = server.repositories["user/commanded"]
    made = told(output)
    assert made["repo_id"] == "user/commanded" and made["commit"] == repo.branches["main"]
    assert sorted(made["files"]) == sorted([*files_of(folder), "README.md"])
    assert repo.private and "secrets.txt" not in repo.head()
    code, output = user.cli("push", str(mine), "user/commanded")
    assert code == 0 and "keeps its README.md; --overwrite-card replaces it" in output
    (mine / "README.md").write_text("---\nlicense: mit\n")
    code, output = user.cli("push", str(mine), "user/commanded", "--overwrite-card")
    assert code == 2 and "the Hub does not accept the card: " in output

    with open(mine / "ebm" / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    with server.recorded() as requests:
        code, output = user.cli("push", str(mine), "user/commanded")
        assert code == 2 and "not a whole safetensors file" in output
        code, output = user.cli("push", str(tmp_path), "user/commanded")
        assert code == 2 and "found no weights in it" in output
    assert requests == []


def test_push_of_networks_from_a_module(
    user: Client, server: HubServer, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    config = tmp_path / "model" / "ebm" / "config.json"
    config.write_text(config.read_text().replace('"PatchUNet"', '"Mine"'))
    (tmp_path / "mine.py").write_text(
        "from cdrl_infer.networks.registry import BACKBONES\n"
        "BACKBONES.register('Mine', type('Mine', (BACKBONES['PatchUNet'],), {}))\n"
    )
    arguments = "push", str(tmp_path / "model"), "user/mine"
    code, output = user.cli(*arguments)
    assert code == 2 and "unknown backbone 'Mine'" in output
    user.run(f"os.chdir({str(tmp_path)!r})")
    code, output = user.cli(*arguments, "--import", "mine")
    user.run(f"os.chdir({os.getcwd()!r})")
    assert code == 0 and "ebm/config.json" in server.repositories["user/mine"].head(), output


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
    assert "Show this" in run(main, ["info", "--help"]).output  # our own command goes first
    lost = run(main, ["lost"])
    assert lost.exit_code == 2 and "plug_gone" in lost.output
    listed = run(main, ["--help"])
    assert listed.exit_code == 0 and "Frobs." in listed.output and "info" in listed.output
