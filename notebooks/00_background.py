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
# (background)=
# # Background: diffusion in ten minutes
#
# This page is for readers who have trained a network in PyTorch and have not yet looked inside a text-to-image model. It builds up what the study
# needs, and no more: how noise becomes a picture, how a prompt gets into it, and how one tells a copy from a likeness. Every picture below
# was made while this page was built, in the seconds a laptop takes for it: painted by the testbed's program, or drawn by the bundled model. Symbols are collected in {ref}`notation`.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
model = "testbed"  # a name that `dori models` lists, a diffusers directory, a .safetensors file, or a name on the Hugging Face Hub
benchmark = "testbed"  # testbed, or a CSV file with id, prompt, image and, where known, kind and split
preset = "quick"  # size of the run: smoke, quick, full or paper
seed = 0  # fixes the noise of every image
device = "auto"  # auto, cpu, cuda, cuda:N or mps
records = "none"  # none: measure everything; shipped: take from data/records what was measured under the same key
run_dir = "_build/runs/00_background/by-hand"  # where records are kept; a second run computes only what is missing

# %% tags=["hide-input"]
from IPython.display import Markdown

from dori import plots, widgets
from dori.experiments import background
from dori.experiments.replication import gallery, top_prompts
from dori.study import open_study

# %%
study = open_study(model=model, benchmark=benchmark, preset=preset, seed=seed, device=device, records=records, run_dir=run_dir)
prompt = background.example(study)
Markdown(f"Model `{study.model.name}`, prompt “{plots.printed(prompt.prompts()[0])}”.")

# %% [markdown]
# ## Destroying is easy
#
# Take an image and mix it with more and more noise. At timestep $t$, with $\epsilon \sim \mathcal N(0, I)$ drawn once,
#
# ```{math}
# :label: eq-forward
# x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon .
# ```
#
# The numbers $\bar\alpha_t$ fall from nearly 1 to nearly 0 over a thousand timesteps; they are fixed, nothing is learnt yet
# {cite:p}`sohldickstein2015deep,ho2020ddpm`. {numref}`fig-noising` shows it. The image $x_0$ is not mixed as pixels: a small autoencoder has
# turned it into a {term}`latent`, an array with here a quarter of the width and height, and all of diffusion happens there {cite:p}`rombach2022ldm`.
# To be looked at, latents are decoded.

# %% mystnb={"figure": {"name": "fig-noising", "caption": "A painted image at seven timesteps: less and less signal, more and more noise. Latents, decoded."}, "image": {"alt": "Seven small images from left to right: a painted landscape is covered by coloured noise until nothing of it can be seen.", "width": "100%"}} tags=["hide-input"]
plots.image_strip({"": background.noising(study, prompt)})

# %% [markdown]
# ## Undoing it is what the network learns
#
# A network $\epsilon_\theta$ is shown the noisy latent, the timestep and the prompt, and has to say which noise was mixed in. The loss is a
# mean squared error, over training pairs of image and caption $y$, timesteps, and noise:
#
# ```{math}
# :label: eq-loss
# \mathcal L(\theta) = \mathbb E_{x_0,\,y,\,t,\,\epsilon}\; \big\lVert \epsilon - \epsilon_\theta(x_t, t, y) \big\rVert_2^2 .
# ```
#
# In PyTorch this is a training loop like any other: draw a batch, draw noise, call the network, `mse_loss`, `backward`. Keep this loss in mind.
# {term}`DoRI` minimises the very same one, for *one* image, over the prompt's embedding and not over $\theta$.
#
# To paint, start from pure noise and go back in small steps. Who knows the noise knows the image: solving {eq}`eq-forward` for $x_0$ turns
# each predicted noise into a guess of the final picture. The sampler {term}`DDIM` {cite:p}`song2021ddim` moves a little towards that guess, asks the
# network again, and so on. It draws no further random numbers, so one initial noise always gives one image.

# %%
strip = background.denoising_strip(study, prompt)

# %% mystnb={"figure": {"name": "fig-strip", "caption": "One run of the sampler. Above: what the network is given. Below: the image it takes that to be. Early guesses are blurred, as many images are still possible."}, "image": {"alt": "Two rows of small images by step. Above, noise gradually turns into a landscape; below, a blurred guess of the landscape becomes sharp.", "width": "100%"}} tags=["hide-input"]
plots.image_strip(strip)

# %% [markdown]
# The first guesses are blurred for a reason. A mean squared error is least at the *mean* of all images that fit, and at the start nearly all
# images do. A first guess that is the same for every noise would mean that for this prompt the network knows of one image only.
# {ref}`replication` shows exactly that, and makes a detector of a related trace, how hard a prompt pulls.

# %% [markdown]
# ## The prompt, amplified
#
# A text encoder, here a small CLIP {cite:p}`radford2021clip`, turns the prompt into an {term}`embedding`, one vector for each token. During
# training some captions were replaced by the empty one, so the same network can also predict without a prompt. {term}`Guidance <guidance>`
# uses the difference of the two {cite:p}`ho2022guidance`: with $g$ the scale and $\varnothing$ the empty prompt,
#
# ```{math}
# :label: eq-guidance
# \begin{gathered}
# \hat\epsilon = \epsilon_\theta(x_t, t, \varnothing) \\
# {} + g\,\big(\epsilon_\theta(x_t, t, y) - \epsilon_\theta(x_t, t, \varnothing)\big) .
# \end{gathered}
# ```
#
# At $g = 0$ the prompt is not heard, at $g = 1$ it is heard once, and above that its pull is exaggerated: up to a point images fit better, and they look more like
# each other.

# %%
guided = background.guidance_images(study, prompt)

# %% mystnb={"figure": {"name": "fig-guidance-images", "caption": "The same prompt and the same initial noises (one a column) without the prompt, with it, and with its pull exaggerated."}, "image": {"alt": "Three rows of small images. At guidance zero they show different things; at guidance one they roughly fit the prompt; at the highest guidance they fit it in garish colours.", "width": "100%"}} tags=["hide-input"]
plots.image_rows({f"guidance {scale}": guided[scale] for scale in [*list(guided)[:2], *list(guided)[-1:]]})

# %% tags=["hide-input"]
frames = [plots.image_rows({f"guidance\n{scale}": images}) for scale, images in guided.items()]
alts = [f"Images from the same prompt and noises at guidance {scale}." for scale in guided]
widgets.slider_figure(frames, list(guided), description="guidance", alts=alts,
                      caption="All guidance scales, for the same noises; needs JavaScript.")

# %% [markdown]
# (cross-attention)=
# ## Where text meets image
#
# The prompt enters the network at one kind of place: its **cross-attention** layers {cite:p}`vaswani2017attention`. Every place of the image, a
# row of $H$, forms a query. Every token of the embedding $y$ forms a key and a value:
#
# ```{math}
# :label: eq-attention
# \operatorname{softmax}\!\Big(\frac{(H W_Q)(y W_K)^\top}{\sqrt d}\Big)\,(y W_V) .
# ```
#
# The softmax says how much each place reads of each token, the **value layer** $W_V$ says what it gets to read. {term}`NeMo` prunes the outputs of
# exactly these value layers. {term}`Wanda` works in the feed-forward layers that come after.
#
# Averaged over layers, heads and steps, the softmax gives one map for each word {cite:p}`hertz2022prompt,tang2022daam`.

# %% mystnb={"figure": {"name": "fig-attention", "caption": "What was painted, and where each word is read: bright where it is read most, dark where least. Each map is stretched to the full range by itself, so it tells where and not how much."}, "image": {"alt": "A painted landscape, then the same landscape once for each word of the prompt, lit up where the word is read most.", "width": "100%"}} tags=["hide-input"]
plots.attention_strip(background.attention_maps(study, prompt))

# %% [markdown]
# In large models such maps can be startlingly sharp. In this small one they are coarse, for two reasons that are worth knowing
# before maps are taken as explanations. The text encoder lets every token look at those before it, so “at” carries the scene as well; and a network this
# narrow needs few places to tell a tree from the sky. Some studies find that memorized prompts are read differently from others
# {cite:p}`ren2024crossattention`; that is not studied here.

# %% [markdown]
# ## What memorization is
#
# The loss {eq}`eq-loss` is least if the network answers with the training set. That it usually does something better, painting images that
# were never there, comes from not having room for all of them, and from stopping early. Where an image is shown often enough, there *is* room
# for it. Then the prompt leads to that one image, whatever the noise {cite:p}`carlini2023extracting,somepalli2023forgery`.

# %%
rows = {"repeated prompt": top_prompts(study, 1), "other prompt": prompt}
shown = {name: gallery(study, some)[0]["images"] for name, some in rows.items() if len(some)}

# %% mystnb={"figure": {"name": "fig-memory", "caption": "Above: a prompt whose image was repeated in training. Below: another prompt. Each column is another initial noise."}, "image": {"alt": "Two rows of four small images. Those above are nearly the same picture four times; those below differ.", "width": "100%"}} tags=["hide-input"]
plots.image_rows(shown)

# %% [markdown]
# Three words are kept apart in this book. A **memorized** image is one that training repeated on purpose; a **replication** is a generated image
# that is a copy of it; **memorization** is what the model has if there is some input, a {term}`trigger`, that brings the image out. The prompt is only
# one such input. Whether switching off that one removes the memory is what the paper, and this book, is about.
#
# Why it matters, {ref}`ethics` says at more length: a model that holds a photograph can hand out what its owner or the person on it did not agree to; a
# model that was *said* to have forgotten it, and has not, is worse. There is also a case for some memory. Where rare examples are all there is
# of a kind, remembering them can be what good prediction takes {cite:p}`feldman2020longtail`.

# %% [markdown]
# (copy-detection)=
# ## What counts as a copy
#
# Comparing pixels does not do: a copy that is shifted by three pixels is a copy, and two pictures of night skies agree in most pixels. A
# {term}`copy descriptor` is a network that is trained to give an image and its altered versions nearly the same vector, and different images
# different ones {cite:p}`pizzi2022sscd`. The inner product of two such vectors is the {term}`copy score`; above a {term}`threshold` that was
# fixed beforehand it counts as a copy.

# %% mystnb={"figure": {"name": "fig-copy-detection", "caption": "A painted picture, altered copies of it, and another picture of the same caption, with copy scores against the first. Framed: above the threshold."}, "image": {"alt": "A row of small pictures: a painted scene, the same blurred, recoloured, cropped a little and cropped more, and another scene of the same description, with a copy score below each.", "width": "100%"}} tags=["hide-input"]
plots.comparison_grid(background.copies(study), threshold=study.descriptor.threshold)

# %% [markdown]
# The last picture has the same caption and is no copy: this is the hard case, and the one on which the threshold was set. The one before it is a copy
# to any human eye, and the descriptor misses it, as so much of it is cut away. A score is an instrument with a range. Wherever the book says
# that an image was *not* replicated, it means not beyond that threshold, by that descriptor.

# %% tags=["hide-input"]
study.finish()
Markdown("""
**What to take away**

- A diffusion model learns to name the noise in a noisy latent. Painting is asking it again and again.
- The prompt acts through its embedding alone, which the network reads in cross-attention layers. An embedding need not come from a prompt.
- A first guess that is the same for every noise is a sign of memory.
- A copy is what a descriptor scores above a threshold that was fixed before; both have limits, which can be measured.
""")

# %% [markdown]
# ## Try it yourself
#
# 1. Set `seed` to another number and run the page again. Which figures change, and which figure's message does not?
# 2. In {eq}`eq-guidance`, what does a negative $g$ paint? Try `background.guidance_images(study, prompt, [-3.0])`.
# 3. Write the loss {eq}`eq-loss` for one image in five lines with `study.model.add_noise`, `predict` and `target`. Is it lower for the image of a
#    repeated prompt than for a held-out one? Over how many draws of noise do you have to average to be sure?
# 4. How much can be cut from a picture before the copy score falls below the threshold? Draw the curve for ten painted pictures
#    (`dori.testbed.painter.paint`).
#
# ## What's next
#
# {ref}`testbed` introduces the model that painted all this; {ref}`replication` then asks what it remembers.
