"""A method's settings from the options of a command: what is not given stays at the method's own value."""

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from dori.errors import DoriError

Settings = TypeVar("Settings")


def chosen(method: str, defaults: Mapping[str, Settings], given: Mapping[str, object]) -> Settings:
    """The defaults of `method` with the options that are not None. Raises DoriError for an unknown one."""
    if method not in defaults:
        raise DoriError(f"unknown method '{method}'; use {', '.join(defaults)}")
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in type(defaults[method]).__dataclass_fields__:
            raise DoriError(f"--{name.replace('_', '-')} is no setting of {method}")
    return dataclasses.replace(defaults[method], **given)
