"""Factors of a numerical treatment, expanded into variants. Parsed with the Snakefile: standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from retrograd.rescue import changed

FRACTIONS = (1, 2, 4, 8, 16)
# More folders and jobs than that are a mistake in a config, as a rule.
MOST_CELLS = 4096
# Factors of two levels for which defining words are found while one waits.
MOST_SHARED = 10


def level_changes(factor: str, levels: Any, keys: Sequence[str]) -> dict[str, Any]:
    """Returns what each level of a factor changes in a variant: level's name to settings, not validated.

    - `levels`: names to values, or a list of values that name themselves.
    - `keys`: those of a variant. A factor that is named like one has values of that key as its levels; any other
      factor has mappings of settings.
    """
    if not isinstance(levels, Mapping):
        levels = {value if isinstance(value, str) else f"{factor}{value:g}": value for value in levels}
    return {name: {factor: value} if factor in keys else value for name, value in levels.items()}


def cells(changes: Mapping[str, Mapping[str, Any]], fraction: int) -> dict[str, dict[str, str]]:
    """Returns the variants of a factorial design: name to the level of each factor.

    - `changes`: factor to level to settings; of these the names matter only.
    - `fraction`: 1 for the full design, else a power of 2: one in so many of the cells of the full design.
    """
    names = [list(levels) for levels in changes.values()]
    out = {}
    for run in fractional([len(levels) for levels in names], fraction, sharing(changes)):
        levels = [levels[i] for levels, i in zip(names, run, strict=True)]
        out["-".join(levels)] = dict(zip(changes, levels, strict=True))
    return out


def sharing(changes: Mapping[str, Mapping[str, Any]]) -> list[int]:
    """Returns the positions of the factors that share a fraction: those with two levels.

    One that changes nothing but whose verdict counts (`gradient`) costs no work, and is crossed in full.
    """
    free = lambda levels: all(set(change) == {"gradient"} for change in levels.values())
    return [i for i, levels in enumerate(changes.values()) if len(levels) == 2 and not free(levels)]


def settings_of(
    base: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]], levels: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the settings of a cell: the base's, changed by the level of one factor after the other."""
    settings = dict(base)
    for factor, level in levels.items():
        settings = changed(settings, changes[factor][level])
    return settings


def fractional(sizes: Sequence[int], fraction: int, shared: Sequence[int]) -> list[tuple[int, ...]]:
    """Returns the runs of a regular fractional factorial design, each a level of every factor, in order.

    - `sizes`: number of levels of each factor.
    - `shared`: positions of the factors, of two levels each, that share the fraction.
    - `fraction`: a power of 2, at most 2^(their number - 1).

    The levels of those, as bits, have parity 0 under each defining word (Box and Hunter 1961, doi:10.2307/1266725).
    The others are crossed with these in full.
    """
    words = defining_words(len(shared), fraction)
    even = lambda run: all(sum(run[shared[i]] for i in word) % 2 == 0 for word in words)
    return [run for run in product(*map(range, sizes)) if even(run)]


def resolution(factors: int, fraction: int) -> int:
    """Returns the length of the shortest defining word, 0 for a full design.

    - `factors`: number of those that share the fraction.

    5 and more: main effects and interactions of two are told apart. 4: interactions of two are mixed with each other.
    3: main effects are mixed with them.
    """
    group = {0}
    for word in defining_words(factors, fraction):
        mask = sum(1 << i for i in word)
        group |= {mask ^ other for other in group}
    return min((mask.bit_count() for mask in group if mask), default=0)


def defining_words(factors: int, fraction: int) -> list[tuple[int, ...]]:
    """Returns independent defining words of the highest resolution there is, each some of `range(factors)`."""
    count = fraction.bit_length() - 1
    if fraction != 1 << count or count >= max(factors, 1):
        raise ValueError(f"fraction is {fraction}, wanted a power of 2 of at most 2^{max(factors - 1, 0)}.")
    if not count:
        return []
    masks = sorted(range(1, 1 << factors), key=lambda mask: (-mask.bit_count(), mask))

    def search(group: list[int], usable: list[int], left: int, shortest: int) -> list[int] | None:
        # `usable`: words that make no product with the group that is too short, or that is in it.
        if left == 0:
            return []
        for position, mask in enumerate(usable):
            more = [mask ^ other for other in group]
            rest = [m for m in usable[position + 1 :] if all((m ^ other).bit_count() >= shortest for other in more)]
            if left == 1 or len(rest) >= left - 1:
                found = search(group + more, rest, left - 1, shortest)
                if found is not None:
                    return [mask, *found]
        return None

    # The words are a linear code, whose length bounds its distance (Griesmer 1960, doi:10.1147/rd.45.0532).
    possible = lambda shortest: sum(-(-shortest >> i) for i in range(count)) <= factors
    for shortest in filter(possible, range(factors, 0, -1)):
        found = search([0], [mask for mask in masks if mask.bit_count() >= shortest], count, shortest)
        if found is not None:
            return [tuple(i for i in range(factors) if mask >> i & 1) for mask in found]
    raise AssertionError("Words of length 1 are independent.")
