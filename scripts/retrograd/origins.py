"""What two runs were made of, and where that differs: files, config, inputs, code, environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Item = dict[str, Any]


def differences(sides: Sequence[Mapping[str, Mapping[str, Any]]], weights: Sequence[str]) -> list[Item]:
    """Returns what differs between this run and a reference: `origin`, `name`, `here`, `there`.

    - `sides`: of this run and of the reference: file -> what `packing.attributes` says, and `content`, the digest of
      what stands in the file now; of the same files.
    - `weights`: the sha256 of the networks' weights.
    """
    out: list[Item] = []

    def add(origin: str, name: str, here: Any, there: Any) -> None:
        item = {"origin": origin, "name": name, "here": _text(here), "there": _text(there)}
        if here != there and item not in out:
            out.append(item)

    mine, theirs = sides
    for file in theirs:
        whole = [said[file]["content"] == said[file]["content_sha256"] for said in sides]
        if not all(whole):
            here, there = ("as written" if good else "changed" for good in whole)
            out.append({"origin": "integrity", "name": file, "here": here, "there": there})
    add("inputs", "weights", *weights)
    for file, there in theirs.items():
        here = mine[file]
        for name in ("plugin", "scenarios"):
            if name in here["inputs"] and name in there["inputs"]:
                add("inputs", name, here["inputs"][name], there["inputs"][name])
    for file, there in theirs.items():
        for key, (a, b) in setting_pairs(mine[file]["config"], there["config"]).items():
            # What the gradients say of the search for the steady state, that one's own file says.
            if not key.startswith("find."):
                add("config", key, a, b)
    for file, there in theirs.items():
        step = file.removesuffix(".nc")
        add("code", f"code of {step}", mine[file]["code_digest"], there["code_digest"])
    for file, there in theirs.items():
        here = mine[file]
        for key in sorted({*here["environment"], *there["environment"]} - {"precision"}):
            add("environment", key, here["environment"].get(key), there["environment"].get(key))
    return out


def setting_pairs(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that differ, under dotted keys; names of studies and variants are none."""
    a, b = flat(mine), flat(theirs)
    keys = [key for key in sorted({*a, *b}) if key not in ("study", "variant")]
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Returns settings with those of mappings in it, at any depth, under dotted keys."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{before}{key}"
        out |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return out


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None else str(value)
