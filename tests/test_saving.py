"""Saving into folders that exist, that others use, and from which a killed save left something."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, make_model, make_statistics
from fork_client import Starter
from safetensors import safe_open

from cdrl_infer.errors import CheckpointError
from cdrl_infer.files import added_files, replaced_file
from cdrl_infer.model import CDRLModel
from cdrl_infer.storage.folder import check_replaceable, load_model, save_model
from cdrl_infer.untrusted import DIGEST

pytest_plugins = ["fork_fixtures"]

KILLED = """
import sys
from cdrl_infer.storage.folder import load_model, save_model
model = load_model({new!r})
events = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "fcntl.flock")
calls = 0
def count(event, arguments):
    global calls
    calls += event in events
    if event in events and calls == {moment}:
        os.kill(os.getpid(), 9)
sys.addaudithook(count)
save_model(model, {target!r}, variant={variant!r})
"""


def same(a: CDRLModel, b: CDRLModel) -> bool:
    pairs = zip(a.ebm.state_dict().values(), b.ebm.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs) and a.model_card == b.model_card


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")
@pytest.mark.parametrize("exists", [True, False])
def test_a_kill_at_any_call_leaves_the_old_model_or_the_new_and_no_litter(
    start: Starter, tmp_path: Path, exists: bool
) -> None:
    old, new = make_model(CLASSES), make_model(CLASSES, seed=1)
    old.statistics, old.model_card = make_statistics([1.0, 2.0, 3.0], model=old), "# Old"
    save_model(new, tmp_path / "new")
    found, code = set(), -signal.SIGKILL
    for moment in range(1, 1000, 3):
        if code == 0:
            break
        target = tmp_path / str(moment) / "model"
        if exists:
            save_model(old, target)
            (target / "notes.txt").touch()
        process = start.order(
            code=KILLED.format(
                moment=moment, new=str(tmp_path / "new"), target=str(target), variant=None
            )
        )
        code = process.wait()
        assert code in (0, -signal.SIGKILL), process.said()
        files = ["config.json", "ebm", "initializer", "model_index.json"]
        if exists or target.exists():
            loaded = load_model(target)
            is_new = same(loaded, new)
            assert is_new or same(loaded, old)
            assert (loaded.statistics is None) == is_new
            found.add(is_new)
            files += ["notes.txt"] if exists else []
            files += [] if is_new else ["README.md", "statistics.safetensors"]
            assert sorted(os.listdir(target)) == sorted(files)
        save_model(new, target)
        assert os.listdir(target.parent) == ["model"]
    assert code == 0 and moment > 30
    assert found == ({True, False} if exists else {True})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")
def test_a_killed_save_of_a_variant_keeps_the_weights(start: Starter, tmp_path: Path) -> None:
    model = make_model(CLASSES)
    for moment in range(30, 60, 5):
        target = tmp_path / str(moment)
        save_model(model, target)
        code = KILLED.format(moment=moment, new=str(target), target=str(target), variant="fp16")
        start.order(code=code).wait()
        save_model(model, target, variant="fp16")
        load_model(target, variant="fp16")
        assert same(load_model(target), model)


def test_the_folder_itself_and_what_is_not_a_models_stay(
    model: CDRLModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it may be a mount, a current folder, or in a parent that is not writable."""
    names = (".gitattributes", ".DS_Store", "figures.json", "ebm/.DS_Store", ".cache/x", ".git/y")
    target = tmp_path / "parent" / "model"
    (target / "lost+found").mkdir(parents=True)
    inode = target.stat().st_ino
    monkeypatch.chdir(target)
    target.parent.chmod(0o500)
    for saved, where in ((make_model(CLASSES, seed=1), target), (model, Path())):
        save_model(saved, where)
        assert target.stat().st_ino == inode and os.listdir(tmp_path / "parent") == ["model"]
        assert same(load_model("."), saved)
        for name in names:
            Path(name).parent.mkdir(exist_ok=True)
            assert Path(name).exists() == (saved is model)
            Path(name).touch()
    model.initializer = None
    save_model(model, "")
    assert load_model(target).initializer is None and not (target / "initializer").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("thesis.tex", r"not a CDRL model folder.* thesis\.tex"),
        ("ebm", "ebm: expected a writable folder, found something else"),
        ("README.md/", "README.md: expected a file, found something else"),
        ("link", "expected a folder to save to, found a file"),
    ],
)
def test_what_cannot_be_saved_to_is_refused_before_work(
    model: CDRLModel, tmp_path: Path, name: str, message: str
) -> None:
    if name != "thesis.tex":
        save_model(model, tmp_path / "m")
    for role in ("ebm", "initializer") if name == "ebm" else ():
        (tmp_path / "m" / role).rename(tmp_path / role)
    target = tmp_path / "m" if name != "link" else tmp_path / "m/config.json/model"
    (tmp_path / "m").mkdir(exist_ok=True)
    if name.endswith("/"):
        (tmp_path / "m" / name).mkdir()
    elif name != "link":
        (tmp_path / "m" / name).touch()
    with pytest.raises(CheckpointError, match=message):
        check_replaceable(target)
    with pytest.raises(CheckpointError, match=message):
        save_model(model, target)


def test_a_leftover_cannot_write_out_of_its_folder(
    model: CDRLModel, folder: Path, tmp_path: Path
) -> None:
    save_model(model, tmp_path / "m")
    (tmp_path / "mine").mkdir()
    (tmp_path / "m/out").symlink_to(tmp_path / "mine")
    (tmp_path / "m/.01234567.complete/out").mkdir(parents=True)
    (tmp_path / "m/.01234567.complete/out/evil").touch()
    with pytest.raises(CheckpointError, match="interrupted save left files that cannot be moved"):
        load_model(tmp_path / "m")
    assert os.listdir(tmp_path / "mine") == []


def test_leftovers_are_removed_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    with replaced_file(tmp_path / "a.json") as first, replaced_file(tmp_path / "a.json") as second:
        assert first.exists() and second.exists()
    (tmp_path / ".a.json.01234567.tmp.json").touch()
    (tmp_path / ".b.json.01234567.tmp.json").touch()  # another's
    with replaced_file(tmp_path / "a.json") as new:
        new.write_text("1")
    assert sorted(os.listdir(tmp_path)) == [".b.json.01234567.tmp.json", "a.json"]


def test_a_link_is_followed_where_the_caller_says_so(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("old")
    (tmp_path / "out.json").symlink_to("there/file")
    (tmp_path / "folder").symlink_to("there")
    with replaced_file(tmp_path / "out.json", follow=True) as new:
        assert new.suffix == ".json"
        new.write_text("new")
    with added_files(tmp_path / "folder") as added:
        (added / "b").write_text("b")
    assert (tmp_path / "out.json").is_symlink() and (tmp_path / "folder").is_symlink()
    assert (tmp_path / "there/file").read_text() == "new" and (tmp_path / "there/b").exists()
    with replaced_file(tmp_path / "out.json") as new:
        new.write_text("link replaced")
    assert (tmp_path / "there/file").read_text() == "new"


@pytest.mark.parametrize("name", ["ebm/model.safetensors", "statistics.safetensors"])
def test_every_flipped_bit_of_the_tensors_is_noticed(
    model: CDRLModel, tmp_path: Path, name: str
) -> None:
    model.statistics = make_statistics([1.0, 2.0, 3.0], model=model)
    save_model(model, tmp_path / "m")
    file = tmp_path / "m" / name
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in range(start, len(content), (len(content) - start) // 40):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="do not match the file's sha256, so the file is"):
            load_model(tmp_path / "m")


def test_compiled_networks_are_saved_by_their_originals(model: CDRLModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "plain")
    model.statistics = make_statistics([1.0, 2.0, 3.0], model=model)
    model.ebm = torch.compile(model.ebm, backend="eager")
    model.initializer.backbone = torch.compile(model.initializer.backbone, backend="eager")
    model.statistics.check_weights(model)
    save_model(model, tmp_path / "compiled")
    for role in ("ebm", "initializer"):
        for name in ("config.json", "model.safetensors"):
            files = [tmp_path / kind / role / name for kind in ("plain", "compiled")]
            assert files[0].read_bytes() == files[1].read_bytes()
    with safe_open(files[0], "pt") as stored:  # type: ignore[no-untyped-call]
        assert len(stored.metadata()[DIGEST]) == 64
