"""Names that moved to dori.drawing; goes when nothing imports it."""

from dori.drawing import (  # noqa: F401
    Trigger,
    decided_by,
    digest,
    drawn,
    noise_seed,
    progress,
    rows_at_once,
    score_triggers,
)
from dori.drawing import prompt_trigger as _prompt_trigger


def prompt_trigger(study, prompts, item, units=None):
    """The old signature."""
    return _prompt_trigger(prompts, item, units)
