# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (dori)
#     language: python
#     name: python3
#   language_info:
#     name: python
# ---

# %% [markdown]
# (adversarial-finetuning)=
# # Training against the search
#
# {ref}`pruning-fragility` asked whether pruned images are gone or only hidden, {ref}`non-locality` whether one block of the network holds a
# memory. If they are hidden, and no block does, a remedy has to change the whole network, and it has to be told about more triggers than the
# prompt. This is what {term}`adversarial fine-tuning` does {cite:p}`kowalczuk2025dori`: it searches a trigger, trains the model against it, and searches again.
#
# **The claim.** After a few epochs of it a search no longer brings the image back, and the model is as good as before. Other trainings against
# memorized images, and the same training of a few added weights, do not achieve this.
#
# **What would count against it.** Any of these would:
#
# - a search that was *not* part of the training brings the image back: other starts, another optimiser, more steps;
# - a little fine-tuning on data that has nothing to do with the image brings it back within reach;
# - the model can be told from one that never saw the image, by the work it takes to make it paint it;
# - regular prompts are followed less well, or the images of the half that nobody asked to erase are gone as well.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
model = "testbed"  # a name that `dori models` lists, a diffusers directory, a .safetensors file, or a name on the Hugging Face Hub
benchmark = "testbed"  # testbed, or a CSV file with id, prompt, image and, where known, kind and split
preset = "quick"  # size of the run: smoke, quick, full or paper
seed = 0  # fixes the noise of every image
device = "auto"  # auto, cpu, cuda, cuda:N or mps
records = "none"  # none: measure everything; shipped: take from data/records what was measured under the same key
run_dir = "_build/runs/04_adversarial_finetuning/by-hand"  # where records are kept; a second run computes only what is missing

# %% tags=["hide-input"]
from IPython.display import HTML, Markdown

from dori import plots
from dori.claims import claims_html
from dori.experiments import adjustment, collateral, defences, erasing, erasure, takeaways, trials
from dori.metrics.replication import memorization_rate
from dori.study import open_study

# %%
study = open_study(model=model, benchmark=benchmark, preset=preset, seed=seed, device=device, records=records, run_dir=run_dir)
erased, spared = erasing.erased(study), erasing.spared(study)
Markdown(f"Model `{study.model.name}`. Images with the most copies: {len(erased)} are erased, {len(spared)} are not.")

# %% [markdown]
# ## How it is trained
#
# Let $y^\star_i$ be a trigger of image $i$, found by {term}`DoRI` on the weights of the moment (equation {eq}`eq-dori`), and $\tilde x_i$ a
# **surrogate**: another image, which the model is to paint in its place. A step of the training lowers
#
# ```{math}
# :label: eq-adversarial
# \begin{gathered}
# \underbrace{\mathbb{E}\,\big\lVert \epsilon - \epsilon_\theta(\tilde x_{i,t}, t, y^\star_i)\big\rVert_2^2}_{\text{the trigger paints something else}} \\
# {} + \underbrace{\mathbb{E}\,\big\lVert \epsilon - \epsilon_\theta(x_t, t, c)\big\rVert_2^2}_{\text{regular pairs } (x, c) \text{ as before}}
# \end{gathered}
# ```
#
# in *all* weights $\theta$ of the denoising network. After some steps the triggers are stale, and new ones are searched: from the prompt, from
# random numbers and from regular prompts in turn, with new noise each time.
#
# Surrogates are what the *pruned* model of {ref}`pruning-fragility` paints for the same prompt. Pruning does not always work, so every surrogate is
# compared with every image that is to be erased, and refused if it looks like one.

# %%
found = erasing.surrogates_for(study, erased)
erasure.surrogate_table(erased, found).round(2)

# %% [markdown]
# ## Who defends, who attacks
#
# Beside adversarial fine-tuning stand three trainings that others proposed: ESD teaches the model to do the opposite of what a caption asks
# {cite:p}`gandikota2023erasing`; concept ablation teaches it to read the caption as another one {cite:p}`kumari2023ablating`; SISS weighs a
# gradient that unlearns an image against one that keeps others {cite:p}`alberti2025siss`. The model as trained, the pruned one and the
# {term}`twin` mark the ends of the scale.
#
# The trained ones come with the book, as `dori testbed cure` made them. `dori mitigate --method adversarial` trains another model, and
# {ref}`guide` says how; without any, this chapter shows the model as it is and pruned. *LoRA* is the same adversarial fine-tuning of a few added
# weights, low-rank adapters (`adversarial-lora`), and of nothing else. The cost is counted in rows that went through the UNet, in the training's
# searches too: it is the same on every machine. Minutes are not, and the trainings did not have the machine to themselves.

# %%
some = defences.defences(study, erased)
erasure.costs(study).round(1)

# %% [markdown]
# Published learning rates are for a far larger model. So each training was tried on
# the *other* half of the images, and its settings were chosen by one rule: of those that silence the prompts and cost at most a twentieth of
# the alignment, the ones that resist the search best; where none costs so little, the cheapest that silences. These are the trials, all of
# the bundled model; they come with the book. None of the images that are erased in this chapter had a part in them. The settings have the
# names that `dori mitigate --set` takes: of adversarial fine-tuning, `at_once` are the images of a round, `steps` its training steps, `search.steps` the looks of its search that
# serve as triggers, `starts` the searches of an image in a round, `retain` the regular pairs of a step, out of as many as `pairs`, `inits` where searches start (else at all three), `ema` the decay of an average
# of the weights, and `decay` the share of the training, at its end, in which the learning rate falls to 0. *DoRI* stands for the rates of searches from the prompt and from random numbers. Rates have their 95 % interval. Chosen are the settings that
# `dori testbed cure` trains with.

# %% tags=["hide-input"]
trials.shown().set_index(["training", "settings"])

# %% [markdown]
# The attackers: the prompt itself; DoRI with the paper's settings from the three starts that the training used, too; DoRI with *held-out settings*,
# which no training met (it starts half-way to a regular prompt, with another optimiser, another step size and other numbers of draws and
# steps); DoRI with ten times the steps; {term}`UnlearnDiffAtk`, which looks for words; and DoRI after the weights were fine-tuned on regular
# pairs for a moment.

# %%
table = erasure.asked(study, some)

# %% mystnb={"figure": {"name": "fig-matrix", "caption": "Memorization rate of the erased images, with 95 % interval and n: who defends (rows) against who attacks (columns). Darker is higher."}, "image": {"alt": "A matrix of rates with intervals and n. Rows: the model as trained, the pruned one, the trainings and the twin. Columns: the prompt, searches from several starts, with held-out settings, of ten times the steps, for words, and after relearning. Darker fields are higher rates.", "width": "100%"}} tags=["hide-input"]
plots.defence_matrix(table)

# %% tags=["hide-input"]
figures = erasure.headline_rates(table)
for name, estimate in figures.items():
    study.headline(name, estimate)
Markdown("After adversarial fine-tuning: " + "; ".join(f"{words} {figures[name].percent}" for name, words in {
    "mr_aft_own_prompt": "its prompt", "mr_aft_prompt": "a search from the prompt", "mr_aft_heldout": "one with held-out settings",
    "mr_aft_long": "one of ten times the steps"}.items() if name in figures) + ".")

# %% [markdown]
# ### How to read it
#
# A row that is dark under the prompt did not silence the image. A row that is light there and dark further right hid it. A row
# that is as light as the twin's, under every attacker, did what was asked, as far as these attackers can say.
#
# **On the bundled model, as shipped, at preset `quick`:** no row but the twin's is. (The end of the chapter says what your run found.) Pruning,
# ESD and the adapters hide: the prompt is silent or nearly, and searches find most images or all. Adversarial fine-tuning is far better than they are, as the
# paper says: neither the prompt nor a search from it returns an image, nor does the search with held-out settings, and the others of the same length return few.
# Ten times the steps bring back about half of those that were asked for. On the twin the same long search brings back none, so it is not the search
# that writes them: what it finds was still there. Concept ablation and SISS come after it, in an order that depends on the attacker; SISS has the higher price ({numref}`fig-utility-trained`).
# After a little relearning on unrelated pairs, a search finds some images under every training, and none on the twin.
#
# **What the price came from.** The settings were chosen under a limit on the alignment they may cost, and a high learning rate, which lets nothing through on the other half,
# cost more than that at first (trials above). Three suspicions were tested and refuted: with six times
# as many regular pairs, which a model cannot learn by heart so soon, the price stayed about the same; so it did with a longer average of the weights, and without searches that
# start at regular prompts (`inits`), whose triggers may lie so near to a prompt that the model unlearns it, too. The fourth was not: let the learning rate fall to 0 over the second half of the
# training, and the price falls below the limit, while the searches still find nothing. A part of it may be what large last steps do to the model, and not what erasing does.
# This was one trial of each, with one seed. When the half of this chapter is erased, the price is a little above the limit, with an interval that reaches to both sides of it.
#
# The trial with `decay` was the last, and was made after an earlier choice (`lr=6e-4`) had been judged on the images of this chapter, of which searches found more. The rule of
# choice had been written before and looks at the other half alone; by it the chapter was measured again.
#
# Concept ablation is a stronger opponent here than in the paper, where a search undoes it. Its anchors are painted for captions that say exactly
# what each picture shows, which nobody has for photographs from the web; and its learning rate was raised until a search met resistance, at
# little cost. From random numbers it returned less than adversarial fine-tuning, from the prompt more; neither difference is certain with
# so few images.

# %% [markdown]
# ### Is it the searches?
#
# All these trainings show the model many regular pairs at a high learning rate. Is it that what makes it forget? Below stands adversarial fine-tuning with
# parts of it left out, at the setting that was chosen before `decay` was tried (`lr=6e-4` above), on the half of the images that is not erased in this chapter, and judged there. These trials, too, are of the bundled
# model and come with the book:

# %% tags=["hide-input"]
trials.shown(trials.ABLATIONS).set_index("left out").drop(columns=["training", "settings", "chosen"])

# %% [markdown]
# Every one of these trainings silences the prompts, even the one that has no trigger at all. On this model, a silent prompt is worth
# little as evidence: the regular pairs alone suffice. What the searches find then differs. Without
# triggers, they find nearly all images; trained against the prompts, most; trained against the starting points of the searches, fewer, but
# these include regular prompts, which the model then answers with surrogates, and it follows regular prompts much worse. Only searched triggers
# leave little to find at a small price. This is what the paper says of its method.
#
# The other half of the loss is needed as much. Without regular pairs the searches find as little, and what is left is hardly a model: it follows regular
# prompts no longer. That a training leaves nothing to find is a result only beside what it leaves of the rest.
#
# Low-rank adapters, which can change little of the model, resist less. One rank and one learning rate were tried, so this does not say that
# no adapters could.

# %% [markdown]
# ### Looking
#
# What is painted for the erased prompts, best of two images, and below from the embedding that a search from the prompt found.

# %% mystnb={"figure": {"name": "fig-painted", "caption": "What the erased prompts give, best of two images, with copy scores. Framed images count as copies."}, "image": {"alt": "A row of pictures for each of some erased images: the training image, and the best of two that each defended model paints for its prompt, with copy scores.", "width": "100%"}} tags=["hide-input"]
plots.comparison_grid(erasure.painted(study, some), threshold=study.descriptor.threshold)

# %% mystnb={"figure": {"name": "fig-painted-search", "caption": "What the embeddings give that a search from the prompt found on each model. Framed images count as copies."}, "image": {"alt": "The same rows of pictures, painted from the embedding that a search from the prompt found on each model.", "width": "100%"}} tags=["hide-input"]
plots.comparison_grid(erasure.painted(study, some, search=True), threshold=study.descriptor.threshold)

# %% [markdown]
# ### One epoch after the other
#
# Every erased image is met once in an epoch, by searches on the weights of the moment. Where a first epoch already helps, the later ones
# should help more.

# %% tags=["hide-input"]
by_epoch = erasure.epochs(study)
if (one := erasure.first_epoch(by_epoch)) is not None:
    study.headline("mr_aft_epoch_1", one)

# %% mystnb={"figure": {"name": "fig-epochs", "caption": "Memorization rate of the first erased images after each epoch of adversarial fine-tuning; bars are Wilson's intervals."}, "image": {"alt": "Two lines with intervals against the number of epochs: the rate of the prompts, and that of searches from the prompt.", "width": "100%"}} tags=["hide-input"]
plots.rate_curves(by_epoch, x="epoch", label="epochs of adversarial fine-tuning", by="attacker")

# %% [markdown]
# ## How much work?
#
# A rate after a fixed number of steps asks whether an image came back *by then*. {numref}`fig-work` asks how long it takes. Under a
# perfect remedy it takes as long as on the twin, where a search can only write the image itself.

# %% mystnb={"figure": {"name": "fig-work", "caption": "Share of images that have come back by a number of search steps. A cross: the search ended and that many images had not come back."}, "image": {"alt": "A rising line for each defence and for the twin: share of images that have returned at each look of the search, from its start to 500 steps.", "width": "100%"}} tags=["hide-input"]
plots.work_curves(table[table["attacker"] == defences.LONG])

# %%
erasure.work(table)

# %% tags=["hide-input"]
p, powers = erasure.told_apart(table)
study.headline("aft_twin_p", p)
Markdown(takeaways.twin_compared(p, powers) or "This was not asked here: it needs a trained remedy, the twin, and the long search of both.")

# %% [markdown]
# ## What does it cost?
#
# The measures of {ref}`pruning-fragility`, of regular prompts; and the *held-out loss*, the denoising loss on held-out pairs, the same noise for every
# model. Of the prompts asked here the trials above had asked the first quarter, and so had an earlier edition of this table. The interval of the price
# was too wide then to say on which side of the limit it lies. So the number was raised, for all models, before anybody had seen what more prompts would say.

# %%
utility = erasure.utility(study, some)
erasure.utility_shown(utility)

# %% mystnb={"figure": {"name": "fig-utility-trained", "caption": "What regular prompts lose: alignment, FID, KID and diversity of each model, with 95 % intervals. The dotted line is the model as trained."}, "image": {"alt": "A panel for each measure of utility, a dot with interval for each model, and a line at the model as trained.", "width": "100%"}} tags=["hide-input"]
plots.utility(utility)

# %% tags=["hide-input"]
costs = erasure.aft_costs(utility)
for name, estimate in costs.items():
    study.headline(name, estimate)
Markdown("Share of alignment lost by adversarial fine-tuning: "
         + (costs["aft_alignment_loss"].percent if costs else "not measured here") + ".")

# %% [markdown]
# ### And what nobody asked for?
#
# The trainings were told of one half of the images with the most copies. The table asks for the *other* half, by its prompts and by searches
# from them; how well regular captions are followed that describe what the erased images show; and how many erased prompts now paint one
# of their {term}`surrogates <surrogate>`, by the same threshold: these were put in place of the images, the same few for each throughout.

# %%
others = collateral.spared_table(study, some)
collateral.collateral(study, some, found, others)

# %% [markdown]
# **On the bundled model, as shipped:** the half that nobody named falls silent, too, under all trainings but SISS. After ESD and SISS it
# is hidden and no more: searches find as much of it as in the model as trained; after concept ablation and with adapters less, but most. After
# adversarial fine-tuning of all weights they find as little of it as of the half that was to be erased. All these captions are invented names, and the training seems to have taught the model to answer
# *any* such name with something else. For whoever wants memorized images gone this is welcome; as a statement about one image it is not:
# none of these trainings erases what it is told to and nothing else. Captions near the erased images lose more alignment than regular ones in general.
#
# **One memory is written over another.** After SISS, and after adversarial fine-tuning of all weights or of adapters, most erased prompts
# return a surrogate. These trainings show the model a few fixed pictures for each prompt again and again, and that is how it came to memorize the first ones. Concept ablation and ESD, which
# have no such picture for a prompt, leave none behind. Where surrogates are harmless this may do, but it is not forgetting, and whoever chooses
# them had better choose pictures that may be returned. Whether fresh surrogates in every round would avoid it was not tried.

# %% [markdown]
# ## Mending the prompt instead
#
# {cite:t}`wen2024detecting` leave the weights alone and adjust the prompt's embedding before sampling, until it pulls no harder than a regular
# prompt's ($\lVert\epsilon_y - \epsilon_\varnothing\rVert$ at the sampler's first step), for at most ten steps. It is a lock on the front door: who may hand in an embedding hands in the one that DoRI found, and nothing is
# adjusted. Its published number of steps is used here, and for a target the pull of a regular prompt.

# %%
adjusted = memorization_rate(adjustment.adjusted_table(study, erased, erasure.sampling(study)))
bypassed = erasure.rate(table, defences.TRAINED, "DoRI from the prompt")
unadjusted = erasure.rate(table, defences.TRAINED, defences.PROMPT)
pulls = [adjustment.median_pull(study, prompts, erasure.sampling(study)) for prompts in (erased, adjustment.regular(study))]
Markdown(takeaways.prompt_adjusted(unadjusted, adjusted, bypassed)
         + f" Before it, a memorized prompt pulls with {pulls[0]:.3g}, a regular one with {pulls[1]:.3g} (medians).")

# %% [markdown]
# The closer the two pulls, the less a prompt has to change before it reaches the target. On the bundled model that is little, and
# the images stay. How well this pull *detects* a memory is in {ref}`replication`; whether it is
# what brings the image out is another question. Does a lower one hold it back? The same with lower targets and more steps:

# %%
adjustment.targets_compared(study, erased, erasure.sampling(study))

# %% [markdown]
# An embedding that pulls at nothing says nothing: a target of zero silences any prompt, and leaves none to be followed.

# %% [markdown]
# ## What to conclude
#
# The strict comparison is that with a model that never saw the images, and only a testbed has it: does it take as much work to find what was
# erased as to find what was never there? Without the twin, searches of a fixed, small number of steps are all there is, and an image that
# they do not find may still be found.

# %% tags=["hide-input"]
HTML(claims_html("04", study.headlines))

# %% tags=["hide-input"]
study.finish()
Markdown(takeaways.erasing_trained(figures, p=p, powers=powers, costs=costs, spared=collateral.spared_rates(others)))

# %% [markdown]
# ## Try it yourself
#
# 1. Held-out settings differ from those of the training in start, optimiser, step size and number of draws. Which of the four matters? Write an
#    attacker that differs in one of them (`dori.experiments.defences.SEARCHES`).
# 2. The mended model memorizes its surrogates. How many would each prompt need, for none of them to be returned? Train with more of them
#    (`dori.mitigation.surrogates.Drawing`).
# 3. {numref}`fig-work` takes 500 steps on a few images. How many images would it take to tell a share of a tenth from the twin's?
# 4. Half of the images were erased. Erase them one by one instead: does the tenth cost as much as the first?
#
# ## What's next
#
# This was a model of a few million weights, with images whose number of copies is known. {ref}`guide` says how to run the chapter on your own.
