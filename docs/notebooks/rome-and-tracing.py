# %% [markdown]
# # ROME and causal tracing
#
# Where does a model keep a fact, and what does it take to change it there? (Meng et al., arXiv:2202.05262.)

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
import math

import matplotlib.pyplot as plt
from IPython.display import Image

import palimpsest as ps
from palimpsest.report import save_trace
from palimpsest.tracing import TraceOptions, recommended_layers, trace

model = ps.load("world")
edit = ps.EditRequest("The capital city of Japan is", subject="Japan", target_old="Tokyo", target_new="Oslo")

# %% [markdown]
# **Tracing.** Noise on the subject's embeddings makes the answer go away. Then one state at a time is put back to what it was:
# where the answer returns, the fact passes through.

# %%
found = trace(model, edit.prompt, edit.subject, options=TraceOptions(samples=4))
print(f"{found.answer!r}: {found.clean:.2f}, with the subject corrupted {found.corrupted:.2f}")
save_trace(found, "trace.png")
Image("trace.png")

# %% [markdown]
# The MLPs at the subject's last token bring it back early, the attention at the last token late. Over several facts that gives a
# layer to edit.

# %%
facts = ps.dataset("world-counterfact").sample(6).requests
layers, why = recommended_layers(model, facts, how_many=1)
print(layers, why["rule"])

# %% [markdown]
# **ROME** writes into that layer's MLP: one key (the subject's), one value (found by a search), one rank-one change.

# %%
settings = {"text": "world", "statistics": {"max_tokens": 8192}}  # a small sample of what else the layer reads
outcome = ps.method("rome", layers=layers, **settings).edit(model, [edit])
outcome

# %%
outcome.diagnostics.facts["solves"]

# %%
questions = ["The capital city of Japan is", "Which city is the capital of Japan?", "The capital city of Nepal is"]
before = model.generate(questions)
with model.patched(outcome.patch):
    for question, old, new in zip(questions, before, model.generate(questions), strict=True):
        print(f"{question:40} {old:12} -> {new}")

# %% [markdown]
# **Does the layer matter?** The same edit in every layer but the first, whose inputs are of too few kinds for a sample as small as
# this one: how sure the new answer is for the prompt, for other words, and how
# sure a neighbour's answer stays.

# %%
asked = [(questions[0], "Oslo"), (questions[1], "Oslo"), (questions[2], "Kathmandu")]
edited = range(1, model.num_layers)
lines = []
for layer in edited:
    patch = ps.method("rome", layers=[layer], **settings).edit(model, [edit]).patch
    with model.patched(patch):
        lines.append([math.exp(score.log_prob) for score in model.score(*zip(*asked, strict=True))])
figure, panel = plt.subplots(figsize=(6, 2.8))
for column, (name, marker) in enumerate((("the prompt", "o"), ("in other words", "s"), ("a neighbour", "^"))):
    panel.plot(edited, [line[column] for line in lines], marker=marker, label=name)
panel.axvline(layers[0], color="#cccccc", linewidth=6, zorder=0)
panel.set_xlabel("edited layer (grey: the recommended one)")
panel.set_ylabel("probability")
panel.set_ylim(-0.04, 1.04)
panel.legend(frameon=False)
figure.tight_layout()
