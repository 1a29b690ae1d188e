#!/usr/bin/env bash
# From an empty machine to the page of the papers' tables and figures.
#
#     bash runs/reproduce.sh                  the bundled models: an hour on two cores, 5 GB of disk
#     SIZE=tiny bash runs/reproduce.sh        the same path with two edits each, to see that it works: 5 minutes
#     STAGES="world report" bash runs/reproduce.sh        only these stages, in this order
#     STAGES="pretrained-model pretrained report" DATA=files bash runs/reproduce.sh
#     STAGES="real-models real report" DATA=files bash runs/reproduce.sh
#
# Every stage goes on where it was stopped. Times are of two idle cores of a 2020s server; sizes are what is left on disk.
# What is measured is in bench/recipes/*.toml; what it came to in $OUT, one folder for each recipe, and $OUT/report.html.
set -euo pipefail
cd "$(dirname "$0")/.."

SIZE=${SIZE:-world}                                    # world, or tiny
OUT=${OUT:-results-$SIZE}
WORKERS=${WORKERS:-2}
VENV=${VENV:-.venv}
DATA=${DATA:-}                                         # the published files of CounterFact and ZsRE, where a stage needs them
STAGES=${STAGES:-environment world report}
palimpsest() { "$VENV/bin/palimpsest" "$@"; }
python() { "$VENV/bin/python" "$@"; }

# A recipe, or with SIZE=tiny its first edits: the same units with two edits each and one seed.
bench() {
  local recipe=$1 root=${2:-.} name
  name=$(basename "$recipe" .toml)
  if [ "$SIZE" = tiny ]; then
    mkdir -p "$OUT/.recipes"
    sed -E 's/^( *)?num_edits = [0-9]+/\1num_edits = 2/; s/num_edits = [0-9]+/num_edits = 2/g; s/batch_size = [0-9]{2,}/batch_size = 2/g;
            s/checkpoints = \[[^]]*\]/checkpoints = [1, 2]/; s/^seeds = .*/seeds = [0]/; s/^probes_per_kind = .*/probes_per_kind = 1/' \
      "$recipe" > "$OUT/.recipes/$name.toml"
    recipe=$OUT/.recipes/$name.toml
  fi
  # A unit that fails stops nothing else, and the report says so: exit code 1. Anything else ends the script.
  palimpsest bench "$recipe" --root "$root" --out "$OUT/$name" --resume --workers "$WORKERS" || test $? = 1
}

# 1. The environment: Python 3.11 or newer, torch for the CPU unless a CUDA build is there. 5 minutes, 3 GB.
environment() {
  make env VENV="$VENV"
}

# 2. The bundled models. They come with the package; to make them anew takes 20 minutes each:
#    palimpsest world train --out my-world; `make editors` trains the bundled editors anew, three hours.
#    The papers' tables and figures on them: 279 units, 26 minutes, 200 MB. In tiny: one recipe.
world() {
  local recipes=(bench/recipes/*.world.toml)
  if [ "$SIZE" = tiny ]; then recipes=(bench/recipes/survey-figure-7.world.toml); fi
  for recipe in "${recipes[@]}"; do bench "$recipe"; done
}

# 3. The documentation's longer tables of the bundled models: eight hours on two cores, 1 GB. Not part of the default.
tables() {
  for model in world world-t5; do
    test -d "editors/mend-for-batches-$model" || palimpsest train mend "$model" --data world-counterfact \
      -o edits_together='[1, 10]' -o examples_per_step=40 -o forward_batch_size=40 -o validate_every=50 -o steps=250 \
      --out "editors/mend-for-batches-$model" --resume
  done
  for recipe in bench/recipes/*.tables.toml; do bench "$recipe"; done
}

# 4. What the presets of the bundled models were chosen by: three hours on two cores.
presets() {
  for recipe in bench/recipes/*.presets.toml; do bench "$recipe"; done
}

# 5. Models that are taught real facts, from the published files in $DATA: an hour, 100 MB; then their tables: four hours.
real-models() {
  make real-models VENV="$VENV" DATA="$DATA"
}
real() {
  for recipe in bench/recipes/*.real.toml; do bench "$recipe" real; done
}

# 6. A larger world, for a thousand facts at once: two hours for the model, four for the table.
larger() {
  test -d larger/larger-world || palimpsest world train --people 1600 --out larger/larger-world
  test -f larger/larger-world-facts.jsonl || python runs/facts.py larger --out larger
  bench bench/recipes/many-edits.larger.toml larger
}

# 7. A pretrained model of the hub, 135 million parameters, on the facts that it knows: 270 MB from the hub, then 12 hours on two
#    cores, or one hour on a GPU. $DATA has CounterFact's flat file and its neighbours: `runs/facts.py` says which.
pretrained-model() {
  make pretrained VENV="$VENV" MODELS=smollm2
  python runs/facts.py split --data "$DATA" --out pretrained/counterfact
}
pretrained() {
  for recipe in bench/recipes/*.pretrained.toml; do bench "$recipe" pretrained; done
}

# 8. One page about all of it: tables, figures, every answer, published figures beside ours. A minute, 5 MB.
report() {
  palimpsest report "$OUT"/*/ --out "$OUT/report.html" --overwrite
}

mkdir -p "$OUT"
for stage in $STAGES; do
  start=$(date +%s)
  echo "== $stage"
  "$stage"
  echo "== $stage: $(($(date +%s) - start)) s, $(du -sh "$OUT" | cut -f1) in $OUT"
done
