# %% [markdown]
# # A benchmark of one's own facts
#
# A file of facts with the questions that matter to you, several methods on it, one page to read.

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
import csv
import tempfile
from pathlib import Path

import palimpsest as ps

folder = Path(tempfile.mkdtemp())
rows = [
    (
        "The capital city of Japan is",
        "Japan",
        "Tokyo",
        "Oslo",
        "Which city is the capital of Japan?",
        "The capital city of Nepal is",
    ),
    (
        "The capital city of Nepal is",
        "Nepal",
        "Kathmandu",
        "Kyiv",
        "Which city is the capital of Nepal?",
        "The capital city of Egypt is",
    ),
    (
        "The capital city of Egypt is",
        "Egypt",
        "Cairo",
        "Vienna",
        "Which city is the capital of Egypt?",
        "The capital city of Japan is",
    ),
]
with (folder / "facts.csv").open("w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows([("prompt", "subject", "target_old", "target_new", "rephrase", "locality"), *rows])
data = ps.dataset("csv", folder / "facts.csv")
data

# %% [markdown]
# Does the model know what is to be changed? Nothing is edited here.

# %%
model = ps.load("world")
ps.assess(model, data.requests, answer="old")

# %% [markdown]
# Each method edits the facts one at a time; every edit is tested and undone. A record keeps every answer.

# %%
records = [ps.evaluate(model, ps.method(name), data) for name in ("ft", "rome", "grace")]
records[1]

# %%
import matplotlib.pyplot as plt

metrics = ("reliability", "generality", "locality.neighborhood")
figure, panels = plt.subplots(1, len(metrics), figsize=(8, 2.2), sharey=True)
names = [record.specification.method for record in records]
for panel, metric in zip(panels, metrics, strict=True):
    for place, record in enumerate(records):
        found = record.scores["generate"].get(metric)
        if found is not None:
            panel.plot([found.low, found.high], [place, place], color="#8fb7c5", linewidth=3)
            panel.plot([found.mean], [place], "o", color="#1f6f8b")
    panel.set_title(metric, fontsize=9)
    panel.set_xlim(-0.04, 1.04)
panels[0].set_yticks(range(len(names)), names)
panels[0].invert_yaxis()
figure.tight_layout()

# %% [markdown]
# Three facts make wide intervals; that is what they are for. The page has every answer of every method.

# %%
from palimpsest.report import build_report

build_report(records, folder / "report.html")
print(folder / "report.html", (folder / "report.html").stat().st_size, "bytes")

# %% [markdown]
# The same from a shell, for many facts and to go on where it was stopped: a recipe for `palimpsest bench`.
