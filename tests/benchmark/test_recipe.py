"""Recipes are strict, and a plan is every combination they ask for, each under an address of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.workplace import QUICK, build, plan, recipe
from palimpsest import ConfigError, DataError
from palimpsest.benchmark import Plan, Recipe, read_recipe
from palimpsest.benchmark.recipe import label_of

BAD = {
    "a misspelt key": ({"modles": ["world"]}, "did you mean 'models'"),
    "a misspelt key in a table": ({"methods": [{"name": "ft", "option": {}}]}, "did you mean 'options'"),
    "an unknown method": ({"methods": ["memmit"]}, "memit"),
    "an unknown option": ({"methods": [{"name": "ft", "options": {"lerning_rate": 1.0}}]}, "learning_rate"),
    "an unknown data set": ({"datasets": ["counterfacts"]}, "counterfact"),
    "an unknown protocol": ({"protocols": ["singel"]}, "single"),
    "an option of another protocol": ({"protocols": [{"name": "single", "batch_size": 2}]}, "no option 'batch_size'"),
    "no methods": ({"methods": []}, "methods"),
    "a method twice": ({"methods": ["ft", "ft"]}, "by one name"),
    "a restriction to nothing": ({"methods": [{"name": "ft", "models": ["world-t6"]}]}, "missing from the recipe"),
    "an entry that is none": ({"methods": [3]}, "a name or a table"),
    "an unknown measure": ({"measures": ["token-tme"]}, "token-time"),
    "data on no model": (
        {"datasets": [{"name": "jsonl", "path": "facts.jsonl", "label": "facts", "models": ["gpt"]}]},
        "`models` restriction",
    ),
    "an unknown scoring": ({"scorings": ["exactly"]}, "no scoring named"),
    "a misspelt option in a grid": ({"methods": [{"name": "ft", "grid": {"epoch": [1]}}]}, "did you mean 'epochs'"),
    "a misspelt option in a sweep": ({"methods": [{"name": "ft", "sweep": {"epoch": [1]}}]}, "did you mean 'epochs'"),
    "a grid without values": ({"methods": [{"name": "ft", "grid": {"epochs": []}}]}, "at least one value"),
    "a misspelt rule": ({"methods": [{"name": "ft", "grid": {"epochs": [1]}}], "choose": {"b": ["x"]}}, "'by'"),
    "an unknown metric": (
        {"methods": [{"name": "ft", "grid": {"epochs": [1]}, "choose": {"by": ["realiability"]}}]},
        "did you mean 'reliability'",
    ),
    "a rule without a grid": ({"choose": {"by": ["reliability"]}}, "nothing to choose among"),
    "another facts' misspelt field": (
        {
            "datasets": [{"name": "jsonl", "path": "facts.jsonl", "choose_on": {"pth": "others.jsonl"}}],
            "methods": [{"name": "ft", "grid": {"epochs": [1]}}],
        },
        "did you mean 'path'",
    ),
    "options of no row": ({"methods": [{"name": "f-learning-ft", "options_of": {"learn_options": "fft"}}]}, "'fft'"),
    "options of another in an option that is none": (
        {"methods": ["ft", {"name": "f-learning-ft", "options_of": {"lern_options": "ft"}}]},
        "learn_options",
    ),
    "rows that take from each other": (
        {
            "methods": [
                {"name": "f-learning-ft", "label": "a", "options_of": {"learn_options": "b"}},
                {"name": "f-learning-ft", "label": "b", "options_of": {"learn_options": "a"}},
            ]
        },
        "a -> b -> a",
    ),
    "a preparation without a learning rate": ({"models": [{"name": "model", "prepare": {}}]}, "learning_rate"),
    "a row that says it was swept": ({"methods": [{"name": "ft", "swept": {"epochs": 1}}]}, "written by `sweep`"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_a_recipe_says_wrongly_is_named(what):
    changes, message = BAD[what]
    with pytest.raises(ConfigError) as caught:
        recipe(**changes)
    assert message in str(caught.value)


def test_a_misspelt_key_is_named_before_the_one_that_is_missing_for_it():
    with pytest.raises(ConfigError, match="did you mean 'methods'"):
        Recipe.of({"name": "x", "methds": ["ft"]})
    with pytest.raises(ConfigError, match="'models' of the recipe .* is missing"):
        Recipe.of({"name": "x"})


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("models = [")
    with pytest.raises(DataError, match="cannot be read(.|\n)*Invalid value"):
        read_recipe(tmp_path / "broken.toml")


def test_a_plan_is_every_combination_and_restrictions_take_some_out():
    made = Plan.of(
        Recipe.of(
            {
                "name": "all",
                "models": ["world", "world-t5"],
                "datasets": ["world-counterfact", "world-zsre"],
                "methods": ["ft", {"name": "rome", "models": ["world"], "protocols": ["single"]}],
                "protocols": ["single", {"name": "batch", "batch_size": 10}],
                "seeds": [0, 1],
                "num_edits": 10,
            }
        )
    )
    labels = [unit.labels() for unit in made.units]
    assert len(labels) == 2 * 2 * 2 * 2 + 2 * 2
    assert {(one["model"], one["protocol"]) for one in labels if one["method"] == "rome"} == {("world", "single")}
    # Each model stands in one row, so that a worker loads it once.
    models = [one["model"] for one in labels]
    assert models == sorted(models, key=["world", "world-t5"].index)


def test_a_row_may_have_other_options_on_other_data_and_data_their_own_models():
    made = Plan.of(
        Recipe.of(
            {
                "name": "pairs",
                "models": ["a", "b"],
                "datasets": [
                    {"name": "zsre", "path": "z.json", "models": ["a"]},
                    {"name": "counterfact", "path": "c.json", "models": ["b"]},
                ],
                "methods": [
                    {"name": "ft", "datasets": ["zsre"], "options": {"epochs": 1}},
                    {"name": "ft", "datasets": ["counterfact"], "options": {"epochs": 2}},
                ],
            }
        )
    )
    found = [(one.model.name, one.dataset.name, one.method.options["epochs"]) for one in made.units]
    assert found == [("a", "zsre", 1), ("b", "counterfact", 2)]


def test_files_that_options_name_are_found_under_the_root(tmp_path):
    (tmp_path / "text.txt").write_text("A sentence.")
    (tmp_path / "lora").mkdir()
    options = {"text": "text.txt", "layers": [0]}
    row = {"name": "memit", "preset": "none", "options": options}
    unit = plan(tmp_path, methods=[row]).units[0]
    assert unit.method_options() == {"seed": 0, "layers": [0], "text": str(tmp_path / "text.txt")}
    forgetting = {"name": "f-learning", "preset": "none", "options": {"forget": "lora", "learn": "ft"}}
    assert plan(tmp_path, methods=[forgetting]).units[0].method_options()["forget"] == "lora", "a name is no folder"


def test_an_address_is_made_of_what_determines_the_result_and_of_nothing_else(tmp_path):
    def address(**changes):
        return plan(tmp_path, **changes).units[0].address

    row = {"name": "ft", "options": QUICK, "preset": "none"}
    assert address() == address(methods=[{**row, "label": "fine-tuning"}], title="another title", paper=[])
    assert plan(tmp_path / "elsewhere").units[0].address == address()
    others = [
        address(methods=[{**row, "options": {**QUICK, "epochs": 3}}]),
        address(seeds=[1]),
        address(num_edits=2),
        address(max_new_tokens=5),
        address(probes_per_kind=1),
        address(scorings=["generate", "log_prob"]),
        address(protocols=["sequential"]),
        address(models=[{"name": "model", "dtype": "bfloat16"}]),
        *(
            address(datasets=[{"name": "jsonl", "path": "facts.jsonl", "label": "facts", **more}])
            for more in ({"first": 2}, {"skip": 2}, {"known_to_model": True}, {"one_per_subject": True})
        ),
        *(
            address(models=[{"name": "model", "prepare": {"learning_rate": rate, "epochs": epochs}}])
            for rate, epochs in ((0.1, 3), (0.2, 3), (0.2, 1))
        ),
    ]
    assert len({address(), *others}) == 1 + len(others)


def test_other_contents_of_the_files_that_a_unit_reads_are_another_address(tmp_path):
    here, there = (build(folder) for folder in (tmp_path / "here", tmp_path / "there"))
    options = {"text": "text.txt", "layers": [0]}
    row = {"name": "memit", "preset": "none", "options": options}

    def address(folder):
        return plan(folder, methods=[row]).units[0].address

    for folder in (here, there):
        (folder / "text.txt").write_text("a text\n")
    assert address(here) == address(there), "moving files changes nothing"
    found = [address(here)]
    for file in ("text.txt", "facts.jsonl", "model/config.json"):
        with (here / file).open("a") as stream:
            stream.write(" ")
        found.append(address(here))
    (here / "model" / "README.md").write_text("a card")
    assert len(set(found)) == 4
    assert address(here) == found[-1], "what nobody reads changes nothing"


def test_restrictions_that_leave_nothing():
    with pytest.raises(ConfigError, match="leave nothing"):
        Plan.of(
            recipe(
                models=["world", "world-t5"],
                datasets=["world-zsre", "world-counterfact"],
                methods=[{"name": "ft", "protocols": []}],
            )
        )


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "bench" / "recipes").glob("*.toml")), ids=lambda file: file.stem
)
def test_every_recipe_of_the_project_has_a_plan(file):
    made = read_recipe(file)
    assert f"{made.name}.toml" == file.name
    assert len(Plan.of(made).units) >= len(made.methods)
    labels = {label_of(one) for one in (*made.models, *made.datasets, *made.methods)}
    assert {name for one in made.paper for name in (one.model, one.dataset, one.method)} <= labels


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "bench" / "recipes").glob("*.toml")), ids=lambda file: file.stem
)
def test_published_fine_tuning_says_what_it_trains(file):
    """A row with a rate of its own and no preset would get what the defaults train, when those change."""
    for row in read_recipe(file).methods:
        if row.preset != "none":
            continue
        learners = {row.name: {**row.options, **row.grid}} if isinstance(row.grid, dict) else {}
        if row.name.startswith("f-learning"):
            forgets = "lora" if row.name.startswith("f-learning-lora") else "ft"
            learns = "lora" if row.name == "f-learning-lora" else "ft"
            learners = {forgets: row.options.get("forget_options", {}), learns: row.options.get("learn_options", {})}
        for name, options in learners.items():
            if name in ("ft", "locft", "ft-l", "lora") and "learning_rate" in options:
                assert "spare" in options and (name != "ft" or "parameters" in options), (name, options)
