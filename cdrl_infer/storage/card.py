"""The model card: front matter for the Hub, and the facts of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cdrl_infer.errors import CheckpointError, listing, shown
from cdrl_infer.model import CDRLModel
from cdrl_infer.networks.registry import NETWORKS
from cdrl_infer.optional import needed
from cdrl_infer.storage.folder import PICTURE

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

METHOD = (
    "A CDRL model",
    "[Learning Energy-Based Models by Cooperative Diffusion Recovery Likelihood]"
    "(https://arxiv.org/abs/2309.05153) (Zhu, Xie, Wu, Gao, ICLR 2024)",
)
TASK = "unconditional-image-generation"
MAX_FRONT = 100_000  # characters of front matter; longer ones take seconds to read
MAX_DEPTH = 20  # of lists and objects in it
FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(?P<front>.*?)^---[ \t]*(?:\r?\n|\Z)", re.S | re.M)
MODEL_INDEX = re.compile(r"^model-index:.*?(?=^[^\s#\-\]}]|\Z)", re.S | re.M)  # to the next key


def render(
    model: CDRLModel,
    title: str,
    *,
    facts: Mapping[str, str],
    text: str,
    method: tuple[str, str] = METHOD,
    licence: str | None = None,
    datasets: Sequence[str] = (),
) -> str:
    """A card in Markdown with front matter; `with_figures` adds measured results to it.

    Args:
        model: the model that the card describes.
        title: heading.
        facts: rows of the table, after the rows that come from the model.
        text: what follows the table.
        method: what the model is called, such as "An MPDR model", and the paper in Markdown.
        licence: the Hub's identifier of a licence, for example "mit"; None leaves it out.
        datasets: names of data sets on the Hub.
    """
    from huggingface_hub import ModelCardData

    front = ModelCardData(
        library_name="cdrl",
        pipeline_tag=TASK,
        license=licence,
        datasets=list(datasets) or None,
        tags=["energy-based-model", "cdrl"],
    )
    channels, height, width = model.image.shape
    rows = {
        "images": f"{height} × {width}, {channels} channel{'s' if channels > 1 else ''}",
        "labels": "; ".join(f"{a.name}: {listing(a.values)}" for a in model.labels) or "none",
        **{role: _network(model.networks.get(role)) for role in NETWORKS},
        **facts,
    }
    cells = {name: value.replace("|", "\\|") for name, value in rows.items()}
    table = "\n".join(f"| {name} | {value} |" for name, value in cells.items())
    picture = f"\n![Samples]({PICTURE})\n" if model.samples else ""
    named, paper = method
    levels = model.schedule.num_levels
    over = f"over {levels} noise levels" if levels > 1 else "without noise levels"
    initializer = "" if model.initializer is None else " and its initializer"
    return f"""---
{front.to_yaml()}
---

# {title}

{named}, an energy-based model {over}{initializer}:
{paper}.
{picture}
```python
from cdrl_infer import CDRLPipeline

pipe = CDRLPipeline.from_pretrained("THIS REPOSITORY OR FOLDER")
pipe(num_images=4).images
```

| | |
|---|---|
{table}

{text}"""


def with_figures(
    card: str,
    entries: Sequence[Mapping[str, Any]],
    *,
    dataset: Mapping[str, str] | None,
    model: str,
) -> str:
    """The card with these results in its ``model-index``; all other lines stay as they were.

    A result replaces the one with the same data set and split, type and name; others stay.

    Args:
        card: Markdown, with or without front matter.
        entries: entries of ``metrics``: type, name, value, args.
        dataset: type, name and split of the data; None if there are no entries.
        model: name of the model, for a card without one.

    Raises:
        CheckpointError: the front matter cannot be read, or cannot be edited line by line.
    """
    with needed("pyyaml", "editing a card needs"):  # huggingface_hub needs it too
        import yaml
        from huggingface_hub.repocard_data import eval_results_to_model_index

    try:
        front, data, rest = split(card)
        name, results = results_in(data, model)
        for entry in entries:
            _put(results, entry, dataset or {})
        index = {"model-index": eval_results_to_model_index(name, results)}
        block = yaml.safe_dump(index, sort_keys=False, allow_unicode=True)
        # ModelCard would write all of the front matter anew, without its comments.
        new, count = MODEL_INDEX.subn(lambda _: block, front, count=1)
        new = new if count else front + block
        if _parsed(new) != {**data, **index}:
            raise ValueError("its model-index is not a block of lines of its own")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the card's front matter cannot be edited ({shown(error)}); expected YAML between two "
            "lines of ---, with a model-index as docs/format.md shows"
        ) from error
    return f"---\n{new}---\n{rest}"


def split(card: str) -> tuple[str, dict[str, Any], str]:
    """The lines of a card's front matter, what they say, and the text below them.

    Raises:
        ValueError: the front matter is too long, nested too deeply, or no YAML object.
    """
    found = FRONT_MATTER.match(card)
    front, rest = (found["front"], card[found.end() :]) if found else ("", card)
    if front and not front.endswith("\n"):
        front += "\n"
    return front, _parsed(front), rest


def results_in(data: Mapping[str, Any], model: str = "") -> tuple[str, list[EvalResult]]:
    """The name of the model and the results in the ``model-index`` of front matter."""
    from huggingface_hub.repocard_data import model_index_to_eval_results

    index = data.get("model-index") or [{"name": model, "results": []}]
    name, results = model_index_to_eval_results(index)
    return name, results


def _parsed(front: str) -> dict[str, Any]:
    """The object that front matter is; see `split`."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if len(front) > MAX_FRONT:
        raise ValueError(f"it has {len(front):,} characters, at most {MAX_FRONT:,} are read")
    try:
        depth = 0
        for event in yaml.parse(front, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH or isinstance(event, yaml.AliasEvent):
                raise ValueError("it has aliases, or lists that are nested too deeply")
        data = yaml.load(front, Loader=loader) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError("it is not an object")
    return data


def _put(results: list[EvalResult], entry: Mapping[str, Any], dataset: Mapping[str, str]) -> None:
    """Change the same result, or append a new one."""
    from huggingface_hub import EvalResult

    fields: dict[str, Any] = {f"metric_{key}": value for key, value in entry.items()}
    fields |= {f"dataset_{key}": value for key, value in dataset.items()}
    new = EvalResult(task_type=TASK, **fields)
    same = ("dataset_type", "dataset_split", "metric_type", "metric_name")
    for old in results:
        if all(getattr(old, key) == getattr(new, key) for key in same):
            old.metric_value, old.metric_args = new.metric_value, new.metric_args
            return
    results.append(new)


def _network(network: Any) -> str:
    if network is None:
        return "none"
    count = sum(p.numel() for p in network.parameters())
    backbone = getattr(network, "backbone", None)
    kind = type(network).__name__ + (f" of a {type(backbone).__name__}" if backbone else "")
    return f"{kind}, {count:,} values"
