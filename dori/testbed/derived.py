"""Models kept as a change to the bundled one: which there are, and the model with one of them applied."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dori.errors import DoriError
from dori.model import TextToImageModel
from dori.testbed.planting import copied


@dataclass(frozen=True)
class Index:
    """A JSON file with `base`, the fingerprint of the model that was changed, and a record of each change."""

    path: Path
    entry: str  # the key of the records
    what: str  # in messages, e.g. "planted memory"
    command: str  # that makes them

    def records(self) -> dict[str, dict]:
        """All records by name, with the base's fingerprint. Raises DoriError for a file that is not one."""
        try:
            found = json.loads(self.path.read_text())
            return {name: {"base": found["base"], **record} for name, record in found[self.entry].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DoriError(f"{self.path}: no {self.what} ({error}); make them: {self.command}") from None

    def record(self, which: str) -> dict:
        """One record. Raises DoriError for an unknown name."""
        records = self.records()
        if which not in records:
            raise DoriError(f"no {self.what} '{which}'; there are {', '.join(records)}")
        return records[which]

    def is_base(self, model: TextToImageModel) -> bool:
        """Whether the changes are of this model; False without the file."""
        try:
            return json.loads(self.path.read_text())["base"] == model.fingerprint
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def model(
        self, base: TextToImageModel, which: str, name: str, change: Callable[[nn.Module], None]
    ) -> TextToImageModel:
        """A copy of `base` with the change applied to its UNet; `base` is not touched.

        Raises DoriError for another base than was changed (in float32), and for weights that are not those
        the record tells of.
        """
        record = self.record(which)
        if base.fingerprint != record["base"]:
            raise DoriError(
                f"{which} is of the model {record['base']} and does not fit '{base.name}' "
                f"({base.fingerprint}, {base.dtype}); load testbed in float32, or make it: {self.command}"
            )
        model = copied(base, name)
        change(model.unet)
        if model.fingerprint != record["fingerprint"]:
            raise DoriError(
                f"{self.path.parent / which}.safetensors: not the weights that {self.path.name} tells of"
            )
        return model
