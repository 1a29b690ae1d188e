"""What others make and the command line reads: models, adapters, GGUF files, tables, data sets, texts, answers.

And a command's own words, which are damaged like a file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import BertConfig, BertModel

import tiny
import tiny_gguf
from robustness.commands import Kind

if TYPE_CHECKING:
    from robustness.workshop import Workshop

PROMPT = "The capital of France is"
HOSTILE = "raise SystemExit('code of a model folder ran')\n"
ZSRE = {
    "subject": "France", "src": "What is the capital of France?", "pred": "Rome",
    "rephrase": "France has which capital?",
    "alt": "Lyon", "answers": ["Paris"], "loc": "nq question: how many legs has a spider", "loc_ans": "eight",
    "cond": "Paris >> Lyon || What is the capital of France?",
    "portability": {"New Question": "Which river flows through the capital of France?", "New Answer": "the Rhine"},
}  # fmt: skip
REWRITE = {
    "prompt": "The capital of {} is", "relation_id": "P36", "target_new": {"str": "Lyon", "id": "Q1"},
    "target_true": {"str": "Paris", "id": "Q2"}, "subject": "France",
}  # fmt: skip
COUNTERFACT = {
    "case_id": 7, "pararel_idx": 1, "requested_rewrite": REWRITE, "paraphrase_prompts": ["France has the capital"],
    "neighborhood_prompts": ["The capital of Italy is"], "attribute_prompts": ["Lyon is in"],
    "generation_prompts": ["In"],
}  # fmt: skip
MQUAKE = {
    "case_id": 3, "requested_rewrite": [{**REWRITE, "question": "What is the capital of France?"}],
    "questions": ["Which river flows through the capital of France?"], "answer": "the Danube", "answer_alias": [],
    "new_answer": "the Rhine", "new_answer_alias": ["Rhine"],
    "new_single_hops": [{"question": "What is the capital of France?", "cloze": PROMPT, "answer": "Lyon"},
                        {"question": "Which river?", "cloze": "The river of Lyon is", "answer": "the Rhine"}],
}  # fmt: skip
KNOWEDIT = {
    "subject": "France", "prompt": PROMPT, "target_new": "Lyon", "ground_truth": "Paris", "rephrase_prompt": "France:",
    "portability": {"Reasoning": [{"prompt": "The river of the capital of France is", "ground_truth": [["the Rhine"]]}],
                    "Subject_Aliasing": [{"prompt": "The capital of la France is", "ground_truth": ["Lyon"]}]},
    "locality": {"Relation_Specificity": [{"prompt": "The river of France is", "ground_truth": [["the Rhine",
    "Rhine"]]}]},
}  # fmt: skip
RIPPLE = {
    "example_type": "popular",
    "edit": {"prompt": "The capital of France is Lyon.", "subject_id": "Q142", "relation": "CAPITAL",
    "target_id": "Q456",
             "original_fact": {"prompt": "The capital of France is Paris.", "target_id": "Q90"}},
    "Subject_Aliasing": [{"test_queries": [{"prompt": "The capital of la France is", "phrase": None, "answers":
                          [{"value": "Lyon", "aliases": ["Lyons"]}]}], "test_condition": "OR",
                          "condition_queries": []}],
    "Logical_Generalization": [{"test_queries": [{"prompt": "Lyon is the capital of", "answers": [{"value": "France",
                                "aliases": []}]}], "test_condition": "OR", "condition_queries": []}],
}  # fmt: skip
UNKE = {
    "id": 5, "question": "What is the capital of France?", "answer": "Lyon is, since 1950. It lies on the Rhone.",
    "para_question": "France has which capital?", "sub_question": ["Since when?", "On what does it lie?"],
    "sub_answer": ["1950", "the Rhone"],
}  # fmt: skip
AKEW = {
    "case_id": 6, "paraphrase_prompts": ["France has the capital"], "neighborhood_prompts": ["The capital of Italy is"],
    "requested_rewrite": {
        **REWRITE, "question": "What is the capital of France?", "prompt_full": PROMPT, "answer_new": ["Lyon"],
        "fact_new_uns": "Lyon is the capital of France. It lies on the Rhone.", "answer_new_alias": ["Lyons"],
        "unsfact_triplets_GPT": [{"prompt": "{} lies on", "subject": "Lyon", "target": "the Rhone"}]},
}  # fmt: skip
EASYEDIT = {
    "prompt": PROMPT, "subject": "France", "target_new": "Lyon", "ground_truth": "Paris", "rephrase_prompt": "France:",
    "locality": {"neighbour": {"prompt": "The capital of Italy is", "ground_truth": "Rome"}},
    "portability": {"one_hop": {"prompt": "The river of the capital of France is", "ground_truth": "the Rhine"}},
}  # fmt: skip
OWN = {
    "prompt": "The capital of {} is", "subject": "France", "target_new": "Lyon", "target_old": ["Paris", "Paname"],
    "rephrase": ["France has the capital", "{} has which capital?"], "accepts": ["Lyons"], "accepts_old": [], "id": 5,
    "locality": ["The capital of Italy is"], "locality_answer": "Rome", "joiner": "space", "fact": "France|capital",
    "probes": [{"kind": "portability.one_hop", "prompt": "The river of the capital of France is",
    "expected": "the Rhine"}],
}  # fmt: skip
CELLS = (
    "prompt,subject,target_new,target_old,rephrase_1,locality_1,notes\n"
    'The capital of France is,France,Lyon,Paris,"France, as we know, has the capital",The capital of Italy is,'
    '"a ""b"""\n'
    "The capital of Italy is,Italy,Milan,Rome,Italy has the capital,,\n"
    "Anna Keller was born in,Anna Keller,Lima,Oslo,,The capital of France is,x\n"
)
TRIPLES = (
    "subjectLabel,relationLabel,objectLabel,aliases,recall\n"
    "Lyon,river,the Rhone,Rhone|Rhône,The river that flows through {} is\n"
    "Lyon,mayor,Anna Keller,,\nMilan,river,none,,\n"
)
ANSWER = {"items": [{"relation": "river", "answer": "the Rhone", "aliases": ["Rhone"], "recall": "The river of Lyon is",
                     "question": "The river of the capital of France is"}]}  # fmt: skip
REPLY = {"id": "x", "object": "chat.completion", "usage": {"prompt_tokens": 5, "completion_tokens": 1},
         "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant",
         "content": "CONTENT"}}]}  # fmt: skip
CHEAP = ("model", "gguf", "map", "words")
"""What takes no time to make and little to read."""
FT = ("--method", "ft", "--preset", "none", "-o", "epochs=1")


def add(shop: Workshop, is_wanted: Callable[..., bool]) -> None:
    """Adds these kinds to a workshop."""
    for names, make in {
        ("model",): _models,
        ("adapter",): _adapter,
        ("gguf", "written", "patch"): _gguf,
        ("edits",): _edits,
        ("dataset",): _datasets,
        ("map",): _device_map,
        ("text", "corpus", "encoder"): _texts,
        ("moments",): _moments,
        ("triples", "build", "answers", "endpoint"): _portability,
        ("record",): _record,
        ("judge", "endpoint"): _judging,
        ("words",): _words,
    }.items():
        if is_wanted(*names):
            make(shop)


def _kind(shop: Workshop, name: str, source: Any, *commands: tuple[Any, ...], **more: Any) -> None:
    shop.kinds[name] = Kind(source, tuple(tuple(map(str, one)) for one in commands), **more)


def _models(shop: Workshop) -> None:
    made = {
        "gptj": tiny.tiny_folder(shop.place / "model-gptj"),
        "chat": tiny.tiny_folder(shop.place / "model-chat", "llama", chat="llama-3"),
        "gemma": tiny.tiny_folder(shop.place / "model-gemma", "gemma3_text"),
        "t5": tiny.tiny_folder(shop.place / "model-t5", "t5"),
        "experts": tiny.tiny_folder(shop.place / "model-experts", "qwen3_moe"),
    }
    module = tiny.tiny_module("gpt2")
    made["sharded"] = shop.place / "model-sharded"
    module.save_pretrained(made["sharded"], max_shard_size="50KB")
    tiny.tokenizer().save_pretrained(made["sharded"])
    for name, folder in made.items():
        # What a hostile folder would bring along; nothing of it may run or be opened.
        (folder / "evil.py").write_text(HOSTILE)
        (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch RAN'\ntR.")
        chat = ("--chat",) if name == "chat" else ()
        editing = ("edit", "IT", *FT, "--edits", shop.facts, "--out", "OUT", *chat)
        reading = [("ask", "IT", PROMPT, "--max-new-tokens", 3, *chat), editing, ("doctor", "IT", "--json")]
        reading += [("ask", "IT", PROMPT, "--as-configured", "--max-new-tokens", 3)]
        _kind(shop, f"model {name}", folder, *reading)


def _adapter(shop: Workshop) -> None:
    shop.made("apply", shop.model, shop.place / "patch-lora", "--as", "peft", "--out", shop.place / "adapter")
    reading = (("ask", "IT", PROMPT, "--max-new-tokens", 3), ("doctor", "IT"), ("push", "IT", "me/it", "--dry-run"))
    _kind(shop, "adapter", shop.place / "adapter", *reading)


def _gguf(shop: Workshop) -> None:
    file = shop.place / "tiny.gguf"
    tiny_gguf.write_gguf(file)
    patch = shop.place / "patch-gguf"
    shop.made("edit", file, *FT, "-o", "layers=[1]", "--edits", shop.facts, "--out", patch)
    write, undo = ("apply", "--out", "OUT", "--as", "gguf"), ("undo", "IT/edited.gguf", "--out", "OUT")
    reading = [("ask", "IT", PROMPT, "--max-new-tokens", 3), ("doctor", "IT"), (*write, "IT", patch)]
    _kind(shop, "gguf", file, *reading, ("undo", "IT", "--out", "OUT"))
    (shop.place / "written").mkdir()
    shop.made("apply", file, patch, "--as", "gguf", "--out", shop.place / "written" / "edited.gguf")
    reading = [undo, undo, (*undo, "--from", "IT/edited.undo"), ("ask", "IT/edited.gguf", PROMPT)]
    _kind(shop, "written", shop.place / "written", *reading, (*write, "IT/edited.gguf", patch, "--keep-type"))
    reading = [(*write, file, "IT"), ("apply", "--out", "OUT", "--as", "gguf-adapter", file, "IT")]
    _kind(shop, "patch gguf", patch, *reading, (*write, "--keep-type", file, "IT"))
    adapter = shop.place / "adapter.gguf"
    shop.made("apply", file, patch, "--as", "gguf-adapter", "--out", adapter)
    reading = [("ask", "IT", PROMPT), ("doctor", "IT"), ("undo", "IT", "--out", "OUT"), (*write, "IT", patch)]
    _kind(shop, "gguf adapter", adapter, *reading)


def _edits(shop: Workshop) -> None:
    """Files of edits in every layout, read by every method."""
    rows = [
        OWN,
        EASYEDIT,
        {**OWN, "prompt": "The capital of {} is", "subject": "Italy", "target_new": "Milan", "id": 6},
    ]
    commands = [tuple(shop.edit(method, "OUT", edits="IT")) for method in
                ("ft", "lora", "memit", "grace", "kn", "calinet", "t-patcher", "ike", "wise", "f-learning-lora-ft",
                "auto")]  # fmt: skip
    rome = ["edit", shop.model, "--method", "rome", "--preset", "none", "--edits", "IT", "--out", "OUT"]
    commands += [(*rome, *shop.edit("memit", "")[-10:]), shop.evaluation("IT"), ("assess", shop.model, "--facts", "IT")]
    commands += [shop.evaluation("IT", "--protocol", "sequential", "--with-distracting", "--with-out-of-scope")]
    commands += [("train", "mend", shop.model, "--data", "IT", "--out", "OUT", "-o", "steps=1", "-o", "rank=2")]
    commands += [("trace", shop.model, "--facts", "IT", "--num", 1), shop.evaluation("IT", "--skip-bad", "-n", 1)]
    for ending, content in {
        ".json": json.dumps(rows, indent=1),
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        ".csv": CELLS,
        ".tsv": CELLS.replace("France, as we know,", "France").replace(",", "\t"),
    }.items():
        file = shop.place / f"more{ending}"
        file.write_text(content)
        _kind(shop, f"edits {ending[1:]}", file, *commands)


def _datasets(shop: Workshop) -> None:
    published = {
        "zsre": ZSRE,
        "counterfact": COUNTERFACT,
        "mquake": MQUAKE,
        "knowedit": KNOWEDIT,
        "ripple-edits": RIPPLE,
        "unke": UNKE,
        "akew": AKEW,
    }
    for name, record in published.items():
        file = shop.place / f"{name}.json"
        file.write_text(json.dumps([record, {**record, "case_id": 8}]))
        reading = (shop.evaluation(name, "--data", "IT"), shop.evaluation("IT"))
        reading += (("train", "mend", shop.model, "--data", "IT", "--out", "OUT", "-o", "steps=1"),)
        _kind(shop, f"dataset {name}", file, *reading)


def _device_map(shop: Workshop) -> None:
    file = shop.place / "map.json"
    file.write_text(json.dumps({"transformer.wte": "cpu", "transformer.h.0": "cpu", "transformer.h": "cpu", "": "cpu"}))
    _kind(shop, "map", file, ("ask", shop.model, PROMPT, "--max-new-tokens", 2, "--device-map", "IT"))


def _texts(shop: Workshop) -> None:
    import polars

    lines, place = tiny.text_lines(60), shop.place
    (place / "text.txt").write_text("\n".join(lines))
    (place / "text.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in lines))
    polars.DataFrame({"text": lines}).write_parquet(place / "text.parquet")
    command = ("stats", shop.model, "--text", "IT", "--layers", 1, "--max-tokens", 200, "--cache", "OUT")
    for ending in ("txt", "jsonl", "parquet"):
        _kind(shop, f"text {ending}", place / f"text.{ending}", command)
    corpus = shutil.copy(tiny.corpus_file(), place / "corpus.jsonl")
    given = ["edit", shop.model, "--method", "ike", "--preset", "none", "--edits", shop.facts, "--out", "OUT"]
    _kind(shop, "corpus", place / corpus, (*given, "-o", "corpus=IT", "-o", "encoder=ngrams"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=384, max_position_embeddings=64, **sizes)).save_pretrained(place / "encoder")
    tiny.tokenizer().save_pretrained(place / "encoder")
    _kind(shop, "encoder", place / "encoder", (*given, "-o", f"corpus={tiny.corpus_file()}", "-o", "encoder=IT"))


def _moments(shop: Workshop) -> None:
    folder = shop.place / "moments"
    folder.mkdir()
    keys = np.random.default_rng(0).normal(size=(400, 128))
    file = folder / "transformer.h.1.mlp.fc_out_float32_mom2_100000.npz"
    np.savez(file, **{"mom2.mom2": (keys.T @ keys).astype("float32"), "mom2.count": np.array(400)})
    _kind(shop, "moments", folder, ("stats", shop.model, "--text", "IT", "--layers", 1, "--cache", "OUT"))


def _portability(shop: Workshop) -> None:
    place = shop.place
    (place / "triples.csv").write_text(TRIPLES)
    table = ("portability", "build", shop.facts, "--model", shop.model, "--generator")
    building = (*table, place / "triples.csv", "--out")
    shop.made(*building, place / "build")
    _kind(shop, "triples", place / "triples.csv", (*table, "IT", "--out", "OUT"))
    reading = (shop.evaluation("IT"), (*building, "IT", "--resume"))
    _kind(shop, "build", place / "build", *reading, is_changed=True)
    asking = (*table, "URL", "--generator-model", "m", "--retries", 0, "--timeout", 5, "--out", "OUT")
    (place / "reply.json").write_text(json.dumps(_replying(json.dumps(ANSWER))))
    _kind(shop, "endpoint of questions", place / "reply.json", asking)


def _record(shop: Workshop) -> None:
    verified = shop.made("verify", shop.model, shop.place / "patch-ft", "--json").out
    (shop.place / "verified.json").write_text(verified)
    command = ("push", shop.place / "patch-ft", "me/it", "--dry-run", "--record", "IT")
    _kind(shop, "record", shop.place / "verified.json", command)
    if (shop.place / "run-single").exists():
        _kind(shop, "record run", shop.place / "run-single", command)


def _judging(shop: Workshop) -> None:
    judging = ("judge", shop.place / "run-single", "--endpoint", "URL", "--endpoint-model", "m", "--retries", 0)
    (shop.place / "verdict.json").write_text(json.dumps(_replying("correct")))
    _kind(shop, "endpoint of verdicts", shop.place / "verdict.json", (*judging, "--timeout", 5, "--out", "OUT"))
    dry = ("judge", "IT", "--endpoint", "http://localhost:1/v1", "--endpoint-model", "m", "--dry-run")
    _kind(shop, "judge", shop.place / "run-single", dry)


def _replying(content: str) -> Any:
    return json.loads(json.dumps(REPLY).replace('"CONTENT"', json.dumps(content)))


def _words(shop: Workshop) -> None:
    """Commands whose own words are damaged."""
    model, facts = shop.model, shop.facts
    commands = [
        ("ask", model, PROMPT, "--max-new-tokens", 2, "--seed", 1, "--dtype", "float32", "--device", "cpu"),
        ("edit", model, *FT, "--edits", facts, "--out", "OUT", "--seed", 3, "-o", "layers=[1]", "-o", "batch_size=2"),
        ("edit", model, *FT, "--prompt", PROMPT, "--subject", "France", "--target-new", "Lyon", "--out", "OUT"),
        ("edit", model, "--edits", facts, "--out", "OUT", "--keep", 0.9, "--max-seconds", 2),
        tuple(shop.edit("memit", "OUT")),
        (
            *shop.evaluation(facts, "--num-edits", 2),
            "--protocol",
            "sequential",
            "--checkpoints",
            "1,2",
            "--batch-size",
            1,
        ),
        (
            "train",
            "mend",
            model,
            "--data",
            shop.teaching,
            "--out",
            "OUT",
            "-o",
            "steps=1",
            "-o",
            "rank=2",
            "--limit",
            10,
        ),
        ("stats", model, "--text", tiny.text_file(), "--layers", "1", "--max-tokens", 99, "--cache", "OUT"),
        ("trace", model, "--prompt", PROMPT, "--subject", "France", "--out", "OUT"),
        ("bench", shop.recipe, "--root", shop.place, "--out", "OUT", "--dry-run"),
        ("portability", "build", facts, "--model", model, "--generator", shop.place / "tiny.toml", "--out", "OUT"),
        ("assess", model, "--facts", facts, "--json"),
        ("doctor", model, "--json"),
        ("list", "methods", "--json"),
        ("world", "export", "--out", "OUT", "--people", 50, "--seed", 1),
        ("report", shop.place, "--out", "OUT", "--tables", "OUT"),
    ]
    _kind(shop, "words", None, *commands)
