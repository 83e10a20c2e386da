"""Results as text and in a model's card."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from cdrl_infer.errors import CheckpointError
from cdrl_infer.storage.card import with_figures
from cdrl_train.evaluation.report import binomial_error, over_repeats, plus_minus, slug


def test_errors_have_two_digits_and_values_as_many_places() -> None:
    assert plus_minus(305.94, 9.62) == "305.9 ± 9.6"
    assert plus_minus(305.94, 13.5) == "306 ± 14"
    assert plus_minus(0.012351, 0.00012) == "0.01235 ± 0.00012"
    assert plus_minus(0.5) == "0.5" and plus_minus(1, 0) == "1 ± 0"
    assert over_repeats([3.0]) == (None, None)
    error, kind = over_repeats([1.0, 2.0, 3.0])
    assert error == pytest.approx(1 / np.sqrt(3)) and kind == "standard error over 3 repeats"
    assert binomial_error(1816, 2000) == pytest.approx(0.0065, abs=5e-5)
    assert binomial_error(0, 1) == pytest.approx(np.sqrt(1 / 18))  # of the density 2 (1 - p)
    assert slug("Fashion-MNIST.npz") == "fashion_mnist" and slug("…") == "data"


CARD = """---
library_name: cdrl  # by hand
model-index:
- name: mine
  results:
  - task: {type: unconditional-image-generation}
    dataset: {type: grey, name: Grey, split: test}
    metrics:
    - {type: fid, name: "FID (Inception v3, n = 20)", value: 9.0, args: {n: 20}}
    - {type: fid, name: "FID (Inception v3, n = 50)", value: 5.0, args: {n: 50}}
  - task: {type: unconditional-image-generation}
    dataset: {type: grey, name: Grey, split: train}
    metrics:
    - {type: fid, name: "FID (Inception v3, n = 20)", value: 8.0}
# a remark
license: mit
---

# Mine\r
---
by hand
"""
FID = {"type": "fid", "name": "FID (Inception v3, n = 20)", "value": 3.5, "args": {"n": 20}}
DATASET = {"type": "grey", "name": "grey.npz", "split": "test"}


def results_of(card: str) -> list[tuple[Any, ...]]:
    results: Any = ModelCard(card).data.eval_results
    return [(r.dataset_split, r.metric_name, r.metric_value) for r in results]


def test_a_result_replaces_the_same_one_alone() -> None:
    new = {**FID, "name": "KID", "type": "kid"}
    card = with_figures(CARD, [FID, new], dataset=DATASET, model="other")
    assert results_of(card) == [
        ("test", "FID (Inception v3, n = 20)", 3.5),
        ("test", "FID (Inception v3, n = 50)", 5.0),
        ("test", "KID", 3.5),
        ("train", "FID (Inception v3, n = 20)", 8.0),
    ]
    assert card.startswith("---\nlibrary_name: cdrl  # by hand\nmodel-index:\n- name: mine\n")
    assert card.endswith(CARD[CARD.index("license: mit") :])
    assert with_figures(card, [FID, new], dataset=DATASET, model="other") == card


@pytest.mark.parametrize(
    "card", ["", "# Mine\n", "---\nlicense: mit\n---\n# Mine\n", "---\n---\n# Mine\n"]
)
def test_cards_without_results(card: str) -> None:
    found = with_figures(card, [FID], dataset=DATASET, model="mine")
    assert results_of(found) == [("test", FID["name"], 3.5)]
    assert found.endswith(card.split("---\n")[-1]) and found.count("---\n") == 2
    assert ModelCard(found).data.to_dict().get("license") == ("mit" if "mit" in card else None)


@pytest.mark.parametrize("front", ["a: [", "- a", "model-index: 3", "model-index: [{results: 1}]"])
def test_front_matter_that_cannot_be_edited(front: str) -> None:
    with pytest.raises(CheckpointError, match="the card's front matter cannot be edited") as found:
        with_figures(f"---\n{front}\n---\n", [FID], dataset=DATASET, model="mine")
    assert "\n" not in str(found.value)
