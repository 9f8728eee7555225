"""From the options of a command to prompts, study and settings; cheap checks come before the weights."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from dori.benchmark import Benchmark, load_benchmark
from dori.errors import DoriError
from dori.study import Study, find_preset, open_study

Settings = TypeVar("Settings")


def chosen(method: str, defaults: Mapping[str, Settings], given: Mapping[str, object]) -> Settings:
    """The defaults of `method` with the options that are not None, which may be text.

    Raises DoriError for an unknown method or option, and for a value of another sort.
    """
    if method not in defaults:
        raise DoriError(f"unknown method '{method}'; use {', '.join(defaults)}")
    given = {name: value for name, value in given.items() if value is not None}
    settings = dataclasses.asdict(defaults[method])
    for name, value in given.items():
        *groups, last = name.split(".")  # "search.steps" is the field steps of the settings' field search
        group = functools.reduce(lambda d, k: d.get(k) if isinstance(d, dict) else None, groups, settings)
        if not isinstance(group, dict) or last not in group:
            raise DoriError(f"--{name.replace('_', '-')} is no setting of {method}")
        group[last] = value.split(",") if isinstance(group[last], tuple) and isinstance(value, str) else value
    try:
        return TypeAdapter(type(defaults[method])).validate_python(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise DoriError(f"--{name} {first['input']}: {first['msg'].lower()}") from None


def assignments(texts: Sequence[str] | None) -> dict[str, object]:
    """`["lr=1e-5", "at-once=2"]` -> `{"lr": "1e-5", "at_once": "2"}`. Raises DoriError for anything else."""
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise DoriError(f"--set {text}: give name=value, as in lr=1e-5")
        found[name.strip().replace("-", "_")] = value.strip()
    return found


def pick_prompts(
    benchmark: str,
    preset: str,
    *,
    kinds: Sequence[str] = (),
    ids: Sequence[str] | None = None,
    images: bool = True,
    attacked: bool = False,
) -> tuple[Benchmark, Benchmark]:
    """All usable rows of a benchmark, and of these kinds those that the preset takes, or those of `ids`.

    `attacked`: no more of each sort than the preset attacks. Without `images` they need not be there. Raises
    DoriError for an id that is not there, or if nothing is left.
    """
    size, prompts = find_preset(preset), load_benchmark(benchmark, strict=False, images=images)
    picked = prompts.select(kind=list(kinds)) if kinds else prompts
    for i in ids or ():
        if i not in picked.ids:
            raise DoriError(f"{prompts.path} has no row of id '{i}' to take")
    if ids:
        picked = dataclasses.replace(picked, table=picked.table.loc[list(dict.fromkeys(ids))])
    else:
        picked = size.pick(picked)
        picked = picked.head(size.attacked, by=["kind", "copies"]) if attacked else picked
    if not len(picked):
        raise DoriError(f"{prompts.path} has no prompts of kind {', '.join(kinds)}")
    return prompts, picked


def study_of(prompts: Benchmark, regular: str | None = None, **parameters: object) -> Study:
    """`open_study` of a benchmark; regular prompts from a file, else its own or the testbed's."""
    found = load_benchmark(regular, strict=False, images=False) if regular else None
    study = open_study(benchmark=prompts, **parameters)
    if found is None and study.bundled and not len(study.regular):
        found = load_benchmark("regular")
    return study if found is None else dataclasses.replace(study, regular=found)


def whole_numbers(given: Sequence[str] | None) -> tuple[int, ...] | None:
    """`["10,25", "50"]` -> `(10, 25, 50)`; None stays None. Raises DoriError."""
    try:
        return None if given is None else tuple(int(number) for text in given for number in text.split(","))
    except ValueError:
        raise DoriError(f"steps '{' '.join(given)}': give whole numbers, as in 10,25,50") from None
