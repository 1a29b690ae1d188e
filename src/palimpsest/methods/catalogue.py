"""All methods by name. Variants of one method are rows that fix some of its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from palimpsest.registry import Registry, Row

if TYPE_CHECKING:
    from palimpsest.methods.base import Method

_FINE_TUNING = "palimpsest.methods.fine_tuning:FineTuning"
_CRISPEDIT = "palimpsest.methods.crispedit:CrispEdit"
_LORA = "palimpsest.methods.lora:Lora"
_KN = "palimpsest.methods.kn:KnowledgeNeurons"
_ROME = "palimpsest.methods.rome:Rome"
_MEMIT = "palimpsest.methods.memit:Memit"
_ALPHAEDIT = "palimpsest.methods.alphaedit:AlphaEdit"
_GRACE = "palimpsest.methods.grace:Grace"
_HOREN = "palimpsest.methods.horen:Horen"
_WISE = "palimpsest.methods.wise:Wise"
_CALINET = "palimpsest.methods.calinet:CaliNet"
_T_PATCHER = "palimpsest.methods.t_patcher:TPatcher"
_ULTRAEDIT = "palimpsest.methods.ultraedit:UltraEdit"
_SUBJECT_NEURONS = "palimpsest.methods.subject_neurons:SubjectNeurons"
_MEND = "palimpsest.methods.mend:Mend"
_KE = "palimpsest.methods.ke:KnowledgeEditor"
_SERAC = "palimpsest.methods.serac:Serac"
_IKE = "palimpsest.methods.ike:Ike"
_UNLEARN = "palimpsest.methods.unlearning:Unlearn"
_F_LEARNING = "palimpsest.methods.f_learning:FLearning"
# The rates are the paper's for LLaMA2-7B on zsRE (section 5.1); presets choose others.
# The search that measures best; presets have the published one. See docs/methods/memit.md.
_SEARCH = {"targets": {"search": "gauss-newton"}, "search_in": "prompt"}
# Of a scale that no model decides, and ended as soon as the answers hold; presets have published numbers. See
# docs/defaults.md.
_GENTLE = {"step": 4e-3, "growth": 1.25, "epochs": 50, "stop_margin": 0.3, "spare": True}

METHODS = Registry(
    "method",
    "palimpsest.methods",
    {
        "auto": Row(
            "palimpsest.methods.auto.method:Auto",
            "no method to choose: edits, tests every fact, goes further where one does not hold",
            source="ours; see docs/methods/auto.md",
        ),
        "ft": Row(
            _FINE_TUNING,
            "fine-tuning of the MLP down-projections of some layers, or of all weights, on the new answers",
            options={**_GENTLE, "spare_alike": 0.5, "parameters": "mlp.down", "layers": "early", "rank": 8},
            source="arXiv:2311.08011, 2305.13172",
        ),
        "ft-l": Row(
            _FINE_TUNING,
            "fine-tuning of one MLP down-projection inside an L-infinity ball",
            options={**_GENTLE, "step": 1e-2, "parameters": "mlp.down", "layers": "lower", "constraint": "linf"},
            source="arXiv:2012.00363, 2202.05262",
        ),
        "locft": Row(
            _FINE_TUNING,
            "mini-batch fine-tuning of one MLP down-projection, end of sequence appended",
            options={
                **_GENTLE,
                "step": 1e-2,
                "parameters": "mlp.down",
                "layers": "lower",
                "append_eos": True,
                "facts_per_step": 100,
                "rank": 8,
            },
            source="arXiv:2509.22072",
        ),
        "crispedit": Row(
            _CRISPEDIT,
            "fine-tuning in the directions along which a text's loss hardly curves, made for many facts",
            options={**_GENTLE, "parameters": "mlp.down", "layers": "early"},
            source="arXiv:2602.15823",
        ),
        "lora": Row(
            _LORA,
            "low-rank adapters on MLP down-projections, or on whatever projections are named",
            options={
                **_GENTLE,
                "step": 5e-4,
                "spare_alike": 0.5,
                "rank": 20,
                "alpha": 40.0,
                "sites": "mlp",
                "layers": "early",
            },
            source="arXiv:2106.09685",
        ),
        "kn": Row(
            _KN,
            "knowledge neurons: the neurons behind the old answer get new columns",
            source="arXiv:2104.08696",
        ),
        "t-patcher": Row(
            _T_PATCHER,
            "one neuron in the last MLP for every wrong token, silent on ordinary text",
            source="arXiv:2301.09785",
        ),
        "grace": Row(
            _GRACE,
            "a codebook beside one layer: values for prompts that are close to an edited one",
            source="arXiv:2211.11031",
        ),
        "horen": Row(
            _HOREN,
            "a codebook of directions beside one layer, made for long sequences, each entry removable",
            source="arXiv:2605.08143",
        ),
        "subject-neurons": Row(
            _SUBJECT_NEURONS,
            "a value beside one MLP for each fact, behind a gate that opens at its subject only; for many facts",
            # Behind a gate a farther aim costs no neighbours.
            options={"targets": {"search": "gauss-newton", "log_odds": 6.0, "stop_loss": 0.01}},
            source="ours; see docs/methods/subject-neurons.md",
        ),
        "wise": Row(
            _WISE,
            "a side memory beside one layer's MLP, for the prompts that it is routed to",
            source="arXiv:2405.14768",
        ),
        "calinet": Row(
            _CALINET,
            "a few slots beside the last MLP, trained on many facts in several phrasings",
            source="arXiv:2210.03329",
        ),
        "rome": Row(
            _ROME,
            "one layer's MLP is given one new value, by a change of rank one",
            options=_SEARCH,
            source="arXiv:2202.05262",
        ),
        "r-rome": Row(
            _ROME,
            "ROME with one and the same key throughout, which cannot collapse",
            options={**_SEARCH, "keys": "mean"},
            source="arXiv:2403.07175",
        ),
        "memit": Row(
            _MEMIT,
            "many facts at once in several layers' MLPs, by least squares",
            options=_SEARCH,
            source="arXiv:2210.07229",
        ),
        "emmet": Row(
            _MEMIT,
            "many facts at once in one layer's MLP, every value exact: ROME for batches",
            options={**_SEARCH, "num_layers": 1, "exact_for_one": True},
            source="arXiv:2403.14236",
        ),
        "pmet": Row(
            _MEMIT,
            "MEMIT with vectors for MLP and attention found together, of which the MLP's is kept",
            options={
                **_SEARCH,
                # Twice as far: about half of what is found lies in the attention's vector, which is dropped.
                "targets": {"search": "gauss-newton", "log_odds": 8.0, "stop_loss": 0.001},
                "site": "mlp.down",
                "companions": ["attn.out"],
                "share": "square-root",
            },
            source="arXiv:2308.08742",
        ),
        "alphaedit": Row(
            _ALPHAEDIT,
            "MEMIT inside the null space of what a text's keys span, made for sequences",
            options=_SEARCH,
            source="arXiv:2410.02355",
        ),
        "ultraedit": Row(
            _ULTRAEDIT,
            "one gradient pass and a ridge solve, without a subject or a text's keys; statistics carried on",
            source="arXiv:2505.14679",
        ),
        "stableedit": Row(
            _ULTRAEDIT,
            "UltraEdit with whitened gradients",
            options={"normaliser": "shrunk"},
            source="arXiv:2605.11836",
        ),
        "mend": Row(
            _MEND,
            "a trained network turns the new answer's gradient into an edit of low rank",
            source="arXiv:2110.11309",
        ),
        "ke": Row(
            _KE,
            "a trained network reads old and new answer and gates the gradient, under a constraint",
            source="arXiv:2104.08164",
        ),
        "serac": Row(
            _SERAC,
            "edits in a memory; a trained classifier sends what is in their scope to a small model that reads them",
            source="arXiv:2206.06520",
        ),
        "ike": Row(
            _IKE,
            "the edit, behind examples of edits, is put before every prompt; no weight changes",
            source="arXiv:2305.12740",
        ),
        "f-learning-ft": Row(
            _F_LEARNING,
            "forget by full fine-tuning, then learn by full fine-tuning",
            options={"forget": "ft", "learn": "ft", "rate": 0.3},
            source="arXiv:2311.08011",
        ),
        "f-learning-lora": Row(
            _F_LEARNING,
            "forget by LoRA, then learn by LoRA",
            options={"forget": "lora", "learn": "lora", "rate": 0.7},
            source="arXiv:2311.08011",
        ),
        "f-learning-lora-ft": Row(
            _F_LEARNING,
            "forget by LoRA, then learn by full fine-tuning",
            options={"forget": "lora", "learn": "ft", "rate": 3.0},
            source="arXiv:2311.08011",
        ),
        "f-learning": Row(_F_LEARNING, "forget by one weight method, then learn by another", source="arXiv:2311.08011"),
    },
)


# What is forgotten has to go within a few passes, and what is to stay is held from the first one on.
_AWAY = {"step": 4e-3, "growth": 1.25, "epochs": 20, "spare": True, "keep_weight": 1.0}

FORGETTERS = Registry(
    "forgetter",
    "palimpsest.forgetters",
    {
        "grad-diff": Row(
            _UNLEARN,
            "gradient ascent on the old answers, with a weight on what is to stay",
            options={**_AWAY, "loss": "ascent"},
            source="arXiv:2203.12817",
        ),
        "npo": Row(
            _UNLEARN,
            "negative preference: ascent that ends as the old answers become rarer than they were",
            options={**_AWAY, "loss": "npo", "sharpness": 0.1},
            source="arXiv:2404.05868",
        ),
        "simnpo": Row(
            _UNLEARN,
            "the same per token, without the model as it was",
            options={**_AWAY, "loss": "simnpo", "sharpness": 4.5},
            source="arXiv:2410.07163",
        ),
        "undial": Row(
            _UNLEARN,
            "towards what the model says with the old answers' logits lowered",
            options={**_AWAY, "loss": "undial", "sharpness": 10.0},
            source="arXiv:2402.10052",
        ),
        "rmu": Row(
            _UNLEARN,
            "what a layer hands on before the old answers is drawn to a random vector",
            options={**_AWAY, "loss": "rmu"},
            source="arXiv:2403.03218",
        ),
    },
)
"""What F-Learning can forget by, beside the methods whose change towards the old answers it subtracts."""


def forgetter(name: str, **options: Any) -> Method[Any]:
    """A learner that forgets, by name; what it is given as the new answer is what it forgets.

    Raises `ConfigError`, with near matches, for an unknown name or option.
    """
    row = FORGETTERS[name]
    made: Method[Any] = row.load()(name, options, preset="none", variant=row.options)
    return made


def method(name: str, *, preset: str = "auto", **options: Any) -> Method[Any]:
    """A method by name, with options that differ from its preset.

    Arguments:
        name: see `palimpsest list methods`.
        preset: name of a preset, `"auto"` for the one that fits the model it will be used on, or `"none"`.
        options: see the method's page.

    Raises `ConfigError`, with near matches, for an unknown name or option.
    """
    row = METHODS[name]
    made: Method[Any] = row.load()(name, options, preset=preset, variant=row.options)
    return made
