"""Submissions for the tests of the assignments: solutions, and what students get wrong."""

from dataclasses import dataclass

MEASURE, STEP, BREAK, DESIGN = (
    "1_measure_memorization",
    "2_dori_step",
    "3_break_a_pruning",
    "4_design_a_defence",
)
PRUNED = "def defend(model, prompts):\n    return prune_jointly(model, prompts)\n"


@dataclass(frozen=True)
class Mistake:
    """A change of one solution cell, and the test cells that must notice; `then` cells are run in between."""

    name: str
    assignment: str
    cell: str
    old: str
    new: str
    caught_by: tuple[str, ...]
    then: tuple[str, ...] = ()

    def made(self, source: str) -> str:
        """The solution with the mistake."""
        assert self.old in source, f"{self.cell} of {self.assignment} has changed"
        return source.replace(self.old, self.new)


MISTAKES = [
    Mistake(
        "one score for all images",
        MEASURE,
        "copy-scores",
        "[:, 0]",
        "[:1, 0].repeat(len(images))",
        ("test-copy-scores",),
    ),
    Mistake(
        "a score at the threshold counts",
        MEASURE,
        "rates",
        "> threshold",
        ">= threshold",
        ("test-memorization-rate",),
    ),
    Mistake(
        "MR over images",
        MEASURE,
        "rates",
        'table.groupby("id")["score"].max()',
        'table["score"]',
        ("test-memorization-rate",),
    ),
    Mistake(
        "MR mean over prompts",
        MEASURE,
        "pair-rates",
        '(table["score"] > threshold)',
        '(table["score"] > threshold).groupby(table["id"]).mean()',
        ("test-pair-rate",),
    ),
    Mistake("no square root of the width", MEASURE, "wilson", "math.sqrt", "float", ("test-wilson",)),
    Mistake("an interval of 90 %", MEASURE, "wilson", "1.959964", "1.644854", ("test-wilson",)),
    Mistake("certain of nothing", MEASURE, "wilson", "return 0.0, 1.0", "return 0.0, 0.0", ("test-wilson",)),
    Mistake(
        "always the first noises",
        MEASURE,
        "measure",
        "model.sample(embeds, seeds",
        "model.sample(embeds, range(len(seeds))",
        ("test-measure",),
    ),
    Mistake(
        "always the first training image",
        MEASURE,
        "measure",
        "prompts.images([i])[0]",
        "prompts.images()[0]",
        ("test-measure",),
    ),
    Mistake(
        "n counts images",
        MEASURE,
        "results",
        "wilson(round(rate * len(prompts)), len(prompts))",
        "wilson(round(rate * len(table)), len(table))",
        ("test-results",),
    ),
    Mistake("abar for its root", STEP, "noisy", "abar.sqrt() * x0", "abar * x0", ("test-noisy",)),
    Mistake(
        "v with the wrong sign",
        STEP,
        "target",
        "- (1 - abar).sqrt()",
        "+ (1 - abar).sqrt()",
        ("test-target",),
    ),
    Mistake("a sum for a mean", STEP, "loss-and-gradient", ".mean()", ".sum()", ("test-loss", "test-loss-v")),
    Mistake(
        "epsilon for every model",
        STEP,
        "loss-and-gradient",
        "model.prediction_type",
        '"epsilon"',
        ("test-loss-v",),
    ),
    Mistake(
        "gradients of the weights",
        STEP,
        "loss-and-gradient",
        "return loss.detach()",
        "model.unet.requires_grad_(True).mid_block.requires_grad_(True)\n    return loss.detach()",
        ("test-loss",),
    ),
    Mistake(
        "weights move",
        STEP,
        "search",
        "        optimizer.step()\n",
        "        optimizer.step()\n        next(iter(model.unet.parameters())).data.add_(1e-4)\n",
        ("test-search",),
    ),
    Mistake("the start moves", STEP, "search", ".detach().clone()", ".detach()", ("test-search",)),
    Mistake(
        "one draw for all steps",
        STEP,
        "search",
        "for _ in range(steps):\n",
        "for _ in range(steps):\n        generator.manual_seed(seed)\n",
        ("test-search",),
    ),
    Mistake(
        "uphill",
        STEP,
        "search",
        "torch.optim.Adam([y], lr=lr)",
        "torch.optim.Adam([y], lr=lr, maximize=True)",
        ("test-trigger",),
        ("trigger",),
    ),
    Mistake("no search", STEP, "trigger", "trigger, _ =", "trigger, _ = own, ", ("test-trigger",)),
    Mistake("agreement of nothing", BREAK, "iou", "else math.nan", "else 1.0", ("test-iou-edges",)),
    Mistake("common layers alone", BREAK, "iou", "{*a, *b}", "set(a) & set(b)", ("test-iou-edges",)),
    Mistake(
        "a mean over layers",
        BREAK,
        "iou",
        "    both = either = 0\n",
        "    if set(a) == set(b):\n"
        "        parts = [(a[n] & b[n]).sum() / (a[n] | b[n]).sum().clamp(min=1) for n in a]\n"
        "        return float(sum(parts) / len(parts))\n"
        "    both = either = 0\n",
        ("test-iou",),
    ),
    Mistake("undefined is no overlap", BREAK, "mean-iou", "if not math.isnan(x)", "", ("test-mean-iou",)),
    Mistake(
        "the unpruned model is attacked",
        BREAK,
        "break-pruning",
        "units=units",
        "units={}",
        ("test-break-pruning",),
    ),
    Mistake(
        "another image's pruning",
        BREAK,
        "break-pruning",
        "for i in prompts.ids]",
        "for i in reversed(prompts.ids)]",
        ("test-break-pruning",),
    ),
    Mistake("no search", BREAK, "break-pruning", "found.embeds", "starts", ("test-break-pruning",)),
    Mistake("drawn unpruned", BREAK, "best-scores", ", units=pruned", "", ("test-best-scores",)),
    Mistake("the worst seed", BREAK, "best-scores", ".max()", ".min()", ("test-best-scores",)),
    Mistake("one trigger twice", BREAK, "where", "second[i]]", "triggers[i]]", ("test-where",)),
    Mistake(
        "rates without intervals",
        DESIGN,
        "clearly-lower",
        "((a.high - a.value) ** 2 + (b.value - b.low) ** 2) ** 0.5 < 0",
        "0 < 0",
        ("test-clearly-lower",),
    ),
    Mistake(
        "the other two ends",
        DESIGN,
        "clearly-lower",
        "(a.high - a.value) ** 2 + (b.value - b.low)",
        "(a.value - a.low) ** 2 + (b.high - b.value)",
        ("test-clearly-lower",),
    ),
]
