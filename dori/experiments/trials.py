"""The trials that the settings of chapter 4's defences were chosen from, and those with a part left out."""

from pathlib import Path

import pandas as pd

from dori.experiments import curing, options
from dori.metrics.intervals import wilson
from dori.testbed.paths import TESTBED

TRIALS = TESTBED.parent / "results" / "curing_validation.csv"
ABLATIONS = TRIALS.with_name("curing_ablations.csv")
RATES = ("mr_prompt", "mr_dori_prompt", "mr_dori_random")
TRIAL_COLUMNS = {
    "defence": "training",
    "mr_prompt": "MR, prompt",
    "mr_dori_prompt": "DoRI, prompt",
    "mr_dori_random": "DoRI, random",
    "alignment_lost": "alignment lost",
    "fid_change": "change of FID",
    "n": "images",
    "left_out": "left out",
}


def shown(path: Path = TRIALS) -> pd.DataFrame:
    """What was tried on the validation half (`data/results/README.md` says how), rates with their intervals.

    `TRIALS` are those that the settings were chosen from, `ABLATIONS` the chosen ones with a part left out.
    """
    table = pd.read_csv(path)
    tried = table[["defence", "settings"]].to_numpy()
    table.insert(2, "chosen", ["yes" if _is_chosen(*row) else "" for row in tried])
    table.insert(3, "alignment_lost", table.pop("alignment_lost"))
    rates = {
        name: [wilson(round(r * n), n).short for r, n in table[[name, "n"]].to_numpy()] for name in RATES
    }
    return table.assign(defence=table["defence"].map(curing.LABELS), **rates).rename(columns=TRIAL_COLUMNS)


def _is_chosen(name: str, text: str) -> bool:
    """Whether a trial's settings are those that the training is shipped with."""
    return options.chosen(name, curing.PUBLISHED, options.assignments(text.split())) == curing.SETTINGS[name]
