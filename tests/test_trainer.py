"""Steps and their state: exact resume, averaging, learning rates, spectral norm, compiling."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    RESIDUAL,
    differing,
    energy,
    fit,
    images,
    lines_of,
    tensors,
    tiny,
    trainer,
    unet,
)
from torch import Tensor
from torch.nn.utils import parametrize

from cdrl_infer.errors import CheckpointError, ConfigError, NumericalError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_train.engine.saving import resume, save
from cdrl_train.engine.state import build_networks
from cdrl_train.export import to_model
from cdrl_train.spectral import folded_state

NORMED: dict[str, Any] = {"spectral_norm": True, "ebm": RESIDUAL}


@pytest.mark.parametrize(
    "changes",
    [{}, NORMED, {"initializer": unet()}, {"precision": "bfloat16", "log_every": 3}],
    ids=["preset", "spectral norm", "dropout", "bfloat16"],
)
@pytest.mark.parametrize("cut", [2, 4, 6])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    tmp_path: Path, cut: int, changes: dict[str, Any]
) -> None:
    config = tiny(**changes, checkpoint_every=2, keep_checkpoints=10)
    whole = trainer(config, tmp_path / "whole")
    fit(whole, on_sample=to_model)
    # What a kill after the checkpoint of step ``cut`` leaves, with later lines in the log.
    (tmp_path / "cut" / "checkpoints").mkdir(parents=True)
    for name in (f"checkpoints/step-{cut:08d}.pt", "metrics.jsonl"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "cut" / name)
    torch.rand(7)  # another process has drawn other numbers
    second = trainer(config, tmp_path / "cut")
    assert resume(second)
    assert second.step == cut
    fit(second)
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    assert differing(whole.state_dict(), second.state_dict()) == []


def test_both_phases_train_both_networks_and_move_the_averages(tmp_path: Path) -> None:
    run = trainer(tiny(), tmp_path)
    seen = [tensors(run.state_dict())]
    for until in (4, 8):
        fit(run, until)
        seen.append(tensors(run.state_dict()))
    for before, after in itertools.pairwise(seen):
        for name in itertools.product(("networks", "averages"), ("ebm", "initializer")):
            weights = [k for k in after if k.startswith(".{}.{}.".format(*name)) and k in before]
            moved = [k for k in weights if not torch.equal(before[k], after[k])]
            assert len(moved) > len(weights) / 2, name
    lines = lines_of(tmp_path)
    assert [line["phase"] for line in lines] == ["score_matching"] * 4 + ["cooperative"] * 4
    assert any(key.startswith("regression/") for key in lines[0])
    assert any(key.startswith("energy_gap/") for key in lines[-1])
    assert not any(key.startswith("energy_gap/") for key in lines[0])


def test_the_average_is_the_exponential_one(tmp_path: Path) -> None:
    run = trainer(tiny(ema_decay=0.15), tmp_path)
    average = run.state.averages["ebm"].module.state_dict()  # shares memory with the average
    weight = next(name for name in average if name.endswith("stem.weight"))
    expected: Tensor | None = None
    for n in range(4):
        run.train_step()
        current = run.state.ebm.state_dict()[weight]
        decay = min(0.15, (1 + n) / (10 + n))
        # the first update copies
        expected = current.clone() if expected is None else decay * expected + (1 - decay) * current
        assert torch.allclose(average[weight], expected, atol=1e-7)


def test_a_gradient_is_scaled_down_to_the_largest_norm_allowed(tmp_path: Path) -> None:
    """The log tells the norm before; each network's is its own."""
    limit = 1e-3
    runs = [trainer(tiny(grad_clip=clip), tmp_path / str(clip)) for clip in (1e9, limit)]
    for run in runs:
        fit(run, 1)
    (free,), (clipped,) = (lines_of(run.folder) for run in runs)
    for name in ("ebm", "initializer"):
        whole, scaled = (
            torch.cat([p.grad.flatten() for p in run.state.trained[name].parameters()])
            for run in runs
        )
        assert free[f"grad_norm/{name}"] == clipped[f"grad_norm/{name}"] > 10 * limit
        assert float(scaled.norm()) == pytest.approx(limit, rel=1e-3)
        torch.testing.assert_close(scaled / limit, whole / whole.norm(), rtol=1e-3, atol=1e-6)


def test_the_networks_lie_channels_last_and_langevins_copy_is_plain_and_frozen(
    tmp_path: Path,
) -> None:
    run = trainer(tiny(**NORMED), tmp_path)
    fit(run)
    state = run.state
    for network in (state.frozen_ebm, *state.trained.values(), state.averages["ebm"].module):
        kernels = [p for p in network.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
        assert kernels
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    frozen = state.frozen_ebm
    assert not any(parametrize.is_parametrized(module) for module in frozen.modules())
    assert not any(p.requires_grad or p.grad is not None for p in frozen.parameters())


def test_the_log_keeps_the_phases_apart(tmp_path: Path) -> None:
    fit(trainer(tiny(log_every=3), tmp_path))
    rows = [(row["step"], row["phase"]) for row in lines_of(tmp_path)]
    matching, cooperative = "score_matching", "cooperative"
    assert rows == [(3, matching), (4, matching), (6, cooperative), (8, cooperative)]


# The compiler itself looks whether the conditioning, which is computed outside of the network, has one.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiling_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a back end that only notes what it is to compile: the real one takes a minute."""
    networks: list[Any] = []
    graphs: list[Any] = []

    def note(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def traced(network: Any) -> Any:
        networks.append(network)
        return compiler(network, backend=note, fullgraph=True)

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    for choice in (False, True):
        run = trainer(tiny(compile=choice, **NORMED), tmp_path / str(choice))
        fit(run)
    assert lines_of(tmp_path / "False") == lines_of(tmp_path / "True")
    assert networks == [run.state.frozen_ebm, run.state.initializer]
    assert len(graphs) >= 2


def test_resuming_with_other_data_is_refused(tmp_path: Path) -> None:
    save(trainer(tiny(), tmp_path))
    other = trainer(tiny(), tmp_path, data=images(19))
    with pytest.raises(CheckpointError, match="fingerprint"):
        resume(other)


def test_no_warm_start_is_the_papers_recipe(tmp_path: Path) -> None:
    fit(trainer(tiny("score_matching.steps=0"), tmp_path))
    assert {line["phase"] for line in lines_of(tmp_path)} == {"cooperative"}


def test_energies_that_run_away_are_noticed(tmp_path: Path) -> None:
    config = tiny("cooperative.max_energy_gap=1e-6", "score_matching.steps=0")
    with pytest.raises(NumericalError, match="diverged at step"):
        # The networks start at zero output: the first steps have hardly a gap.
        fit(trainer(config, tmp_path))


def test_a_state_of_other_networks_is_refused(tmp_path: Path) -> None:
    save(trainer(tiny(), tmp_path))
    for changes in ({"ebm": energy(num_blocks=2)}, {"initializer": unet()}):
        with pytest.raises(CheckpointError, match="does not fit"):
            resume(trainer(tiny(**changes), tmp_path))


def test_spectral_norm_bounds_the_weights_and_folds_away(tmp_path: Path) -> None:
    run = trainer(tiny(**NORMED), tmp_path)
    ebm = run.state.ebm
    for _ in range(30):  # power iterations
        for module in ebm.modules():
            if parametrize.is_parametrized(module):
                _ = module.weight
    plain: Any = build_networks(run.config, run.image, run.stream.data.num_classes)[0]
    state = folded_state(ebm)
    plain.load_state_dict(state, strict=True)
    layers = plain.spectral_norm_layers()
    normed = [name for name, layer in plain.named_modules() if layer in layers]
    for name in normed:
        norm = float(torch.linalg.matrix_norm(state[f"{name}.weight"].flatten(1), ord=2))
        assert norm == pytest.approx(1, abs=0.05), name
    level = run.config.schedule.level(2)
    y, labels = torch.randn(4, 1, 8, 8), torch.tensor([[0], [1], [2], [3]])
    ebm.eval()
    expected = ebm(y, ebm.condition(level, labels))
    found = plain(y, plain.condition(level, labels))
    assert torch.allclose(found, expected, rtol=1e-5)


def test_spectral_norm_is_refused_where_it_is_not_defined(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not defined for PatchUNet"):
        trainer(tiny(spectral_norm=True), tmp_path)


def test_export_opens_in_the_pipeline_with_the_averaged_weights(tmp_path: Path) -> None:
    run = trainer(tiny(**NORMED), tmp_path)
    fit(run)
    pipe = CDRLPipeline(to_model(run))
    pipe.save_pretrained(tmp_path / "model")
    loaded = CDRLPipeline.from_pretrained(tmp_path / "model")
    a, b = (
        p(class_labels=["a", "c"], seeds=[1, 2], output_type="pt").images for p in (pipe, loaded)
    )
    assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def test_the_initializers_learning_rate_may_start_higher(tmp_path: Path) -> None:
    """As in the authors' code: min(1, x/10000) for the EBM, min(1, (x + 500)/10000) beside it."""
    warm = ("lr_warmup_steps=4", "initializer_lr=1e-4", "initializer_lr_start=0.5")
    config = tiny(*(f"score_matching.{text}" for text in (*warm, "steps=8", "final_lr=1")))
    run = trainer(config, tmp_path)
    rates = []
    for _ in range(5):
        run.train_step()
        rates.append([group["lr"] for group in run.state.optimizer.param_groups])
    ebm, initializer = zip(*rates, strict=True)
    assert ebm == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])
    assert initializer == pytest.approx([7.5e-5, 1e-4, 1e-4, 1e-4, 1e-4])
