# %% [markdown]
# # F-Learning, step by step
#
# Forgetting before learning (arXiv:2311.08011): learn the old facts a little more, subtract that change, then learn the new
# ones. Here each step is taken by hand, then by the method itself.

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

import palimpsest as ps

model = ps.load("world")
edits = [
    ps.EditRequest("The capital city of Japan is", subject="Japan", target_old="Tokyo", target_new="Oslo"),
    ps.EditRequest("The capital city of Nepal is", subject="Nepal", target_old="Kathmandu", target_new="Kyiv"),
]
prompts = [edit.prompt for edit in edits]


def probabilities(targets):
    scores = model.score(prompts, targets)
    return [math.exp(score.log_prob) for score in scores]


def both():
    """The mean probability of the old answers and of the new ones."""
    return [
        sum(found) / len(found)
        for found in (
            probabilities([edit.target_old for edit in edits]),
            probabilities([edit.target_new for edit in edits]),
        )
    ]


print(model.generate(prompts), both())

# %% [markdown]
# **First the old facts, a little more.** Fine-tuning towards what the model says anyway gives a direction: the one in which it
# knows them better.

# %%
old = [ps.EditRequest(edit.prompt, subject=edit.subject, target_new=edit.target_old) for edit in edits]
learned_again = ps.method("ft", epochs=3, stop_loss=0.0).edit(model, old).patch
learned_again

# %% [markdown]
# **Then away from it.** The same change with a negative sign, by different amounts. A little of it makes the old answers less
# sure; a lot of it makes the model babble.

# %%
rates = [0.0, 0.1, 0.3, 0.6, 1.0]
course = []
for rate in rates:
    with model.patched(learned_again * -rate):
        course.append((both(), model.generate(prompts)))
for rate, (_, answers) in zip(rates, course, strict=True):
    print(f"{rate:4}  {answers}")

# %%
figure, panel = plt.subplots(figsize=(6, 2.6))
panel.plot(rates, [found[0] for found, _ in course], marker="o", color="#c2571a", label="old answers")
panel.plot(rates, [found[1] for found, _ in course], marker="s", color="#1f6f8b", label="new answers")
panel.set_xlabel("how much of the change is subtracted (the paper's lambda)")
panel.set_ylabel("probability")
panel.set_ylim(-0.04, 1.04)
panel.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# **Now the new facts**, learned on the model that has forgotten. `f-learning-ft` does all of it, and its patch is the sum of both
# changes.

# %%
outcome = ps.method("f-learning-ft", rate=0.3).edit(model, edits)
outcome

# %%
direct = ps.method("ft").edit(model, edits)
table = {"nothing": both()}
for name, patch in (("ft alone", direct.patch), ("f-learning-ft", outcome.patch)):
    with model.patched(patch):
        table[name] = both()
        print(f"{name:14} {model.generate(prompts)}")
figure, panel = plt.subplots(figsize=(6, 2.2))
for place, (was, now) in enumerate(table.values()):
    panel.barh(place - 0.2, was, 0.38, color="#c2571a", label="old answers" if place == 0 else None)
    panel.barh(place + 0.2, now, 0.38, color="#1f6f8b", label="new answers" if place == 0 else None)
panel.set_yticks(range(len(table)), table)
panel.invert_yaxis()
panel.set_xlim(0, 1)
panel.set_xlabel("probability")
panel.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
figure.tight_layout()

# %% [markdown]
# Two facts say nothing about which is better. The comparison over many of them, with intervals, is in the page on forgetting
# before learning.
