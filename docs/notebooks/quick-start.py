# %% [markdown]
# # Quick start
#
# One fact is changed in a small model that comes with the package; no network, no GPU, seconds.

# %% tags=["install"]
# Where the package is not there yet, as in Colab: it is installed from what stands here.
import importlib.util
import subprocess
import sys

PACKAGE = ""  # @param {type:"string"}
# A folder with a checkout of the repository, its wheel, or `git+` and the address that you clone it from.
if importlib.util.find_spec("palimpsest") is None:
    if not PACKAGE:
        raise SystemExit(
            "Name the package above: a checkout's folder, its wheel, or git+ and the repository's address."
        )
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", PACKAGE], check=True)

# %%
import palimpsest as ps

model = ps.load("world")
model

# %% [markdown]
# An edit says what should become true: the prompt, what it is about, what the model says today and what it should say. Probes are
# other questions: the same fact in other words must follow, a neighbour must stay.

# %%
edit = ps.EditRequest(
    "The capital city of Japan is",
    subject="Japan",
    target_old="Tokyo",
    target_new="Oslo",
    probes=(
        ps.Probe("generality", "Which city is the capital of Japan?", "Oslo"),
        ps.Probe("locality.neighborhood", "The capital city of Nepal is", "Kathmandu"),
    ),
)
questions = [edit.prompt, *(probe.prompt for probe in edit.probes)]
before = model.generate(questions)
before

# %% [markdown]
# `edit` does not change the model. It returns a patch, and how the work went.

# %%
outcome = ps.method("rome").edit(model, [edit])
outcome

# %%
outcome.patch

# %% [markdown]
# The patch goes on and comes off again; behind the `with` the model is bit for bit what it was.

# %%
with model.patched(outcome.patch):
    after = model.generate(questions)
assert model.generate(questions) == before
for question, old, new in zip(questions, before, after, strict=True):
    print(f"{question:40} {old:12} -> {new}")

# %% [markdown]
# How sure is it? The probability of each answer's tokens, without the patch and with it.

# %%
import math

import matplotlib.pyplot as plt

asked = [(question, answer) for question in questions[:2] for answer in ("Tokyo", "Oslo")]


def probabilities():
    scores = model.score(*zip(*asked, strict=True))
    return [math.exp(score.log_prob) for score in scores]


without = probabilities()
with model.patched(outcome.patch):
    patched = probabilities()
figure, panel = plt.subplots(figsize=(7, 2.4))
rows = range(len(asked))
panel.barh([row - 0.2 for row in rows], without, 0.38, label="before", color="#a8b4bd")
panel.barh([row + 0.2 for row in rows], patched, 0.38, label="with the patch", color="#1f6f8b")
panel.set_yticks(rows, [f"{question} {answer}" for question, answer in asked])
panel.invert_yaxis()
panel.set_xlim(0, 1)
panel.set_xlabel("probability")
panel.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
figure.tight_layout()

# %% [markdown]
# A patch is a folder of safetensors. It knows the model it was made for and refuses any other. A merged model is a folder
# that any program reads.

# %%
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp()) / "oslo"
outcome.patch.save(folder)
again = ps.load_patch(folder)
with model.patched(again):
    print(model.generate(edit.prompt))
