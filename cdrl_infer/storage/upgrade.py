"""``python -m cdrl_infer.storage.upgrade FOLDER``: a model folder of format version 2 becomes version 3.

Classes get their new names, backbones are nested in the configs, and tensors are renamed. The tensors'
numbers do not change, and a digest is added. An initializer without weights becomes none. All other files
stay as they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from cdrl_infer.errors import CDRLError, CheckpointError
from cdrl_infer.files import added_files
from cdrl_infer.networks.registry import NETWORKS
from cdrl_infer.storage.folder import CONFIG, FORMAT_VERSION, INDEX, check_replaceable
from cdrl_infer.storage.weights import METADATA
from cdrl_infer.untrusted import check_header, read_json, to_bytes
from cdrl_infer.version import __version__

# By old class: the head, its backbone, and the start of the tensors' names that "backbone." replaces.
HEADS = {
    "EnergyUNet": ("InnerProductEnergy", "PatchUNet", "unet."),
    "PatchInitializer": ("ResidualInitializer", "PatchUNet", "unet."),
    "UNetInitializer": ("ResidualInitializer", "UNet", ""),
    "MLPInitializer": ("ResidualInitializer", "MLP", ""),
}
NO_NETWORK = "IdentityInitializer"


def upgrade(folder: Path) -> None:
    """Rewrite a folder in place, whole or not at all.

    Raises:
        CheckpointError: not a model folder of version 2, or one with links in it.
        ConfigError: a file is not JSON.
    """
    check_replaceable(folder)
    config, index = read_json(folder, CONFIG), read_json(folder, INDEX)
    if config.get("format_version") != 2:
        raise CheckpointError(
            f"{folder}: expected format version 2, found {config.get('format_version')!r:.20}"
        )
    if any(path.is_symlink() for path in folder.rglob("*")):
        raise CheckpointError(
            f"{folder}: expected files, found links; upgrade a copy without links"
        )
    config |= {"format_version": FORMAT_VERSION, "library_version": __version__}
    options = config.get("training", {}).get("config", {})
    removed: list[str] = []
    with added_files(folder, removed) as new:
        for role in NETWORKS:
            name = index[role][1]
            if role in options:
                options[role] = _nested(options[role])
            network = _nested({"class": name, **read_json(folder, f"{role}/{CONFIG}")})
            weights = sorted((folder / role).glob("*.safetensors"))
            if network is None:
                index[role] = None
                removed += [f"{role}/{file}" for file in (CONFIG, *(path.name for path in weights))]
                continue
            index[role] = ["cdrl", network.pop("class")]
            (new / role).mkdir()
            _write(new / role / CONFIG, network)
            for path in weights:
                tensors = _tensors(path, HEADS[name][2] if name in HEADS else None)
                (new / role / path.name).write_bytes(to_bytes(tensors, METADATA))
        _write(new / CONFIG, config)
        _write(new / INDEX, index)


def _nested(options: dict[str, Any]) -> dict[str, Any] | None:
    """``{"class": ..., **arguments}`` of version 3 for that of version 2; None for no network."""
    if options["class"] == NO_NETWORK:
        return None
    if options["class"] not in HEADS:
        return options
    head, backbone, _ = HEADS[options["class"]]
    own = {key: value for key, value in options.items() if key == "data_variance"}
    inner = {key: value for key, value in options.items() if key not in own}
    return {"class": head, "backbone": {**inner, "class": backbone}, **own}


def _tensors(file: Path, start: str | None) -> dict[str, Tensor]:
    """The tensors of a file; in their names "backbone." replaces ``start``."""
    check_header(file)
    tensors = load_file(file)
    if start is None:
        return tensors
    return {f"backbone.{name.removeprefix(start)}": tensor for name, tensor in tensors.items()}


def _write(file: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m cdrl_infer.storage.upgrade", description=__doc__
    )
    parser.add_argument("folder", type=Path, help="the model folder, which is rewritten")
    folder: Path = parser.parse_args().folder
    try:
        upgrade(folder.resolve())
    except CDRLError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
