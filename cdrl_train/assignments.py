"""Options of a run as texts, ``"cooperative.steps=100"``: where they lead, and what they say."""

from __future__ import annotations

import inspect
import json
from typing import Any

from cdrl_infer.config import parse_json
from cdrl_infer.errors import ConfigError, did_you_mean, listing
from cdrl_infer.networks.registry import NETWORKS


def head_or_backbone(role: str, network: dict[str, Any], key: str) -> dict[str, Any]:
    """What holds an option of a network: the network itself or its backbone."""
    backbone = network.get("backbone")
    if not isinstance(backbone, dict) or network.get("class") not in NETWORKS[role]:
        return network
    own = inspect.signature(NETWORKS[role][network["class"]].__init__).parameters
    return network if key in ("class", *own) else backbone


def phase_or_objective(phase: dict[str, Any], key: str, path: str) -> dict[str, Any]:
    """What holds an option of a phase: the phase itself or its objective."""
    own: dict[str, Any] = phase["objective"]
    if key not in (known := [*phase, *own]):
        raise ConfigError(
            f"unknown option {path!r}, expected one of {listing(known, 20)}{did_you_mean(key, known)}"
        )
    return phase if key in phase else own


def group(values: dict[str, Any], parents: list[str], path: str) -> dict[str, Any]:
    """The group of options that a path leads to."""
    target: Any = values
    for parent in parents:
        if isinstance(target, list | tuple) and parent.isdecimal() and int(parent) < len(target):
            target = target[int(parent)]
        else:
            target = target.get(parent) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        known = [*(key for key, value in values.items() if isinstance(value, dict)), "phases.0"]
        known += [phase["label"] or phase["objective"]["name"] for phase in values["phases"]]
        raise ConfigError(
            f"unknown option {path!r}: there is no group {'.'.join(parents)!r}, expected one of "
            f"{listing(known)}{did_you_mean(parents[0], known)}"
        )
    return target


def differences(old: dict[str, Any], new: dict[str, Any], path: str) -> list[str]:
    """Assignments that turn ``old`` into ``new``."""
    found: list[str] = []
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and before.keys() <= value.keys():
            found += differences(before, value, f"{path}{key}.")
        elif key not in old or before != value:
            found.append(f"{path}{key}={json.dumps(value)}")
    return found


def parse(text: str) -> Any:
    """JSON where it is JSON, else the text itself."""
    try:
        return parse_json(text)
    except ValueError:
        return text
