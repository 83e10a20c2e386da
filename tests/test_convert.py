"""`cdrl-hub convert`: from the authors' checkpoints to model folders; see also test_parity.py."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard
from safetensors import safe_open

from cdrl_infer.cli.hub import main
from cdrl_infer.config import from_config
from cdrl_infer.errors import CDRLError, CheckpointError
from cdrl_infer.networks.heads import ResidualInitializer
from cdrl_infer.networks.residual_ebm import ResidualEBM
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.storage.authors import convert, imagenet_classes, load_authors_checkpoint
from cdrl_infer.storage.folder import load_model

FIXTURES = Path(__file__).parent / "fixtures"
AUTHORS = FIXTURES / "authors-cond.pth.tar"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


@pytest.mark.parametrize("kind", ["uncond", "cond"])
def test_a_folder_is_made_that_loads(tmp_path: Path, kind: str) -> None:
    file = FIXTURES / f"authors-{kind}.pth.tar"
    done = run(file, tmp_path / "m", "--license", "mit", "--dataset", "cifar10")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path / 'm'}\n"
    assert "ignored" in done.stderr and "pi_optimizer" in done.stderr
    model, direct = load_model(tmp_path / "m"), load_authors_checkpoint(file)
    for role in ("ebm", "initializer"):
        ours, theirs = getattr(model, role).state_dict(), getattr(direct, role).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert model.sampler.score_scale == 2.0 and model.sampler.langevin_steps == 15
    assert model.schedule == NoiseSchedule()
    assert model.image.shape == (3, 32, 32)
    assert [len(a.values) for a in model.labels] == ([10] if kind == "cond" else [])
    with safe_open(file.with_suffix("").with_suffix(".safetensors"), framework="pt") as recorded:
        x, labels = recorded.get_tensor("x"), None
        if kind == "cond":
            labels = recorded.get_tensor("labels")[:, None]
        level = NoiseSchedule().level(torch.ones(len(x), dtype=torch.int64))
        logsnr = recorded.get_tensor("logsnr")
        level = type(level)(**{**vars(level), "logsnr": logsnr, "logsnr_in": logsnr})
        found = model.ebm(x, model.ebm.condition(level, labels)).detach()
        expected = recorded.get_tensor("f")
    assert float((found - expected).norm() / expected.norm()) <= 1e-5


def test_the_card_is_one_the_hub_reads(tmp_path: Path) -> None:
    run(AUTHORS, tmp_path / "m", "--license", "mit", "--dataset", "imagenet-1k")
    card = ModelCard.load(tmp_path / "m" / "README.md")
    data: Any = card.data
    assert (data.library_name, data.license) == ("cdrl", "mit")
    assert data.datasets == ["imagenet-1k"]
    assert data.pipeline_tag == "unconditional-image-generation"
    for word in ("arxiv.org/abs/2309.05153", f"cdrl-hub convert {AUTHORS.name}", "pi_optimizer"):
        assert word in card.text


def test_json_and_variant(tmp_path: Path) -> None:
    done = run(AUTHORS, tmp_path / "m", "--json", "--variant", "bf16")
    made = json.loads(done.stdout)
    assert made["image"] == [3, 32, 32] and made["labels"] == {"class": 10}
    assert made["score_scale"] == 2.0
    assert made["ignored"] == ["p_lr_scheduler", "p_optimizer", "pi_lr_scheduler", "pi_optimizer"]
    assert load_model(tmp_path / "m", variant="bf16").image.shape == (3, 32, 32)


def test_what_cannot_be_converted_is_told_in_one_line(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"pi_state_dict": Code()}, tmp_path / "code.tar")
    torch.save({"state_dict": {}}, tmp_path / "other.tar")
    (tmp_path / "text.tar").write_text("no checkpoint")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    cases: list[tuple[tuple[object, ...], str]] = [
        ((tmp_path / "none.tar", tmp_path / "m"), "found nothing at"),
        ((tmp_path / "text.tar", tmp_path / "m"), "could not read .*not a zip file"),
        ((tmp_path / "other.tar", tmp_path / "m"), "lacks pi_state_dict, .* holds 'state_dict'"),
        (
            (tmp_path / "code.tar", tmp_path / "m"),
            r"found code in .*\(.*\): the file is refused",
        ),
        ((AUTHORS, tmp_path / "taken"), "not a CDRL model folder, so not replaced"),
        ((AUTHORS, tmp_path / "m", "--variant", "fp8"), "'fp8' is not one of 'fp16', 'bf16'"),
        ((AUTHORS, tmp_path / "m", "--image-size", "30"), "multiples of 8, got 30 and 30"),
    ]
    for arguments, text in cases:
        done = run(*arguments)
        assert done.exit_code == 2, done.output
        assert done.stderr.count("\n") == 1
        assert re.search(text, done.stderr), done.stderr
    assert sorted(os.listdir(tmp_path)) == ["code.tar", "other.tar", "taken", "text.tar"]


def changed(tmp_path: Path, **tensors: Any) -> Path:
    """The authors' file with averages replaced, by number."""
    content = torch.load(AUTHORS, weights_only=True)
    for place, tensor in tensors.items():
        model, number = place.split("_")
        averages = content[f"{model}_ema_state_dict"]["shadow_params"]
        name = [n for n in content[f"{model}_state_dict"] if not n.endswith(("_u", "_v"))]
        averages[int(number)] = tensor
        content[f"{model}_state_dict"][name[int(number)]] = tensor
    torch.save(content, tmp_path / "changed.tar")
    return tmp_path / "changed.tar"


def test_no_more_memory_is_taken_than_the_file_has(tmp_path: Path) -> None:
    """A tensor can repeat one number endlessly, and an archive can unpack to any size."""
    huge = torch.zeros(1).expand(10**6, 10**6)
    with pytest.raises(CheckpointError, match="more numbers than the file can hold"):
        convert(changed(tmp_path, p_0=huge))
    with zipfile.ZipFile(AUTHORS) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "packed.tar", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"could not read .*packed data"):
        convert(tmp_path / "packed.tar")


@pytest.mark.parametrize("odd", ["sparse", "meta"])
def test_averages_without_numbers_of_their_own_are_refused(tmp_path: Path, odd: str) -> None:
    content = torch.load(AUTHORS, weights_only=True)
    averages = content["p_ema_state_dict"]["shadow_params"]
    averages[0] = averages[0].to_sparse() if odd == "sparse" else averages[0].to("meta")
    torch.save(content, tmp_path / "changed.tar")
    with pytest.raises(
        CheckpointError, match=r"found code in .*changed\.tar \(torch\._utils\._rebuild_"
    ):
        convert(tmp_path / "changed.tar")


def test_sizes_from_tensors_are_not_believed(tmp_path: Path) -> None:
    """An embedding of 200,000 rows would need a layer of 200,000² values."""
    live = torch.load(AUTHORS, weights_only=True)["p_state_dict"]
    number = list(live).index("module.time_mlp.1.weight")
    file = changed(tmp_path, **{f"p_{number}": torch.zeros(200_000, 2)})
    with pytest.raises(CDRLError, match=r"changed.tar"):
        convert(file)


def test_imagenet_classes_are_in_the_order_of_wordnet_ids() -> None:
    names = imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    assert [names[k] for k in (0, 1, 207, 999)] == [
        *("tench", "goldfish", "golden retriever", "toilet tissue"),
    ]
    lines = (Path(convert.__code__.co_filename).parent / "imagenet_classes.txt").read_text("utf-8")
    ids = [line.split()[0] for line in lines.splitlines() if not line.startswith("#")]
    assert ids == sorted(ids) and len(set(ids)) == 1000


def test_a_model_of_1000_classes_has_the_names_of_imagenet() -> None:
    converted = load_authors_checkpoint(AUTHORS)
    sizes = {**converted.ebm.config, "num_classes": (1000,)}
    backbone = {**converted.initializer.config["backbone"], "num_classes": [1000]}
    many = type(converted)(
        ebm=ResidualEBM(**sizes),
        initializer=from_config(ResidualInitializer, {"backbone": backbone}, "here"),
        schedule=converted.schedule,
        langevin_steps=15,
        score_scale=2.0,
        num_classes=(1000,),
    )
    (attribute,) = many.to_model().labels
    assert attribute.name == "class" and attribute.values[:2] == ("tench", "goldfish")
