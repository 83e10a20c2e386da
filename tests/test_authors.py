"""Checkpoints of the CDRL authors that are damaged, foreign or hostile."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cdrl_infer.errors import CheckpointError
from cdrl_infer.storage.authors import load_authors_checkpoint
from cdrl_train.engine import checkpoints

FIXTURES = Path(__file__).parent / "fixtures"


def drop(content: dict[str, Any], key: str) -> None:
    del content[key]


def drop_average(content: dict[str, Any]) -> None:
    content["pi_ema_state_dict"]["shadow_params"].pop()


def misshape_average(content: dict[str, Any]) -> None:
    content["p_ema_state_dict"]["shadow_params"][0] = torch.zeros(2, 2)


def poison(content: dict[str, Any]) -> None:
    content["p_ema_state_dict"]["shadow_params"][3][0] = float("nan")


def drop_u(content: dict[str, Any]) -> None:
    del content["pi_state_dict"]["module.temb_map1.weight_u"]


def rename_layer(content: dict[str, Any]) -> None:
    state = content["p_state_dict"]
    content["p_state_dict"] = {key.replace("final_conv", "last"): state[key] for key in state}


def rename_stem(content: dict[str, Any]) -> None:
    state = content["pi_state_dict"]
    renamed = {key.replace("module_list.0.", "first."): state[key] for key in state}
    content["pi_state_dict"] = renamed


def mix_models(content: dict[str, Any]) -> None:
    other = torch.load(FIXTURES / "authors-cond.pth.tar", weights_only=True)
    for kind in ("state_dict", "ema_state_dict"):
        content[f"p_{kind}"] = other[f"p_{kind}"]


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda c: drop(c, "p_ema_state_dict"), "lacks p_ema_state_dict"),
        (drop_average, "expected 37 averaged weights .* found 36"),
        (misshape_average, "init_conv.weight.*shapes"),
        (poison, "NaN or infinity in p module.time_mlp.1.bias"),
        (drop_u, "'module.temb_map1.weight_orig'.*weight_u"),
        (rename_layer, "UNet.*head.*last"),
        (rename_stem, "authors' EBM.*module_list.0.weight"),
        (mix_models, "mixes two models"),
    ],
)
def test_damaged_checkpoints(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], text: str
) -> None:
    content = torch.load(FIXTURES / "authors-uncond.pth.tar", weights_only=True)
    damage(content)
    torch.save(content, tmp_path / "bad.pth.tar")
    with pytest.raises(CheckpointError, match=text) as caught:
        load_authors_checkpoint(tmp_path / "bad.pth.tar")
    assert "\n" not in str(caught.value) and "bad.pth.tar" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint\n", b"\x80\x02}q\x00.", b"PK\x03\x04junk"]
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pth.tar"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match="expected a checkpoint of the CDRL authors"
    ) as caught:
        load_authors_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    whole = (FIXTURES / "authors-uncond.pth.tar").read_bytes()
    (tmp_path / "short.pth.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"could not read .*short.pth.tar"):
        load_authors_checkpoint(tmp_path / "short.pth.tar")
    with pytest.raises(CheckpointError, match="found nothing at"):
        load_authors_checkpoint(tmp_path / "none.pth.tar")


class Payload:
    """A pickle that would create a file when loaded without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


class Allocates:
    """A pickle of a few bytes that `weights_only` lets take any amount of memory."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize(
    "held", [Allocates(bytearray, 2**40), Allocates(torch.FloatTensor, 2**40), Allocates(set, "ab")]
)
@pytest.mark.parametrize("load", [load_authors_checkpoint, checkpoints.load])
def test_a_checkpoint_cannot_name_what_allocates(
    tmp_path: Path, held: Allocates, load: Callable[..., object]
) -> None:
    torch.save({"step": 1, "pi_state_dict": held}, tmp_path / "large.pth.tar")
    with pytest.raises(CheckpointError, match=rf"large\.pth\.tar .*{held.call[0].__name__}"):
        load(tmp_path / "large.pth.tar")


@pytest.mark.parametrize("save", [torch.save, lambda o, p: Path(p).write_bytes(pickle.dumps(o))])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, save: Callable[..., object]) -> None:
    save({"pi_state_dict": Payload(tmp_path / "ran")}, tmp_path / "evil.pth.tar")
    with pytest.raises(CheckpointError):
        load_authors_checkpoint(tmp_path / "evil.pth.tar")
    assert not (tmp_path / "ran").exists()
