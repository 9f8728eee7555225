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
# (pruning-fragility)=
# # Pruning: is a silenced image gone?
#
# {ref}`replication` showed a model that returns its training images. The obvious remedy is surgery: find the few parts of the network
# that do it, and switch them off. Two methods do this, {term}`NeMo` with neurons {cite:p}`hintersdorf2024nemo` and {term}`Wanda` with
# single weights {cite:p}`chavhan2024memorized,sun2024wanda`. After either, its authors report, the prompt paints something else. It looks as if
# the image had been deleted.
#
# But all that is seen is that *one* {term}`trigger`, the prompt, stopped working. Silence has two explanations: the image is gone, or the
# way from the prompt to the image is blocked and the image is still there. This chapter tells them apart by looking for another way.
#
# **The claim.** A short search for a text {term}`embedding` brings the image back from the pruned model, wherever the search starts. So
# pruning hides images and does not remove them {cite:p}`kowalczuk2025dori`.
#
# **What would count against it.** Any of these would:
#
# - the search does not bring the images back under pruning;
# - the search brings back images that the model never saw, as readily as memorized ones: then it *writes* them, and its success
#   says nothing about memory;
# - the search needs so much room, or goes so far, that an embedding could carry the image by itself;
# - pruning did not silence the prompt in the first place, or only by spoiling the model, so that there was no remedy to break.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
model = "testbed"  # a name that `dori models` lists, a diffusers directory, a .safetensors file, or a name on the Hugging Face Hub
benchmark = "testbed"  # testbed, or a CSV file with id, prompt, image and, where known, kind and split
preset = "quick"  # size of the run: smoke, quick, full or paper
seed = 0  # fixes the noise of every image
device = "auto"  # auto, cpu, cuda, cuda:N or mps
dtype = "float32"  # precision of the weights: float32, bfloat16 or float16
records = "none"  # none: measure everything; shipped: take from data/records what was measured under the same key
run_dir = "_build/runs/02_pruning_fragility/by-hand"  # where records are kept; a second run computes only what is missing

# %% tags=["hide-input"]
from IPython.display import HTML, Markdown

from dori import plots, widgets
from dori.claims import claims_html
from dori.experiments import cuts, pruned, retention, takeaways
from dori.experiments.reach import reach_shown, reach_table
from dori.experiments.replication import regular_prompts
from dori.metrics.replication import MR, rates_shown
from dori.study import open_study
from dori.tables import readable

# %%
study = open_study(model=model, benchmark=benchmark, preset=preset, seed=seed, device=device, dtype=dtype, records=records, run_dir=run_dir)
validation, test = pruned.halves(study)
Markdown(f"Model `{study.model.name}`. Verbatim prompts with the most copies: {len(validation)} to choose settings on, {len(test)} to "
         f"report on. Images of each: {pruned.sampling(study).seeds}, in {pruned.sampling(study).steps} DDIM steps.")

# %% [markdown]
# ## Two ways to cut
#
# Where text meets image, in the network's cross-attention, every place in the image asks every token of the prompt for what it has to
# say, and the *value* layer decides what the token answers. A **neuron** of that layer is one coordinate of the answers. NeMo asks which
# neurons answer unusually strongly to a memorized prompt. With $W_l$ the weights of value layer $l$ and $y_1, \dots, y_T$ the tokens of
# the embedding $y$,
#
# ```{math}
# :label: eq-nemo
# \begin{gathered}
# a_{l,j}(y) = \frac{1}{T}\sum_{k=1}^{T} \big|(W_l\, y_k)_j\big| , \\
# \text{flag } j \text{ where } \frac{|a_{l,j}(y) - \mu_{l,j}|}{\sigma_{l,j}} > z ,
# \end{gathered}
# ```
#
# $\mu$ and $\sigma$ being mean and standard deviation over regular prompts. How far to lower $z$, a second signal decides: a memorized
# prompt imposes one and the same picture on *any* initial noise, so the noise it predicts, less the noise it was given, looks alike for all
# of them. NeMo lowers $z$ until this likeness, measured by the structural similarity MS-SSIM {cite:p}`wang2003msssim`, is down to that of
# regular prompts. A second pass, the *refinement*, puts back every layer and every neuron that was not needed for that. What is left is
# switched off.
#
# Wanda looks at the second matrix of each feed-forward block, where there are many more parts to choose from, and cuts **weights**. With
# $X$ the inputs of that matrix while a prompt is being drawn, a row for each place in the image,
#
# ```{math}
# :label: eq-wanda
# \begin{gathered}
# A_{ij} = |W_{ij}| \cdot \lVert X_{\cdot j} \rVert_2 , \\
# \text{cut } (i,j) \text{ where } A_{ij} \text{ is among} \\
# \text{the top } \rho \text{ of row } i \text{ and } A_{ij} > A'_{ij} ,
# \end{gathered}
# ```
#
# united over the first steps of sampling. $A$ is taken for the prompt, and $A'$, the reference, for no prompt at all. The share $\rho$ is
# called the {term}`sparsity`.
#
# Both are applied to each prompt by itself: the model that is asked for image A has the units of prompt A switched off and no others. This
# is the most favourable case for pruning. Each prompt gets a cut made to measure, and the cuts do not add up.

# %% [markdown]
# ### Which setting?
#
# Both methods have knobs. Turned too far, they spoil the model; not far enough, they leave the prompt working. So each method's setting is
# chosen on one half of the prompts by a rule: of the settings that bring the {term}`memorization rate` to a tenth, take the one whose regular images stay most alike; if none
# does, the one that leaves the least. Everything after this section is of the other half. Beside the chosen settings stand those of the
# paper.
#
# {ref}`replication` chose by this rule as well, among fewer settings. Here the candidates include Wanda's published
# sparsities and finer steps, so the choice can differ: a sparsity between those of that chapter may silence as well and keep regular images
# more alike. NeMo's published search is slow; at preset `quick` it is no candidate, and is reported on the test half.

# %%
chosen, missing = pruned.choices(study)
Markdown(pruned.left_out(study, missing))

# %% tags=["hide-input"]
Markdown("Chosen on the validation half: " + "; ".join(f"**{choice.label}**" for choice in chosen.values()) + ".")

# %% [markdown]
# The candidates: units off and their share of the units that could be taken (means over prompts), what is left of the memory, and what it
# costs. *Similarity* is the copy score of a regular image to what the unpruned model paints from the same noise; *alignment* is how well
# CLIP finds a regular image to fit its prompt, pruned and as trained. *NeMo search*, where it stands, is the published method; *z > …* flags with a fixed $z$
# and neither searches nor refines. A percentage is Wanda's $\rho$; *conditional half* measures $X$ on the half of guidance's batch
# that sees the prompt.
#
# A setting marked *up blocks too* is not the published NeMo, which leaves the up blocks alone. It stands among the candidates because in a
# small model text enters there as well. If it is the one chosen, "NeMo" below means this one, and the published search stands beside it in
# the tables. The rule of choice looks at silence first, so a chosen setting may be one that spoils the model; the claims at the end judge the
# two separately.

# %%
pruned.trials(chosen)

# %% [markdown]
# ### What is cut
#
# {numref}`fig-layers` shows where in the network the units lie, for the settings of the rest of the chapter. A memory that sits in one place
# would give the same few high bars for every prompt. How far the cuts for different prompts, and for different triggers of one image, agree
# is a question of its own, which the next chapter takes up.

# %%
off = cuts.units_off(study, chosen)
layers = cuts.layers(off)
totals = layers.groupby(["setting", "id"], sort=False)["units"].sum()
readable(totals.groupby("setting", sort=False).agg(["median", "min", "max"]).astype(int))

# %% mystnb={"figure": {"name": "fig-layers", "caption": "Share of each layer's units that is switched off, one dot for each test prompt that it was made for; bars are means."}, "image": {"alt": "One panel for each pruning: bars over the layers of the network for the share of units switched off, with a dot for each prompt.", "width": "100%"}} tags=["hide-input"]
plots.units_per_layer(layers)

# %% [markdown]
# ### Does the cut reach the memory?
#
# Wanda may take weights from every block, NeMo only value neurons of the down and middle blocks. Text enters the up blocks as well. So
# before asking how well NeMo selects, ask what is there to select from: switch off *all* value neurons of a group of blocks. No setting can
# take more than that. If test prompts still return their images with all of NeMo's neurons off, the way from the prompt to those images
# leads past them, and taking more of them is no remedy. The last column is what it costs: the share of the alignment of regular prompts that
# is lost; more than all of it, where the alignment turns negative.

# %%
some, others = test.head(8), regular_prompts(study).head(16)
reached = reach_table(study, some, others, sampling=pruned.sampling(study))
reach_shown(reached)

# %% [markdown]
# ### Is the pruned model still of use?
#
# A model that paints only noise returns no training image either. So regular prompts, which nobody wanted to silence, are drawn under the
# prunings of the test prompts in turn. Three questions: does the image fit its prompt ({term}`alignment`)? Are the images together like real
# ones (two distances between sets of images, {term}`FID and KID`; here on the features of the bundled CLIP)? Do the images of one prompt
# still differ from each other? The measure of all is the model as trained, on the same prompts and noise. The {term}`twin` shows what a
# model is like that never learnt the memorized images, and the rows of *all cuts* what happens when the cuts of all test prompts are made
# at once, as one has to who gives the weights away.

# %%
utility = cuts.utility(study, chosen, off)
cuts.utility_shown(utility)

# %% mystnb={"figure": {"name": "fig-utility", "caption": "Regular prompts under each pruning, with 95 % intervals. The dotted line is the unpruned model."}, "image": {"alt": "One panel for each measure of quality, one row for each pruning, with interval bars and a dotted line at the unpruned model.", "width": "100%"}} tags=["hide-input"]
plots.utility(utility)

# %% tags=["hide-input"]
losses = {method: cuts.alignment_lost(utility, choice) for method, choice in chosen.items()}
for method, loss in losses.items():
    study.headline(f"{method.lower()}_alignment_loss", loss)
Markdown("Share of alignment lost: " + "; ".join(f"{chosen[m].label} {pruned.shown(loss, percent=True)}" for m, loss in losses.items()) + ".")

# %% [markdown]
# ## Another way in
#
# The denoising network never sees the prompt, only its embedding: an array of numbers, one vector for each token. Nothing says that the
# embedding must come from a prompt. {term}`DoRI` looks for one directly. Let $x_0$ be the {term}`latent` of the training image,
# $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$ the same with noise of timestep $t$, and $\theta'$ the *pruned* network, whose
# weights stay as they are. The search minimises the loss the model was trained with, over the embedding alone:
#
# ```{math}
# :label: eq-dori
# \begin{gathered}
# y^\star = \arg\min_{y}\; \mathcal L(y) , \\
# \mathcal L(y) = \mathbb{E}_{\epsilon,\,t}\; \big\lVert \epsilon - \epsilon_{\theta'}(x_t, t, y) \big\rVert_2^2 .
# \end{gathered}
# ```
#
# It takes some dozens of steps of Adam {cite:p}`kingma2015adam`, each on a few fresh draws of $\epsilon$ and $t$. Then the pruned network paints from $y^\star$ and
# *new* noise, as it would from a prompt. The search needs the training image, so it is no way to steal images one does not have. It is a way
# to find out what a model still holds.
#
# Three starts are tried: the image's own *prompt*; *random* numbers; and some *regular* prompt that has nothing to do with the image. If
# only the first worked, the search might merely undo the blockade of one way. If all work, there are ways to the image from everywhere.

# %% [markdown]
# ### Looking
#
# Each row is a prompt of the test half. From left to right: its training image; the best of what the model paints as trained; the best
# under the pruning; the best under the same pruning after the search from the prompt. Framed images count as copies.

# %% mystnb={"figure": {"name": "fig-stages-nemo", "caption": "NeMo: training image, the model as trained, pruned, and pruned after the search. Copy scores below; framed images count as copies."}, "image": {"alt": "Rows of four small images: a training image, what the model paints as trained, what it paints after NeMo's pruning, and what the pruned model paints from the embedding a search found, with copy scores.", "width": "100%"}} tags=["hide-input"]
plots.comparison_grid(cuts.stages(study, chosen.get("NeMo")), threshold=study.descriptor.threshold)

# %% mystnb={"figure": {"name": "fig-stages-wanda", "caption": "Wanda, shown in the same way."}, "image": {"alt": "Rows of four small images: a training image, what the model paints as trained, what it paints after pruning by Wanda, and what the pruned model paints from the embedding a search found, with copy scores.", "width": "100%"}} tags=["hide-input"]
plots.comparison_grid(cuts.stages(study, chosen.get("Wanda")), threshold=study.descriptor.threshold)

# %% [markdown]
# To look closer, pick an image and slide through what becomes of it, under the pruning that silenced more on the validation half.

# %% tags=["hide-input", "landing"]
widgets.stage_picker(cuts.stages(study, pruned.most_silent(chosen), 6, mended=True), threshold=study.descriptor.threshold)

# %% [markdown]
# ### Measuring
#
# This is the paper's table, for this model, with the paper's figures beside it. They are for Stable Diffusion v1.4, photographs, and another
# descriptor with another threshold: compare directions, not digits. Rows without a search ask what the prompt still returns. Rows with one
# ask whether any embedding does. The first row and the last ones are controls: the model before pruning, and the same search where there is
# nothing to find.

# %%
table = pruned.runs(study, chosen)
pruned.paper_table(table)

# %% tags=["hide-input"]
figures = pruned.headline_rates(table, chosen)
for name, estimate in figures.items():
    study.headline(name, estimate)
Markdown(f"""Memorization rates on the test half:

- as trained: {figures["mr_original"].percent}
{pruned.rate_lines(figures, chosen)}
""")

# %% [markdown]
# How to read it. A pruning with a low rate without a search and a high rate with one *hid* the images. One that is low in both resisted
# this search, which leaves two questions: does it resist a longer search ({numref}`fig-budget`), and is there still a model to speak of
# ({numref}`fig-utility`)? One that is high without a search silenced nothing, and its other rows mean little.

# %% [markdown]
# ### When a start is far away
#
# Random numbers are no prompt, and the search has further to go from there. If fewer images come back from a random start than from the prompt, it may be
# that no way leads there, or that the search did not have the time. So the pruning under which a random start brought back least is given
# more steps, and the twin is given as many.

# %%
hardest = retention.hardest(table, chosen)
longer = retention.longer_runs(study, hardest)
rates_shown(longer, ["target", "steps"])

# %% tags=["hide-input"]
Markdown(f"Memorized images are under {hardest.label}; all searches start from random numbers.")

# %% [markdown]
# ## Found or written?
#
# An embedding of all tokens is a long list of free numbers. If it is as long as the latent of an image, there is room in it for the image
# itself, and a search that goes on for long enough may not *find* the image but *write* it.

# %% tags=["hide-input"]
Markdown(f"Free numbers of an embedding of this model: {study.model.unconditional[0].numel():,}. Numbers of an image's latent: "
         f"{study.model.initial_latents([0]).numel():,}.")

# %% [markdown]
# If it writes, its success says nothing about memory. This is the gravest objection against the method, and it can be tested, because there are
# models and images without memory:
#
# - {term}`held-out` images on the same model: never trained on, painted by the same program;
# - the *same* memorized images on the twin: same architecture, same training, except that the twin never saw them.
#
# What the search paints there, it writes. {numref}`fig-budget` shows both against the number of steps, the {term}`budget`, together with the
# memorized images under pruning: of the two methods the one that silenced more on the validation half. The first point is zero steps: what
# the start returns.

# %%
main = pruned.most_silent(chosen)
curves = retention.budget_runs(study, main)
readable(rates_shown(curves, ["steps", "target"])[MR].unstack())

# %% mystnb={"figure": {"name": "fig-budget", "caption": "Memorization rate against the steps of the search from the prompt: memorized images under pruning, the same images on the twin, and held-out images on the model as trained. Bars are Wilson's intervals; the targets stand beside each other at each number of steps."}, "image": {"alt": "Three curves of memorization rate against the number of search steps, for memorized images, the same images on the twin, and held-out images, with interval bars, and a vertical line before the first number of steps at which a control exceeds one per cent, if there is one.", "width": "100%"}} tags=["hide-input"]
plots.budget_curves(curves)

# %% tags=["hide-input"]
gap_200 = study.headline("gap_200_steps", retention.gap(curves, steps=200))
painted = retention.first_painted(curves)
Markdown(f"Memorized images are under {main.label}. First number of steps, of those tried, after which more than one in a hundred is painted: "
         + "; ".join(f"{target} {step if step is not None else 'none'}" for target, step in painted.items())
         + f". Memorized minus twin after 200 steps: {pruned.shown(gap_200)}.")

# %% [markdown]
# A search is evidence of memory only as far as the controls stay down. Where they rise, a success is no longer evidence; a failure still is.
# With few images a rate of zero does not exclude one in a hundred; the bars in the figure say how much it excludes. Intervals of
# differences are Newcombe's {cite:p}`newcombe1998interval`, made of the two Wilson intervals.

# %% [markdown]
# ### How far did it go?
#
# A search that writes an image should have to go a long way, and one that finds a memory might end near by. The yardstick is the distance
# between the embeddings of two regular prompts, with all tokens taken as one vector. {numref}`fig-movement` shows the searches of
# {numref}`fig-budget`; the table those of the main table that brought their image back.

# %%
between = retention.between_prompts(study)
retention.movement_table(table, between).round(2)

# %% mystnb={"figure": {"name": "fig-movement", "caption": "How far the search went from its start, a dot for each image, filled where it brought the image back; lines are medians. Thin black dashes: the median distance between two prompts."}, "image": {"alt": "Two panels against the number of search steps: the distance of the embedding from its start and the cosine to it, a dot for each image, for memorized images, the twin and held-out images, with the distance between two prompts as a dashed line.", "width": "100%"}} tags=["hide-input"]
plots.movement(curves, reference=between["moved"])

# %% tags=["hide-input"]
moved = study.headline("moved_share", retention.moved_share(table, between))
Markdown(f"Successful searches from the prompt under pruning: median distance from the start, in distances between two prompts: "
         f"{pruned.shown(moved)}. Cosine of two prompts (median): {between['cosine']:.2f}.")

# %% [markdown]
# **On the bundled model, as shipped:** the expectation fails. Up to 200 steps the searches for memorized images go further from their start than those
# on the twin and on held-out images, which find nothing. By the angle they soon
# turn less than those on the twin, and later less than those on held-out images: they lengthen the embedding more than they turn it. How far a search went does not tell finding from writing here; the controls do.

# %% [markdown]
# ### How much room does it need?
#
# The objection can be met more directly, by taking the room away. Two limits: only a few tokens may move, all others stay those of the
# prompt; or the embedding must stay within a radius of its start. If the search writes, it needs room, and memorized images and twin
# fall together as it shrinks. If it finds, little room is enough for the memorized images and for them alone.

# %%
limits = retention.limited_runs(study, main)
readable(rates_shown(limits, ["limit", "target"])[MR].unstack())

# %% mystnb={"figure": {"name": "fig-limits", "caption": "Memorization rate after a search with limits: so many tokens may move, or the embedding must stay within a radius, given in distances between two prompts. Memorized images are under pruning, the twin is whole; without a twin, held-out images stand in its place."}, "image": {"alt": "Memorization rates with interval bars by limit on the search, for memorized images under pruning and for the same images on the twin.", "width": "100%"}} tags=["hide-input"]
plots.limit_rates(limits)

# %% tags=["hide-input"]
gap_4 = study.headline("gap_4_tokens", retention.gap(limits, limit="4 tokens"))
Markdown(f"With four free tokens, memorized minus twin: {pruned.shown(gap_4)}.")

# %% [markdown]
# ## And with words?
#
# Who has only a text box cannot put in an embedding. {term}`UnlearnDiffAtk` {cite:p}`zhang2024unlearndiffatk` searches over *tokens*: it puts a few in
# front of the prompt and looks for those that lower the same loss. It was made for erased concepts; here it gets one image. The paper reports that it does
# not recover images from pruned models. Such a failure has to be read with care: it bounds what this search finds with this budget, and
# where an embedding was found, it is a failure to look and not an absence.

# %%
words = retention.words_runs(study, chosen)
rates_shown(words, ["weights", "prompt"])

# %% tags=["hide-input"]
figures |= (by_words := retention.words_rates(words, chosen))
for name, estimate in by_words.items():
    study.headline(name, estimate)
retention.words_found(words, test).round(2)

# %% [markdown]
# The rows *alone* are the prompt without added tokens, so the search found only what *with tokens* has beyond them. The model as trained
# is the positive control: the prompt alone should do there, added tokens may disturb it, and a search that works puts that right. If it
# fails even there, its failure under pruning says little.

# %% [markdown]
# ## What to conclude
#
# The rules were written down before any of this was run. They ask whether the paper's statements hold for this model; its figures are
# for another model and other images.

# %% tags=["hide-input"]
HTML(claims_html("02", study.headlines))

# %% [markdown]
# Whatever the verdicts, three things follow from how this was measured.
#
# 1. **A test by the prompt alone is not a test of removal.** It asks about one trigger. Whoever claims that an image was removed has to show
#    that no other trigger brings it back, or at least that a search does not find one.
# 2. **A search alone is not a test of memory.** It needs a budget and a control, both reported. A success at a budget at which unseen images
#    come back as well proves nothing.
# 3. **Made-to-measure cuts are the most favourable case.** Here each image got a pruning of its own, and nothing else had to be pruned. A model
#    in which all are cut at once bears the sum of the cuts; what that costs, {numref}`fig-utility` shows.
#
# And two limits. What is measured here is one search, from three starts; an image it does not bring back may yield to another. And the model is
# small and its images are painted: how the findings carry over to a large model is a matter of running this chapter on one, which the guide
# ({ref}`guide`) says how to do.

# %% tags=["hide-input"]
study.finish()
Markdown(takeaways.pruning(figures, chosen, losses=losses, gap_200=gap_200, gap_4=gap_4))

# %% [markdown]
# ## Try it yourself
#
# 1. In {eq}`eq-wanda` the reference is the empty prompt. {ref}`replication` asks what the empty prompt itself returns. Which weights does a
#    reference that remembers protect? Choose another one (`Wanda(reference="regular")`) and compare the prompts' rates and the search's.
# 2. Both halves of the paper's argument need the search to be short. From {numref}`fig-budget`, which budget would you write into a standard,
#    and how many held-out images would you ask for, to exclude one in a hundred with 95 % confidence?
# 3. A pruning could be made against the search instead of the prompt: prune for the embedding that was found, search again, and so on. Does
#    it end, and with what utility? `find_units` takes prompts; write the loop for embeddings with `dori.mitigation.nemo.nemo`.
# 4. The search gets the training image. Someone who attacks a published model for images they do *not* have cannot run it. What would they
#    need instead, and what does this chapter's result mean for them?
# 5. Movement is measured in all tokens as one vector. Is the way shared by all tokens, or does one token go most of it? Compare with the
#    limits on free tokens.
#
# ## What's next
#
# If there are ways to an image from everywhere, where in the network is the image? The next chapter takes many triggers of one
# image and asks whether they share anything: in the space of embeddings, in the activations, in the weights that pruning would take.
