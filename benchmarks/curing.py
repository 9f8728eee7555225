"""Settings of chapter 4's defences, tried on the validation half of the memorized images.

    python benchmarks/curing.py adversarial --set "epochs=2 lr=1e-5" --set "search.steps=10,25 lr=1e-4"

Each `--set` is one trial: `name=value` pairs divided by spaces that replace published settings. What is
reported is of the validation half alone: memorization rates of the prompts, of DoRI from the prompt and from
random numbers, and what it costs (alignment of regular prompts, held-out loss). Trials are resumable.
"""

import argparse
import time
from pathlib import Path

import pandas as pd

from dori.experiments import curing, defences, erasing, options
from dori.experiments.replication import regular_prompts
from dori.experiments.utility import alignment_loss, estimate, utility_table
from dori.metrics.replication import memorization_rate
from dori.study import open_study

ASKED = (defences.PROMPT, "DoRI from the prompt", "DoRI from random numbers")


def trial(study, defence: str, text: str, *, images: int, run_dir: Path) -> dict:
    """One row of the table."""
    prompts, started = erasing.erased(study, "validation"), time.perf_counter()
    settings = options.chosen(defence, curing.PUBLISHED, options.assignments(text.split()))
    folder = run_dir / (text.replace("/", "-") or "defaults")
    model = curing.cure(study, defence, prompts, folder, settings).model
    row = {"defence": defence, "settings": text, "seconds": round(time.perf_counter() - started)}
    mended = defences.Defence(text, study.on(model))
    sampling = study.sampling(seeds=2)
    for attacker in ASKED:
        rate = memorization_rate(defences.ask(mended, attacker, prompts.head(images), sampling))
        row[attacker] = f"{rate.value:.2f} ({rate.n})"
    utility = utility_table(study, regular_prompts(study).head(32), {text: study.on(model)})
    row["alignment lost"] = round(alignment_loss(utility, text).value, 3)
    row["fid change"] = round(estimate(utility, text, "fid_change").value, 3)
    return row


def main() -> None:
    """Print and write a row per trial as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("defence", choices=curing.SETTINGS)
    parser.add_argument("--set", action="append", default=[], help="one trial: 'name=value name=value'")
    parser.add_argument("--images", type=int, default=8, help="images that searches are made for")
    parser.add_argument("--out", type=Path, default=Path("_build/curing"))
    given = parser.parse_args()
    study = open_study(preset="quick", device="cpu", run_dir=given.out / "run")
    rows, run_dir = [], given.out / given.defence
    for text in given.set or [""]:
        rows.append(trial(study, given.defence, text, images=given.images, run_dir=run_dir))
        print(rows[-1], flush=True)
        pd.DataFrame(rows).to_csv(run_dir / "trials.csv", index=False)


if __name__ == "__main__":
    main()
