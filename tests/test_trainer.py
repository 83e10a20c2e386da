"""The loop: exact resume, averaging, spectral norm, stop on divergence, atomic checkpoints."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from cdrl_infer.errors import CheckpointError, ConfigError, NumericalError
from cdrl_infer.model import Attribute, SamplerDefaults
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.schedule import NoiseSchedule
from cdrl_train.config import CooperativeConfig, DataConfig, PhaseConfig, TrainConfig
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.spectral import folded_state
from cdrl_train.engine.state import resume, save, snapshot
from cdrl_train.engine.trainer import Trainer
from cdrl_train.export import to_model

NETWORK = {"class": "PatchUNet", "widths": [8], "num_blocks": 1, "embedding_dim": 16}
DROPOUT = {
    "class": "ResidualInitializer",
    "backbone": {
        "class": "UNet",
        "widths": [8],
        "num_blocks": 1,
        "attention_levels": [],
        "frequencies": 4,
        "embedding_dim": 16,
        "groups": 4,
    },
}
RESIDUAL = {"class": "ResidualEBM", "width": 8, "num_blocks": 1, "width_multipliers": [1, 2]}


def tiny(**changes: Any) -> TrainConfig:
    config = TrainConfig(
        name="tiny",
        ebm={"class": "InnerProductEnergy", "backbone": NETWORK},
        initializer={"class": "ResidualInitializer", "backbone": NETWORK},
        schedule=NoiseSchedule(num_levels=3, step_rule="curvature", step_size=0.4),
        sampler=SamplerDefaults(langevin_steps=2),
        data=DataConfig(flip=True),
        warm_start=PhaseConfig(4, 8, "markov", 1e-3, 1e-3, warm_up=2, final_rate=0.1),
        cooperative=CooperativeConfig(
            4, 8, "shared", 1e-3, 1e-3, langevin_steps=2, weight="noise", score_matching=0.5
        ),
        log_every=1,
        checkpoint_every=1000,
    )
    return dataclasses.replace(config, **changes)


def images(n: int = 20) -> ImageSet:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (n, 1), generator=generator)
    return ImageSet(pixels, labels, (Attribute("class", ("a", "b", "c")),))


def trainer(config: TrainConfig, folder: Path) -> Trainer:
    return Trainer(config, BatchStream(images(), config.data, config.seed, "cpu"), folder)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    timing = {"hours", "seconds_per_step", "images_per_second"}
    return [{k: v for k, v in json.loads(row).items() if k not in timing} for row in rows]


def tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            found[path] = value.clone()
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{path}.{key}")
        elif isinstance(value, list):
            for k, item in enumerate(value):
                walk(item, f"{path}.{k}")

    walk(state, "")
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spectral_norm": True, "ebm": RESIDUAL},
        {"initializer": DROPOUT},
        {"precision": "bfloat16", "log_every": 3},
    ],
    ids=["preset", "spectral norm", "dropout", "bfloat16"],
)
@pytest.mark.parametrize("cut", [2, 4, 6])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    tmp_path: Path, cut: int, changes: dict[str, Any]
) -> None:
    config = tiny(**changes, checkpoint_every=2, keep_checkpoints=10)
    whole = trainer(config, tmp_path / "whole")
    whole.fit(on_sample=to_model)
    # What a kill after the checkpoint of step ``cut`` leaves, with later lines in the log.
    (tmp_path / "cut" / "checkpoints").mkdir(parents=True)
    for name in (f"checkpoints/step-{cut:08d}.pt", "metrics.jsonl"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "cut" / name)
    torch.rand(7)  # another process has drawn other numbers
    second = trainer(config, tmp_path / "cut")
    assert resume(second)
    assert second.step == cut
    second.fit()
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    a, b = tensors(snapshot(whole)), tensors(snapshot(second))
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_both_phases_train_both_networks_and_move_the_averages(tmp_path: Path) -> None:
    run = trainer(tiny(), tmp_path)
    seen = [tensors(snapshot(run))]
    for until in (4, 8):
        run.fit(until=until)
        seen.append(tensors(snapshot(run)))
    for before, after in itertools.pairwise(seen):
        for name in ("ebm", "initializer", "ebm_ema", "initializer_ema"):
            weights = [k for k in after if k.startswith(f".{name}.") and k in before]
            moved = [k for k in weights if not torch.equal(before[k], after[k])]
            assert len(moved) > len(weights) / 2, name
    phases = [line["phase"] for line in lines_of(tmp_path)]
    assert phases == ["warm_start"] * 4 + ["cooperative"] * 4
    warm, last = lines_of(tmp_path)[0], lines_of(tmp_path)[-1]
    assert "regression/1" in warm or "regression/2" in warm or "regression/3" in warm
    assert any(key.startswith("energy_gap/") for key in last)
    assert not any(key.startswith("energy_gap/") for key in warm)


def test_the_average_is_the_exponential_one(tmp_path: Path) -> None:
    run = trainer(tiny(ema_decay=0.15), tmp_path)
    weight = "backbone.stem.weight"
    expected: Tensor | None = None
    for n in range(4):
        run.train_step()
        current = run.ebm.state_dict()[weight]
        decay = min(0.15, (1 + n) / (10 + n))
        # the first update copies
        expected = current.clone() if expected is None else decay * expected + (1 - decay) * current
        assert torch.allclose(run.ebm_ema.module.state_dict()[weight], expected, atol=1e-7)


def test_a_gradient_is_scaled_down_to_the_largest_norm_allowed(tmp_path: Path) -> None:
    """The log tells the norm before; each network's is its own."""
    limit = 1e-3
    runs = [trainer(tiny(clip=clip), tmp_path / str(clip)) for clip in (1e9, limit)]
    for run in runs:
        run.fit(until=1)
    (free,), (clipped,) = (lines_of(run.folder) for run in runs)
    for name in ("ebm", "initializer"):
        whole, scaled = (
            torch.cat([p.grad.flatten() for p in getattr(run, name).parameters()]) for run in runs
        )
        assert free[f"grad_norm/{name}"] == clipped[f"grad_norm/{name}"] > 10 * limit
        assert float(scaled.norm()) == pytest.approx(limit, rel=1e-3)
        torch.testing.assert_close(scaled / limit, whole / whole.norm(), rtol=1e-3, atol=1e-6)


def test_the_networks_lie_channels_last_and_langevins_twin_is_plain_and_frozen(
    tmp_path: Path,
) -> None:
    run = trainer(tiny(spectral_norm=True, ebm=RESIDUAL), tmp_path)
    run.fit()
    for network in (run.chain, run.ebm, run.initializer, run.ebm_ema.module):
        kernels = [p for p in network.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
        assert kernels
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert type(run.chain) is type(run.build()[0])
    assert not any(parametrize.is_parametrized(module) for module in run.chain.modules())
    assert not any(p.requires_grad or p.grad is not None for p in run.chain.parameters())


def test_the_log_keeps_the_phases_apart(tmp_path: Path) -> None:
    trainer(tiny(log_every=3), tmp_path).fit()
    rows = [(row["step"], row["phase"]) for row in lines_of(tmp_path)]
    expected = [(3, "warm_start"), (4, "warm_start"), (6, "cooperative"), (8, "cooperative")]
    assert rows == expected


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
        changes = {"compile": choice, "spectral_norm": True, "ebm": RESIDUAL}
        trainer(tiny(**changes), tmp_path / str(choice)).fit()
    assert lines_of(tmp_path / "False") == lines_of(tmp_path / "True")
    assert [type(network).__name__ for network in networks] == [
        "ResidualEBM",
        "ResidualInitializer",
    ]
    assert not any(parameter.requires_grad for parameter in networks[0].parameters())
    assert len(graphs) >= 2


def test_resuming_with_other_data_is_refused(tmp_path: Path) -> None:
    config = tiny()
    save(trainer(config, tmp_path))
    other = Trainer(config, BatchStream(images(19), config.data, 0, "cpu"), tmp_path)
    with pytest.raises(CheckpointError, match="fingerprint"):
        resume(other)


def test_no_warm_start_is_the_papers_recipe(tmp_path: Path) -> None:
    config = tiny(warm_start=PhaseConfig(0, 8, "markov", 1e-3, 1e-3))
    run = trainer(config, tmp_path)
    run.fit()
    assert {line["phase"] for line in lines_of(tmp_path)} == {"cooperative"}


def test_energies_that_run_away_are_noticed(tmp_path: Path) -> None:
    config = tiny(max_energy_gap=1e-6, warm_start=PhaseConfig(0, 8, "markov", 1e-3, 1e-3))
    with pytest.raises(NumericalError, match="diverged at step"):
        # The networks start at zero output: the first steps have hardly a gap.
        trainer(config, tmp_path).fit()


def test_a_state_of_other_networks_is_refused(tmp_path: Path) -> None:
    save(trainer(tiny(), tmp_path))
    deeper = {"class": "InnerProductEnergy", "backbone": {**NETWORK, "num_blocks": 2}}
    other = trainer(tiny(ebm=deeper), tmp_path)
    with pytest.raises(CheckpointError, match="does not fit"):
        resume(other)


def test_spectral_norm_bounds_the_weights_and_folds_away(tmp_path: Path) -> None:
    run = trainer(tiny(spectral_norm=True, ebm=RESIDUAL), tmp_path)
    for _ in range(30):  # power iterations
        for module in run.ebm.modules():
            if parametrize.is_parametrized(module):
                _ = module.weight
    plain, _ = run.build()
    state = folded_state(run.ebm)
    plain.load_state_dict(state, strict=True)
    layers = plain.spectral_norm_layers()
    normed = [name for name, layer in plain.named_modules() if layer in layers]
    for name in normed:
        norm = float(torch.linalg.matrix_norm(state[f"{name}.weight"].flatten(1), ord=2))
        assert norm == pytest.approx(1, abs=0.05), name
    level = run.schedule.level(2)
    y, labels = torch.randn(4, 1, 8, 8), torch.tensor([[0], [1], [2], [3]])
    run.ebm.eval()
    expected = run.ebm(y, run.ebm.condition(level, labels))
    found = plain(y, plain.condition(level, labels))
    assert torch.allclose(found, expected, rtol=1e-5)


def test_spectral_norm_is_refused_where_it_is_not_defined(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not defined for PatchUNet"):
        trainer(tiny(spectral_norm=True), tmp_path)


def test_export_opens_in_the_pipeline_with_the_averaged_weights(tmp_path: Path) -> None:
    run = trainer(tiny(spectral_norm=True, ebm=RESIDUAL), tmp_path)
    run.fit()
    pipe = CDRLPipeline(to_model(run))
    pipe.save_pretrained(tmp_path / "model")
    loaded = CDRLPipeline.from_pretrained(tmp_path / "model")
    a = pipe(class_labels=["a", "c"], seeds=[1, 2], output_type="pt").images
    b = loaded(class_labels=["a", "c"], seeds=[1, 2], output_type="pt").images
    assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    stored = loaded.model.ebm.state_dict()["stem.weight"]
    average = folded_state(run.ebm_ema.module)["stem.weight"]
    assert torch.equal(stored, average)
    assert not torch.equal(stored, folded_state(run.ebm)["stem.weight"])
    assert loaded.model.training["images"] == 64


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("warm_start.step=3", "unknown"),
        ("nothing.steps=3", "nothing"),
        ("warm_start.steps=three", "steps"),
        ("warm_start.coupling=both", "coupling"),
        ("clip", "KEY=VALUE"),
        ("seed=1.5", "seed"),
        ("seed=-1", "seed must be in"),
        ("warm_start.batch_size=0", "batch_size must be at least 1, got 0"),
        ("warm_start.warm_up=-3", "warm_up"),
        ("cooperative.langevin_steps=-1", "langevin_steps must be at least 0"),
        ("cooperative.ebm_rate=-1", "ebm_rate"),
        ("data.label_dropout=7", r"label_dropout must be in \[0, 1\], got 7"),
        ("log_every=0", "log_every must be at least 1"),
        ("keep_checkpoints=0", "keep_checkpoints"),
        ("clip=0", "clip"),
        ("ema_decay=1", "ema_decay"),
        ("sampler.langevin_steps=[1,2]", "one integer or 3, one per level, got 2"),
    ],
)
def test_bad_overrides_are_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny().override([assignment])


def test_assignments_are_what_override_needs() -> None:
    base = tiny()
    changed = tiny(clip=2.0, data=DataConfig(flip=False), ebm=RESIDUAL)
    assert base.assignments(base) == []
    assert base.override(changed.assignments(base)) == changed


def test_overrides_reach_groups() -> None:
    config = tiny().override(["cooperative.langevin_steps=7", "schedule.step_size=0.5", "clip=2"])
    assert config.cooperative.langevin_steps == 7
    assert config.schedule.step_size == 0.5
    assert config.clip == 2.0


def test_the_initializers_rate_may_begin_higher(tmp_path: Path) -> None:
    """As in the authors' code: min(1, x/10000) for the EBM, min(1, (x + 500)/10000) beside it."""
    phase = PhaseConfig(8, 8, "markov", 1e-3, 1e-4, warm_up=4, initializer_start=0.5)
    run = trainer(tiny(warm_start=phase), tmp_path)
    rates = []
    for _ in range(5):
        run.train_step()
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in run.optimizers])
    ebm, initializer = zip(*rates, strict=True)
    assert ebm == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])
    assert initializer == pytest.approx([7.5e-5, 1e-4, 1e-4, 1e-4, 1e-4])
