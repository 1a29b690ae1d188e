# Everything starts here: `make demo` shows it, `make test` proves it. Each makes its own environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# torch goes first and alone: from an index that serves a CPU build, nothing later replaces it by a CUDA one.
TORCH  := $(shell grep -i '^torch==' constraints.txt)

.PHONY: env demo test test-all test-processors pretrained test-pretrained test-pretrained-all test-browser notebooks site check fuzz kills format bench bench-results tables real real-models editors gpu lock dist publish clean

env: $(VENV)/.ready
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "palimpsest needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: env
	$(BIN)/palimpsest demo --out demo --overwrite

test: env
	$(BIN)/python -m pytest -m 'not slow and not gpu and not pretrained' -n 2 --dist loadgroup

# The same as on other processors, and on more threads: hours. `make test-processors SETTINGS=lowest` runs one of them.
SETTINGS ?=
test-processors: env
	$(BIN)/python tests/processors.py $(SETTINGS)

test-all: env
	$(BIN)/python -m pytest -m 'not gpu and not pretrained' -n 2 --dist loadgroup

# Small pretrained decoders, under `pretrained/` (or $PALIMPSEST_PRETRAINED): all, or `make pretrained MODELS="smollm2 gemma3"`.
MODELS ?=
pretrained: env
	$(BIN)/python runs/pretrained.py $(MODELS)

# The tests on them; one whose model is not there is skipped and says so.
test-pretrained: env
	$(BIN)/python -m pytest -m 'pretrained and not slow' -n 2 --dist loadgroup -rs

# And those that take minutes each: undo for every method, in float32 and bfloat16.
test-pretrained-all: env
	$(BIN)/python -m pytest -m pretrained -n 2 --dist loadgroup -rs

# Page, report and site in a headless Chromium (Debian: `apt-get install chromium`); skipped, saying so, where there is none.
test-browser: env
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser,docs]'
	$(BIN)/python -m pytest -m browser tests/web tests/report tests/docs -rs

# Executes the notebooks of docs/notebooks; `make site` does so too.
notebooks: env
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebooks]'
	$(BIN)/python docs/build/notebooks.py

# The documentation as a site, under build/site; a link that leads nowhere, or a notebook's cell that fails, ends it.
site: env
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

check: env
	$(BIN)/ruff format --check src tests bench docs/build docs/notebooks runs
	$(BIN)/ruff check src tests bench docs/build docs/notebooks runs
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/guards

# Damaged files of every kind of ours, and commands killed at random moments; what goes wrong is printed and, with KEEP=--keep, kept.
SEED  ?= 0
CASES ?= 200
KILLS ?= 20
KEEP  ?=
# `make fuzz ONLY="model gguf"` damages nothing else, `EACH=500` so many files of every sort, in turn.
ONLY  ?=
EACH  ?=
fuzz: env
	$(BIN)/python tests/robustness/fuzz.py --seed $(SEED) --cases $(CASES) $(if $(EACH),--each $(EACH)) $(if $(ONLY),--only $(ONLY)) $(KEEP)

kills: env
	$(BIN)/python tests/robustness/kills.py --seed $(SEED) --kills $(KILLS)

format: env
	$(BIN)/ruff format src tests bench docs/build docs/notebooks runs
	$(BIN)/ruff check --fix src tests bench docs/build docs/notebooks runs

# The papers' tables and figures on the bundled models, and one page about them.
# On a pretrained model: `make bench SIZE=pretrained ROOT=pretrained RESULTS=results-pretrained`; `runs/reproduce.sh` says what it needs.
RESULTS ?= results
SIZE ?= world
ROOT ?= .
bench: env
	for recipe in bench/recipes/*.$(SIZE).toml; do \
	  $(BIN)/palimpsest bench $$recipe --root $(ROOT) --out $(RESULTS)/$$(basename $$recipe .toml) --resume --workers 2 \
	  || test $$? = 1 || exit 2; done
	$(BIN)/palimpsest report $(RESULTS)/*/ --out $(RESULTS)/report.html --overwrite

# What is committed of that run: `bench/results/recipes/*.json`, and the pages that quote it.
bench-results: env
	for folder in $(RESULTS)/*/; do cp $$folder/summary.json bench/results/recipes/$$(basename $$folder).json || exit 2; done
	$(BIN)/python docs/build/pages.py

# The figures that the documentation quotes: hours, but each recipe goes on where it was stopped. Timings begin anew.
tables: env
	STAGES=tables OUT=$(RESULTS) VENV=$(VENV) bash runs/reproduce.sh
	$(BIN)/palimpsest trace world --facts world-counterfact --num 100 --json > bench/results/causal_trace.json
	for script in second_moments forgetting_reuse target_vectors speed; do $(BIN)/python bench/timing/$$script.py || exit 2; done
	$(MAKE) bench-results

# Models that know CounterFact's and ZsRE's facts: `make real-models DATA=folder-of-the-files`; and the tables of edits on them: `make real DATA=...`.
REAL ?= real
real-models: env
	$(BIN)/python runs/facts.py real --data $(DATA) --out $(REAL)
	test -d $(REAL)/counterfact || $(BIN)/palimpsest world train --facts $(REAL)/counterfact.jsonl --out $(REAL)/counterfact \
	  --phrasings 3 --vocabulary 4000 --epochs 8
	test -d $(REAL)/zsre || $(BIN)/palimpsest world train --facts $(REAL)/zsre.jsonl --out $(REAL)/zsre \
	  --phrasings 4 --vocabulary 6000 --epochs 12

real: real-models
	$(MAKE) bench SIZE=real ROOT=$(REAL) RESULTS=results-real

# The editors of the bundled models, trained on the world's training split: where they are bundled, unless EDITORS says otherwise.
EDITORS ?= src/palimpsest/world/bundled/editors
editors: env
	for model in world world-t5; do test -d $(EDITORS)/ke-$$model || \
	  $(BIN)/palimpsest train ke $$model --data world-counterfact --out $(EDITORS)/ke-$$model --resume || exit 1; done
	for model in world world-t5; do for method in mend serac; do test -d $(EDITORS)/$$method-$$model || \
	  $(BIN)/palimpsest train $$method $$model --data world-counterfact --data world-zsre --out $(EDITORS)/$$method-$$model \
	  --resume || exit 1; done; done

gpu: env
	$(BIN)/python -m pytest -m gpu tests/gpu
	$(BIN)/python bench/timing/speed.py --shape gpt-j-6b
	$(BIN)/python bench/timing/speed.py --shape llama-2-7b

lock: env
	{ echo '# Versions that `make env` installs and the tests run with. Regenerate with `make lock`.'; \
	  $(BIN)/pip list --format=freeze | grep -viE '^(pip|setuptools|palimpsest-lm)==' | sed 's/+cpu//' | sort -f; } > constraints.tmp
	mv constraints.tmp constraints.txt

# The two files of a release, checked: both under 25 MB, the wheel installed into an empty environment, the demo run there.
dist: env
	rm -rf dist build/lib build/bdist.*
	$(BIN)/pip install --quiet --disable-pip-version-check build twine
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/package.py dist

# To the index that twine is configured for; it asks for a token, or takes TWINE_USERNAME and TWINE_PASSWORD.
publish: dist
	$(BIN)/python -m twine upload dist/*

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache
