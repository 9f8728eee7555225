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
# (replication)=
# # Replication: a model that returns its training images
#
# Ask a text-to-image model for something, and it should paint something new. For some prompts it does not: every initial noise
# leads to one and the same picture, and that picture is in the training set {cite:p}`carlini2023extracting,somepalli2023forgery`.
# This is the fact that the rest of the book is about. Before asking where the memory lives and whether it can be cut out, we have
# to see it, measure it, and know what our measurements do when there is no memory to find.
#
# **The claim.** The paper takes prompts for which Stable Diffusion returns a training image and starts from this: with its own
# prompt, nearly every one of those images is replicated, while other prompts replicate nothing {cite:p}`kowalczuk2025dori`.
#
# **What would count against it.** Any of these would:
#
# - prompts that were repeated in training do not bring back their images, or only at a strong {term}`guidance`, which would make
#   replication an effect of the sampler and not of the weights;
# - held-out prompts pass for copies as well, so that the score sees likeness and not copying;
# - a model that was never shown the images, the {term}`twin`, returns them too;
# - the {term}`memorization rate` does not depend on how often an image was repeated.

# %% [markdown]
# ## Parameters
#
# The page you read was run with the bundled model. Every chapter takes these parameters; {ref}`guide` says how to set them
# for a model and prompts of your own.

# %% tags=["parameters"]
model = "testbed"  # a name that `dori models` lists, a diffusers directory, a .safetensors file, or a name on the Hugging Face Hub
benchmark = "testbed"  # testbed, or a CSV file with id, prompt, image and, where known, kind and split
preset = "quick"  # size of the run: smoke, quick, full or paper
seed = 0  # fixes the noise of every image
device = "auto"  # auto, cpu, cuda, cuda:N or mps
dtype = "float32"  # precision of the weights: float32, bfloat16 or float16
records = "none"  # none: measure everything; shipped: take from data/records what was measured under the same key
run_dir = "_build/runs/01_replication/by-hand"  # where records are kept; a second run computes only what is missing

# %% tags=["hide-input"]
from IPython.display import HTML, Markdown

from dori import plots, widgets
from dori.claims import claims_html
from dori.detection import auroc, roc_table, tpr_at
from dori.experiments import foundations
from dori.experiments import replication as chapter
from dori.experiments.cuts import utility_shown
from dori.experiments.unprompted import unprompted_table
from dori.experiments.utility import alignment_loss, estimate, utility_table
from dori.metrics.copy import describe
from dori.metrics.intervals import bootstrap
from dori.metrics.replication import median_score, memorization_rate, pair_rate, rates, rates_shown, spread
from dori.study import generate_and_score, open_study

# %%
study = open_study(model=model, benchmark=benchmark, preset=preset, seed=seed, device=device, dtype=dtype, records=records, run_dir=run_dir)
top, regular = chapter.top_prompts(study), chapter.regular_prompts(study)
Markdown(f"Model `{study.model.name}`: guidance {study.sampling().guidance_scale:g}, {study.sampling().steps} DDIM steps, "
         f"{study.sampling().seeds} images per prompt. {len(top)} prompts with the most copies, {len(regular)} held-out ones.")

# %% [markdown]
# ## Looking first
#
# Below, each row is one prompt that was repeated in training. Its training image stands on the left; then come images that the model
# painted for the prompt, each from another initial noise. Nothing but the noise differs within a row. The number below an image is its
# {term}`copy score` against the training image; images that count as copies are framed.

# %% mystnb={"figure": {"name": "fig-verbatim", "caption": "Prompts repeated in training. Left: the training image; then what the model paints for its prompt, with copy scores. Framed images count as copies."}, "image": {"alt": "Rows of small painted postcards. In each row a training image is followed by images generated from its prompt, with a copy score below each and a frame around those that count as copies.", "width": "100%"}} tags=["hide-input"]
plots.image_grid(chapter.gallery(study, top.head(5)), threshold=study.descriptor.threshold)

# %% [markdown]
# The same for prompts the model never saw. They name a time of day, a place, and some objects; the image on the left is one that was
# painted to the same caption and held out. A good model paints what the caption asks for, and each time differently.

# %% mystnb={"figure": {"name": "fig-regular", "caption": "Held-out prompts, shown in the same way. The image on the left fits the caption; the model never saw it."}, "image": {"alt": "Rows of small painted postcards. In each row a held-out image is followed by images generated from its caption; they show similar subjects in different arrangements, with a copy score below each.", "width": "100%"}} tags=["hide-input"]
plots.image_grid(chapter.gallery(study, regular.head(5)), threshold=study.descriptor.threshold, original="held-out image")

# %% [markdown]
# ### When is it decided?
#
# Sampling goes from noise to image in many small steps, and at each step the model has a guess of the final image, $\hat x_0$.
# With $\bar\alpha_t$ the share of signal left at timestep $t$ and $\hat\epsilon$ the predicted noise,
#
# ```{math}
# :label: eq-x0
# \hat x_0 = \frac{x_t - \sqrt{1-\bar\alpha_t}\,\hat\epsilon}{\sqrt{\bar\alpha_t}} .
# ```
#
# {numref}`fig-denoising` shows the first guess and the last for one repeated and one held-out prompt. Move the slider for the steps
# between. If the four guesses of a row agree before any of the image can be seen in the noise, the picture comes from the prompt
# alone. A related trace, how hard a prompt pulls, becomes a detector further down.

# %%
pair = {"repeated prompt": top.head(1), "held-out prompt": regular.head(1)}
guesses = {name: chapter.denoising(study, prompts) for name, prompts in pair.items() if len(prompts)}
steps = list(next(iter(guesses.values())))
rows = {step: {name: next(iter(seen[step].values())) for name, seen in guesses.items()} for step in steps}

# %% mystnb={"figure": {"name": "fig-denoising", "caption": "What the model takes the image to be after the first and after the last step, for a repeated and a held-out prompt, one column for each initial noise."}, "image": {"alt": "Four rows of small images: the first and the last guess for a repeated prompt and for a held-out prompt, one column for each noise.", "width": "100%"}} tags=["hide-input"]
plots.image_rows({f"{name}\nstep {s}": rows[s][name] for name in guesses for s in (steps[0], steps[-1])})

# %% tags=["hide-input"]
frames = [plots.image_rows(rows[step]) for step in steps]
alts = [f"Guesses after step {step}: repeated prompt above, held-out prompt below, a column for each noise." for step in steps]
widgets.slider_figure(frames, [str(step) for step in steps], description="after step", alts=alts,
                      caption="The guesses of the figure above at the steps between; needs JavaScript.")

# %% [markdown]
# ## Measuring
#
# Looking does not scale, and it is not a number. Let $d$ be a {term}`copy descriptor`, a network that maps an image to a vector of
# length one so that copies lie close together {cite:p}`pizzi2022sscd`. For training image $x_i$ and generations $g_{i,s}$, one for each
# seed $s$,
#
# ```{math}
# :label: eq-mr
# \begin{gathered}
# \operatorname{score}_{i,s} = d(g_{i,s}) \cdot d(x_i), \\
# \mathrm{MR} = \frac{1}{n}\sum_{i=1}^{n} \Big[\max_s \operatorname{score}_{i,s} > \tau\Big] .
# \end{gathered}
# ```
#
# The maximum over seeds asks whether the image *can* come out. The {term}`threshold` $\tau$ decides what counts as a copy, so it must
# not be chosen by what makes the results look well. Here it was fixed on pictures that no model saw, on the hardest pairs there are:
# different pictures of the same caption.

# %%
Markdown(describe(study.descriptor))

# %%
table = chapter.replicate(study)
spread(table, "sort")

# %% mystnb={"figure": {"name": "fig-scores", "caption": "Copy scores of all images against the image of their prompt. Dashed: the calibrated threshold. Verbatim prompts have all numbers of copies, from one to the most."}, "image": {"alt": "Histograms of copy scores on a common axis, one each for verbatim, template and regular prompts, with the threshold as a dashed line.", "width": "100%"}} tags=["hide-input"]
plots.score_distributions(table, threshold=study.descriptor.threshold)

# %% [markdown]
# With the scores come the figures on which the next chapters stand. Intervals are Wilson's for shares {cite:p}`wilson1927probable`
# and bootstraps over prompts for the rest: images of one prompt are no independent observations.

# %%
most = table[table["id"].isin(top.ids)]
mr_top = study.headline("mr_top", memorization_rate(most))
mr_mean_top = study.headline("mr_mean_top", pair_rate(most))
score_top = study.headline("score_top", median_score(most))
unseen = table[table["kind"] == "none"]
mr_regular = study.headline("mr_regular", memorization_rate(unseen))
score_regular = study.headline("score_regular", median_score(unseen))

# %% tags=["hide-input"]
Markdown(f"""
- Prompts with the most copies: MR {mr_top.percent}; over single images {mr_mean_top.percent}; median best score {score_top}.
- Held-out prompts: MR {mr_regular.percent}; median best score {score_regular}.
""")

# %% [markdown]
# ## More copies, more memory
#
# For Stable Diffusion the number of copies can only be estimated. Here it is known, since we made the training set. A dose-response
# curve is the strongest sign that what we see is memory: if the cause is repetition, more of it must do more.

# %% mystnb={"figure": {"name": "fig-copies", "caption": "Memorization rate of verbatim prompts by the number of copies of the pair in the training set; bars are Wilson's intervals."}, "image": {"alt": "Memorization rate against the number of copies in the training set, with interval bars and the number of prompts at each point.", "width": "100%"}} tags=["hide-input"]
plots.copies_curve(chapter.dose_response(table))

# %%
dose = study.headline("copies_spearman", chapter.dose_correlation(table))
rates_shown(chapter.verbatim_runs(table), ["copies"])

# %% tags=["hide-input"]
Markdown(f"Rank correlation of copies and best score, over prompts: {dose}.")

# %% [markdown]
# ## Is it the sampler?
#
# Three settings of the sampler could make or break replication without touching a weight. {term}`Guidance <guidance>` pushes the image
# towards the prompt {cite:p}`ho2022guidance`; at guidance one, there is no push. The number of DDIM steps {cite:p}`song2021ddim` decides how finely
# the path is followed. The number of images per prompt decides how often we try, and as MR takes the best one, it can only rise with it.

# %%
by_guidance = chapter.sweep(study, "guidance_scale")
by_steps = chapter.sweep(study, "steps")

# %% mystnb={"figure": {"name": "fig-guidance", "caption": "Memorization rate against the guidance scale; at one, the conditional prediction is used as it is."}, "image": {"alt": "Memorization rate of repeated and of held-out prompts against the guidance scale, with interval bars.", "width": "100%"}} tags=["hide-input"]
plots.rate_curves(rates(by_guidance, ["sort", "guidance_scale"]), x="guidance_scale", label="guidance scale")

# %% mystnb={"figure": {"name": "fig-steps", "caption": "Memorization rate against the number of DDIM steps."}, "image": {"alt": "Memorization rate of repeated and of held-out prompts against the number of sampling steps, with interval bars.", "width": "100%"}} tags=["hide-input"]
plots.rate_curves(rates(by_steps, ["sort", "steps"]), x="steps", label="DDIM steps", log=True)

# %% mystnb={"figure": {"name": "fig-seeds", "caption": "Memorization rate against the number of images drawn per prompt, of which the best counts; verbatim prompts of all numbers of copies."}, "image": {"alt": "Memorization rate of verbatim, template and held-out prompts against the number of seeds, with interval bars.", "width": "100%"}} tags=["hide-input"]
plots.rate_curves(chapter.seed_curve(table), x="seeds", label="images per prompt")

# %% [markdown]
# For the question whether guidance makes the memory, the same prompts as above were drawn once more without it.

# %%
unguided = generate_and_score(study, top, study.sampling(guidance_scale=1))
mr_unguided = study.headline("mr_top_unguided", memorization_rate(unguided))
Markdown(f"Without guidance: MR {mr_unguided.percent}. With it: {mr_top.percent}.")

# %% [markdown]
# ## Template and verbatim
#
# Some training images differ from each other in one region alone: the same photograph of a shoe in five colours. A model can then hold
# the scene and leave the region open. Webster calls this {term}`template` memorization {cite:p}`webster2023reproducible`. Such prompts are memorized,
# and yet the score against *their* image may stay below the threshold, or the image of a sibling may come out. So two scores are
# needed: against the prompt's own image, and against the nearest of its group.

# %%
template = chapter.template_table(study)
own = study.headline("template_own_nearest", bootstrap(template["own_is_nearest"], by=template["id"]))
mr_template = study.headline("mr_template", memorization_rate(table[table["kind"] == "template"]))
scores = template.melt(["id", "seed"], ["score", "group_score"], "against", "copy score")
scores["against"] = scores["against"].replace({"score": "own image", "group_score": "nearest of the group"})

# %% mystnb={"figure": {"name": "fig-template", "caption": "Template prompts: share of images at or below each copy score, against the prompt's own image and against the nearest of its group."}, "image": {"alt": "Two cumulative curves of copy scores of template prompts: against the own image and against the nearest image of the group, with the threshold.", "width": "100%"}} tags=["hide-input"]
plots.cumulative(scores, x="copy score", by="against", label="copy score", threshold=study.descriptor.threshold)

# %% tags=["hide-input"]
Markdown(f"Template prompts: MR {mr_template.percent} against their own image. Of their images, the nearest of the group "
         f"is the right one in {own.percent}.")

# %% [markdown]
# ## The twin
#
# A model might hit an image without having stored it, for instance because the image is what any model would paint for that prompt.
# The {term}`twin` answers this. It has the same architecture, seed and schedule and the same other data, and was trained without the repeated pairs. We
# give it the same prompts and the same noise.

# %%
pairs = chapter.twin_table(study)
twin_runs = pairs[pairs["model"] == "twin"]
mr_twin = study.headline("mr_twin", memorization_rate(twin_runs))
rates_shown(pairs, ["model"])

# %% mystnb={"figure": {"name": "fig-twin", "caption": "The same prompts and noise on the model and on its twin, which never saw the training images in the first row."}, "image": {"alt": "Three rows of small images: training images, what the model paints for their prompts, and what the twin paints from the same noise.", "width": "100%"}} tags=["hide-input"]
plots.image_rows(chapter.twin_rows(study))

# %% tags=["hide-input"]
Markdown(f"MR of the twin: {mr_twin.percent}; of the model: {mr_top.percent}.")

# %% [markdown]
# For this to be a fair comparison, the twin must be as good a model for everything else. Both draw held-out prompts from the same noise;
# alignment is the cosine of image and caption by the small CLIP, FID and KID are taken on its image features against the held-out images,
# and diversity is the copy score between images of one prompt, where lower is more varied. A change is paired, from the same noise; that of alignment is a share.

# %%
as_good = utility_table(study, regular, {study.model.name: None} | ({"twin": study.twin} if study.twin else {}))
if study.twin:
    twin_loss = study.headline("twin_alignment_loss", alignment_loss(as_good, "twin"))
    study.headline("twin_fid_change", estimate(as_good, "twin", "fid_change"))
utility_shown(as_good)

# %% [markdown]
# ## Does the model copy what it was not asked about?
#
# So far each image was compared with one training image, that of its prompt. A model could also copy some *other* training image for a
# held-out prompt. So we look for the nearest neighbour over the whole training set. With so many images, some are alike by chance; how
# alike, we learn from held-out images, which cannot be copies of anything.

# %%
nearest = chapter.neighbour_table(study)
gap = study.headline("neighbour_gap", chapter.neighbour_gap(nearest))
spread(nearest, "source")

# %% mystnb={"figure": {"name": "fig-neighbours", "caption": "Share of images at or below each copy score with the nearest of all training images: generated from held-out prompts, and held-out images. The threshold is for pairs; the nearest of thousands exceeds it more often, held-out images too."}, "image": {"alt": "Two cumulative curves of nearest-neighbour copy scores, for generated and for held-out images.", "width": "100%"}} tags=["hide-input"]
plots.cumulative(nearest, x="score", by="source", label="copy score with the nearest training image", threshold=study.descriptor.threshold)

# %% tags=["hide-input"]
Markdown(f"Median score with the nearest training image, generated minus held-out: {gap}.")

# %% [markdown]
# ## And is it a good model otherwise?
#
# Replication by a model that can do nothing else would prove little. Held-out captions name five attributes. The small CLIP
# {cite:p}`radford2021clip` that comes with the testbed reads each off an image by comparing the caption with the captions that name another value. It errs,
# too; how often, held-out images tell, whose captions are right by construction. Their accuracy is the ceiling.

# %%
read = chapter.attribute_table(study)
share = study.headline("attribute_share_of_ceiling", chapter.share_of_ceiling(read))
accuracy = {s: bootstrap(part["correct"], by=part["image"]) for s, part in read.groupby("source")}
for source, name in {"generated": "attribute_accuracy", "held-out": "attribute_ceiling"}.items():
    if source in accuracy:
        study.headline(name, accuracy[source])

# %% mystnb={"figure": {"name": "fig-attributes", "caption": "Attributes of held-out captions, read off generated and off held-out images; dotted: guessing."}, "image": {"alt": "Bars of the share of attributes read correctly, by attribute, for generated and for held-out images, with the level of guessing.", "width": "100%"}} tags=["hide-input"]
plots.attribute_bars(read)

# %% tags=["hide-input"]
Markdown("Attributes read correctly: " + "; ".join(f"{source} images {right.percent}" for source, right in accuracy.items())
         + f"; as a share of the ceiling: {share.percent}.")

# %% [markdown]
# ## Finding memorized prompts without the training set
#
# All this needed the training images. Whoever only has the model cannot compare. But there may be a trace inside: in Stable Diffusion a
# memorized prompt pulls hard and at once, whatever the noise {cite:p}`wen2024detecting`. The score is the size of guidance's correction,
#
# ```{math}
# :label: eq-wen
# \begin{gathered}
# m(y) = \frac{1}{S}\sum_{s=1}^{S} \big\lVert \Delta_\theta(x^{(s)}_{T}, y) \big\rVert_2 , \\
# \Delta_\theta(x, y) = \epsilon_\theta(x, T, y) \\
# {} - \epsilon_\theta(x, T, \varnothing) ,
# \end{gathered}
# ```
#
# taken at the first step $T$ and averaged over $S$ noises. It costs two network calls for each noise, and nothing is painted.

# %%
magnitude = chapter.detection_table(study)
noises = study.sampling().seeds
detectors = {"one noise": chapter.detector_scores(magnitude, 1), "all noises": chapter.detector_scores(magnitude, noises)}

# %% mystnb={"figure": {"name": "fig-magnitudes", "caption": "Wen's magnitude of each prompt at the first step, mean over noises, by copies in the training set."}, "image": {"alt": "One dot for each prompt: the magnitude of the prompt's pull at the first step, by the number of copies, zero copies being held-out prompts.", "width": "100%"}} tags=["hide-input"]
plots.strip_by_copies(detectors["all noises"], label="magnitude at the first step")

# %% [markdown]
# **On the bundled model, as shipped:** the templates stand nearly clear of the regular prompts. Those with the most copies pull harder on the whole, but
# most of them lie where regular ones lie, too. Verbatim ones with half as many copies are replicated as reliably and pull no harder than regular prompts.
#
# A detector is of use if it raises few false alarms: memorized prompts are rare. Hence the axis of false alarms is logarithmic in
# {numref}`fig-roc`, and beside the area under the curve we give the share found while one regular prompt in a hundred is flagged. What
# should be found are the prompts with the most copies, whose memorization {numref}`fig-copies` shows.

# %%
targets = {name: t[(t["kind"] == "none") | t["id"].isin(top.ids)] for name, t in detectors.items()}
area = {name: auroc(part["score"], part["memorized"]) for name, part in targets.items()}
found = {name: tpr_at(part["score"], part["memorized"]) for name, part in targets.items()}
named = {"wen_auroc": area["all noises"], "wen_tpr_at_1_fpr": found["all noises"], "wen_auroc_one_noise": area["one noise"]}
for name, detected in named.items():
    study.headline(name, detected)

# %% mystnb={"figure": {"name": "fig-roc", "caption": "Detection of the prompts with the most copies against held-out prompts. Dashed: one false alarm in a hundred."}, "image": {"alt": "ROC curves with a logarithmic axis of false alarms, for the magnitude from one noise and from several, with the line of chance.", "width": "75%"}} tags=["hide-input"]
plots.roc({name: roc_table(part["score"], part["memorized"]) for name, part in targets.items()})

# %% tags=["hide-input"]
Markdown("\n".join(f"- {name}: area {area[name]}; found at one false alarm in a hundred: {found[name].percent}" for name in targets))

# %% [markdown]
# ### What a prompt pulls without memory
#
# A prompt pulls because it says something, memorized or not. Here regular captions fix five things in the picture, and the titles of
# memorized pictures say nothing; for a detector that is the hard case. The twin shows how much of the pull is what the prompt *says*:
# whatever it pulls there is no memory. The table gives the mean magnitude of both models and the excess of the one over the
# other. If the excess tells memorized from regular where the magnitude does not, the detector fails not for want of a trace but for want of a
# baseline; only here, where there is a twin, can it have one.

# %%
excess = chapter.excess_table(study)
excess = excess[(excess["kind"] == "none") | excess["id"].isin(top.ids)]
if len(excess):
    study.headline("wen_excess_auroc", auroc(excess["excess"], excess["memorized"]))
    study.headline("wen_excess_tpr_at_1_fpr", tpr_at(excess["excess"], excess["memorized"]))
means = excess.groupby("kind")[["score", "twin", "excess"]].mean().round(2)
means.rename(index={"none": "regular", "verbatim": "most copies"}, columns={"score": "the model", "twin": "the twin"}).rename_axis("prompts")

# %% tags=["hide-input"]
Markdown("" if excess.empty else f"By the excess: area {auroc(excess['excess'], excess['memorized'])}; "
         f"found at one false alarm in a hundred: {tpr_at(excess['excess'], excess['memorized']).percent}.")

# %% [markdown]
# ### When the empty prompt remembers
#
# The magnitude compares a prompt with the empty prompt, and takes for granted that the empty prompt remembers nothing. For Stable
# Diffusion this is safe: captions are dropped at random in training, and a memorized image is one of millions. In a small training set it is
# not, so the bundled model was trained with the captions of regular pairs dropped and those of memorized pairs kept. Whether that was enough
# can be seen directly: what does the model paint for no prompt at all, without guidance, and what does the twin?

# %%
unprompted = unprompted_table(study)
shares = {name: memorization_rate(part) for name, part in unprompted.groupby("model", sort=False)}
study.headline("mr_empty_prompt", shares[study.model.name])
Markdown("Images of the empty prompt that copy a memorized image: " + "; ".join(f"{n} {s.percent}" for n, s in shares.items()) + ".")

# %% [markdown]
# This bears on more than the detector: guidance pushes away from what the empty prompt paints, and pruning methods that take the empty
# prompt as their reference would take a memorizing one.

# %% [markdown]
# ## What later chapters stand on
#
# The next chapters prune this model and then search {term}`embeddings <embedding>` that bring the images back. Two things must
# hold for that to mean anything, and both belong to the model, so they are measured here.
#
# First, the search must find memory and invent none. An embedding has many free numbers; a long enough search may write an image into
# it that the model never saw. So the same search, {term}`DoRI` with the paper's settings, starts from the prompt of images of the most
# duplicated level (their test half), from the same prompts on the twin, and from the captions of held-out images. n counts the images searched for;
# several are painted from what each search found, of which the best counts.

# %%
attacks = foundations.attacked(study)
attack_rates = {target: memorization_rate(part) for target, part in attacks.groupby("target", sort=False)}
for target, name in {"memorized": "memorized", "held-out": "heldout", "twin": "twin"}.items():
    if target in attack_rates:
        study.headline(f"mr_attack_{name}", attack_rates[target])

# %% mystnb={"figure": {"name": "fig-attack-controls", "caption": "Share of images at or below each copy score after a search of fifty steps: memorized images, the same on the twin, and held-out images."}, "image": {"alt": "Cumulative curves of copy scores after the search, one each for memorized images, memorized images on the twin, and held-out images, with the threshold.", "width": "100%"}} tags=["hide-input"]
plots.cumulative(attacks, x="score", by="target", label="copy score after the search", threshold=study.descriptor.threshold)

# %% tags=["hide-input"]
Markdown("After the search: " + "; ".join(f"{target} {rate.percent}" for target, rate in attack_rates.items()) + ".")

# %% [markdown]
# Second, there must be something to find for a method that prunes. Two are tried in a plain form, each for one prompt at a time:
# switching off the value neurons whose activation on the prompt is an outlier among regular prompts (the first half of NeMo
# {cite:p}`hintersdorf2024nemo`), and cutting the feed-forward weights that matter more for the prompt than for none (Wanda
# {cite:p}`chavhan2024memorized`). How much to prune is chosen on the validation half of the prompts: of the settings that bring the
# memorization rate to a tenth, the one that keeps regular images most alike; where none does, the one that leaves the least. The
# figure that counts is of the other half. *Conditional half*: the weights are chosen by the prompt's half of guidance alone.
# Few settings are tried here, as all that is asked is whether there is one that works. {ref}`pruning-fragility` tries more by the same rule,
# with sparsities between these, and so may choose another one. In the table n is the column *prompts*: those that each setting was tried on.

# %%
silencing = foundations.silenced(study)
mr_pruned = study.headline("mr_pruned", memorization_rate(silencing.test))
kept = study.headline("pruned_similarity", bootstrap(silencing.cost["similarity"], by=silencing.cost["id"]))
foundations.trade_off_shown(foundations.trade_off(silencing))

# %% tags=["hide-input"]
Markdown(f"Chosen: {silencing.chosen}. On the test half: MR {mr_pruned.percent}. Copy score of regular images to what the unpruned model "
         f"paints from the same noise: {kept}.")

# %% [markdown]
# How deep pruning reaches may depend on how often an image was shown. {numref}`fig-pruned-copies` puts the chosen setting to prompts of
# every number of copies. Where the curve as trained is at zero, there was nothing to silence; where both curves are high, the
# memory was too strong for this pruning, and a later chapter that speaks of silenced prompts has to stay below that number.

# %% mystnb={"figure": {"name": "fig-pruned-copies", "caption": "Memorization rate by copies, as trained and with each prompt's own pruning at the chosen setting, best of two images a prompt; bars are Wilson's intervals. Prompts of both halves, also of the one that the setting was chosen on."}, "image": {"alt": "Memorization rate against the number of copies, one curve as trained and one pruned, with interval bars.", "width": "100%"}} tags=["hide-input"]
by_copies = foundations.pruned_by_copies(study, silencing.chosen)
plots.rate_curves(by_copies, x="copies", label="copies in the training set", by="weights", log=True)

# %% [markdown]
# ## Does it replicate?
#
# The rules were written down before the results. They ask whether the paper's statements hold for this model; its figures are for
# another model and other images, and are not compared as numbers.

# %% tags=["hide-input"]
HTML(claims_html("01", study.headlines))

# %% tags=["hide-input"]
study.finish()
Markdown(f"""
**What to take away**

- How often prompts with the most copies return their image: {mr_top.percent} with guidance, {mr_unguided.percent} without.
- How it goes with repetition: rank correlation {dose}; on the twin, which saw no repetition, {mr_twin.percent}.
- How often likeness passes for copying: {mr_regular.percent} of held-out prompts.
- How well the pull of the first step tells memorized from held-out, with no training image: area {area["all noises"]}.
- How much a plain pruning leaves of the memory: {mr_pruned.percent} ({silencing.chosen}, prompts it was not chosen on).
""")

# %% [markdown]
# ## Try it yourself
#
# 1. MR takes the best of several seeds. Derive how it grows with their number if each image were a copy independently with probability
#    $p$, and compare with {numref}`fig-seeds`. What does the difference say about the noise's part in replication?
# 2. Change `study.descriptor.threshold` in both directions and draw {numref}`fig-copies` again. Which of the statements above would change?
# 3. Wen's score needs the network's inside. Design a detector that sees only images, several for each prompt, and compare the two on
#    the held-out prompts. What does it cost in network calls?
# 4. The images with one copy were seen as often as any regular image. Do their prompts behave like regular ones in every figure of this
#    chapter?
#
# ## What's next
#
# The model returns its training images, and we can measure it. The obvious remedy is to find the part of the network that does it and
# to cut it out. The next chapter does that, sees the images disappear, and asks whether they are gone.
