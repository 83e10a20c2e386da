"""Model folders of format version 2 become folders of version 3 that draw the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSES, make_model
from safetensors.torch import load_file, save_file

from cdrl_infer.errors import CheckpointError
from cdrl_infer.model import CDRLModel
from cdrl_infer.networks.heads import ResidualInitializer
from cdrl_infer.networks.mlp import MLP
from cdrl_infer.networks.patch_unet import PatchUNet
from cdrl_infer.networks.unet import UNet
from cdrl_infer.storage.folder import load_model, save_model
from cdrl_infer.storage.upgrade import HEADS, NO_NETWORK, upgrade

INITIALIZERS = {
    "PatchInitializer": PatchUNet(widths=(8,), num_blocks=1, embedding_dim=16, num_classes=(3,)),
    "UNetInitializer": UNet(1, (8,), 1, (), 4, 16, (3,), groups=4),
    "MLPInitializer": MLP(1, 64, 8, num_classes=(3,)),
    NO_NETWORK: None,
}


def as_version_2(folder: Path, names: dict[str, str]) -> None:
    """Undo what `upgrade` does, by hand."""

    def edit(name: str, change: Any) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(change(content)))

    edit("config.json", lambda c: {**c, "format_version": 2})
    for role, name in names.items():
        edit("model_index.json", lambda c, role=role, name=name: {**c, role: ["cdrl", name]})
        (folder / role).mkdir(exist_ok=True)
        if name == NO_NETWORK:
            (folder / role / "config.json").write_text('{"in_channels": 1, "num_classes": [3]}')
            save_file({}, folder / role / "model.safetensors")
            continue

        def flat(c: dict[str, Any]) -> dict[str, Any]:
            inner = {k: v for k, v in c.pop("backbone").items() if k != "class"}
            return {**inner, **c}

        edit(f"{role}/config.json", flat)
        for file in (folder / role).glob("*.safetensors"):
            start = HEADS[name][2]
            save_file(
                {k.replace("backbone.", start, 1): v for k, v in load_file(file).items()}, file
            )


@pytest.mark.parametrize("name", INITIALIZERS)
def test_a_folder_of_version_2_is_rewritten(tmp_path: Path, name: str) -> None:
    folder, inner = tmp_path / "m", INITIALIZERS[name]
    model: CDRLModel = make_model(CLASSES)
    model.initializer = None if inner is None else ResidualInitializer(inner)
    old = {"class": "EnergyUNet", "widths": [8], "data_variance": 0.3}
    model.training, model.model_card = {"config": {"ebm": old, "clip": 1.0}}, "# Tiny\n"
    for variant in (None, "fp16"):
        save_model(model, folder, variant=variant)
    as_version_2(folder, {"ebm": "EnergyUNet", "initializer": name})
    with pytest.raises(CheckpointError, match=r"format version 3, found 2; .*upgrade FOLDER"):
        load_model(folder)
    upgrade(folder)
    for variant in (None, "fp16"):
        loaded = load_model(folder, variant=variant)
        assert loaded.networks.keys() == model.networks.keys()
        for role, network in loaded.networks.items():
            for key, tensor in getattr(model, role).state_dict().items():
                expected = tensor.half().float() if variant else tensor
                assert torch.equal(network.state_dict()[key], expected)
    assert loaded.model_card == model.model_card
    new = {"class": "InnerProductEnergy", "backbone": {"class": "PatchUNet", "widths": [8]}}
    assert loaded.training["config"] == {"ebm": {**new, "data_variance": 0.3}, "clip": 1.0}
    with pytest.raises(CheckpointError, match="expected format version 2, found 3"):
        upgrade(folder)


def test_the_command_refuses_in_one_line_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    command = [sys.executable, "-m", "cdrl_infer.storage.upgrade", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "not a CDRL model folder" in done.stderr
    assert (tmp_path / "notes").read_text() == "mine"
