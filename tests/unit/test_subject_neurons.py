"""Subject neurons: gates at their minimum, exactly silent where they are shut, one value for a subject's facts."""

import pytest
import torch

import palimpsest as ps
import tiny
from palimpsest.errors import ConfigError, DataError
from palimpsest.methods import method
from palimpsest.methods.ordinary import OrdinaryText
from palimpsest.methods.subject_neurons import GateOptions, fitted_gates, quiet
from palimpsest.methods.subject_neurons.gates import least_hinges
from palimpsest.methods.subject_neurons.quiet import as_words
from palimpsest.methods.subject_neurons.state import EditedSubjects
from palimpsest.patches import write_adapter, write_merged

OPTIONS = GateOptions(ridge=0.02, weight=50.0, quiet=0.1)
TOWNS = [
    ps.EditRequest("The capital city of Japan is", "Oslo", subject="Japan"),
    ps.EditRequest("The capital city of Croatia is", "Vienna", subject="Croatia"),
    ps.EditRequest("The capital of France is", "Lyon", subject="France"),
]


def vectors(count, width=12, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(gate, own, others, options):
    """The objective as the module's docstring has it."""
    hinges = (1 - own @ gate).clamp(min=0).square().mean(), (others @ gate - options.quiet).clamp(min=0).square().sum()
    return options.ridge * len(gate) * gate.square().sum() + options.weight * hinges[0] + hinges[1]


@pytest.mark.parametrize("count", [0, 5, 300])
def test_a_gate_is_where_the_objective_has_no_gradient(count):
    own, others = vectors(3) + 1, vectors(count, seed=1)
    gate = least_hinges(own, others, OPTIONS).requires_grad_()
    loss(gate, own, others, OPTIONS).backward()
    # The objective is convex, so this is its minimum; at zero the gradient is of the size of `weight`.
    assert gate.grad.abs().max() < 1e-9 * OPTIONS.weight


def test_the_working_set_gives_what_all_others_give_and_leaves_out_what_is_excluded():
    others, owns = vectors(400, seed=1), [vectors(2, seed=2) + 1, vectors(3, seed=3) - 1]
    excluded = [None, torch.arange(400) % 3 == 0]
    found = fitted_gates(owns, others, excluded, OPTIONS)
    whole = [least_hinges(owns[0], others, OPTIONS), least_hinges(owns[1], others[~excluded[1]], OPTIONS)]
    torch.testing.assert_close(found, torch.stack(whole), rtol=0, atol=1e-9)


def test_two_neurons_open_linearly_and_stay_open():
    model = tiny.tiny_model("llama")
    request = tiny.requests(1)[0]
    gate = {"opens": 0.4, "full": 0.8}
    patch = neurons(gate=gate).edit(model, [request]).patch
    (branch,) = patch.branches
    keys, value = branch.keys[0] * 0.4, branch.values[0]
    bias = branch.biases[0] * 0.4 + 0.4
    toward = keys / keys.square().sum()
    for stands, opened in ((0.2, 0.0), (0.4, 0.0), (0.6, 0.5), (0.8, 1.0), (1.5, 1.0)):
        written = branch.output((stands - bias) * toward)
        torch.testing.assert_close(written, opened * value, rtol=1e-3, atol=1e-4)


def neurons(**options):
    quick = {
        "text": tiny.text_file(),
        "max_tokens": 256,
        "contexts": {"given": []},
        "layer": 1,
        "others": 4,
    }
    return method("subject-neurons", preset="none", **{**quick, "targets": {"steps": 4}, **options})


def test_what_is_read_of_ordinary_text_is_kept_from_process_to_process(monkeypatch, tmp_path):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    model, reads = tiny.tiny_model("llama"), []
    monkeypatch.setattr(quiet.Readings, "of", counted(quiet.Readings.of, reads))
    first = neurons().edit(model, tiny.requests(1)).patch
    in_first = len(reads)
    again = neurons().edit(model, tiny.requests(1)).patch
    assert len(reads) - in_first == in_first - 1
    assert torch.equal(again.branches[0].keys, first.branches[0].keys)
    # Neither for other weights, nor where what was kept is damaged.
    (kept,) = (file for file in tmp_path.rglob("*.safetensors") if "what an MLP reads" in str(file.read_bytes()))
    kept.write_bytes(kept.read_bytes()[:-8])
    for other in (model, tiny.tiny_model("llama", seed=1)):
        reads.clear()
        neurons().edit(other, tiny.requests(1))
        assert len(reads) == in_first


def test_more_text_is_read_where_many_facts_stand_together(monkeypatch):
    model, reads = tiny.tiny_model("llama"), []
    many = [ps.EditRequest(f"The capital of {name} is", "Lyon", subject=name) for name in "ABCDEFGHIJ"]
    monkeypatch.setattr(OrdinaryText, "of", counted(OrdinaryText.of, reads))
    editor = neurons(max_tokens=None, targets={"steps": 1}, alike=0)
    one = editor.edit(model, tiny.requests(1))
    editor.edit(model, many)
    state = one.state
    for _ in range(9):
        state = editor.edit(model, tiny.requests(1), state=state).state
    neurons(max_tokens=300, targets={"steps": 1}).edit(model, tiny.requests(1), state=state)
    # The kept metric is that of the last text.
    assert [asked[3].max_tokens for asked in reads] == [7_500, 16_000, 7_500, 16_000, 300]


def counted(function, calls):
    def call(*arguments, **options):
        calls.append(arguments)
        return function(*arguments, **options)

    return call


@pytest.fixture(scope="module")
def world_model():
    return ps.load("world")


@pytest.fixture(scope="module")
def edited(world_model):
    return method("subject-neurons", text="world").edit(world_model, TOWNS)


def test_facts_hold_and_other_prompts_are_bit_for_bit_what_they_were(world_model, edited):
    others = world_model.batch(
        [world_model.encode("The capital city of Norway is"), world_model.encode("A dog can be")]
    )
    with torch.no_grad():
        before = world_model.forward(others).logits
    with world_model.patched(edited.patch), torch.no_grad():
        assert [world_model.generate(town.prompt).rstrip(".") for town in TOWNS] == ["Oslo", "Vienna", "Lyon"]
        assert world_model.generate("Everyone knows it. The capital city of Japan is").startswith("Oslo")
        after = world_model.forward(others).logits
    assert torch.equal(before, after)


def test_each_fact_comes_off_by_itself(world_model, edited):
    left = edited.patch.without(TOWNS[0].id)
    with world_model.patched(left):
        assert not world_model.generate(TOWNS[0].prompt).startswith("Oslo")
        assert world_model.generate(TOWNS[1].prompt).startswith("Vienna")
    (branch,), (whole,) = left.branches, edited.patch.branches
    assert branch.edits == (TOWNS[1].id, TOWNS[2].id) * 2 and len(whole.edits) == 6


def test_an_adapter_is_refused_with_what_to_do(world_model, edited, tmp_path):
    with pytest.raises(ConfigError, match=r"part of an adapter[\s\S]*--as merged[\s\S]*weights_only=true"):
        write_adapter(world_model, [edited.patch], tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_merged_model_says_the_facts_without_us(world_model, edited, tmp_path):
    write_merged(world_model, [edited.patch], tmp_path / "merged")
    merged = ps.load(str(tmp_path / "merged"))
    assert [merged.generate(town.prompt).rstrip(".") for town in TOWNS] == ["Oslo", "Vienna", "Lyon"]
    others = ["The capital city of Norway is", "The capital of Italy is"]
    assert merged.generate(others) == world_model.generate(others)


def test_facts_about_one_subject_hold_together(world_model):
    about_japan = [
        TOWNS[0],
        ps.EditRequest("The official language of Japan is", "Norwegian", subject="Japan"),
    ]
    patch = method("subject-neurons", text="world").edit(world_model, about_japan).patch
    with world_model.patched(patch):
        said = world_model.generate([one.prompt for one in about_japan])
    assert [text.rstrip(".") for text in said] == ["Oslo", "Norwegian"]


def test_a_sequence_keeps_its_subjects_apart(world_model):
    editor, state = method("subject-neurons", text="world"), None
    patches = []
    for town in TOWNS:
        with world_model.patched(*patches):
            outcome = editor.edit(world_model, [town], state)
        patches.append(outcome.patch)
        state = EditedSubjects.from_tensors(outcome.state.tensors())
    assert state.subjects == tuple(as_words(town.subject) for town in TOWNS)
    with world_model.patched(*patches):
        assert [world_model.generate(town.prompt).rstrip(".") for town in TOWNS] == ["Oslo", "Vienna", "Lyon"]


def test_a_state_of_another_model_and_damaged_tensors_are_refused(world_model, edited):
    with pytest.raises(ConfigError, match="This state is not of this method"):
        neurons().edit(tiny.tiny_model("llama"), tiny.requests(1), edited.state)
    broken = {**edited.state.tensors(), "subject_of": torch.tensor([7])}
    with pytest.raises(DataError, match="subject-neurons"):
        EditedSubjects.from_tensors(broken)
    with pytest.raises(DataError, match="nothing"):
        EditedSubjects.from_tensors({})


@pytest.mark.parametrize(
    ("text", "name", "is_named"),
    [
        ("Paris is France's capital.", "France", True),
        ("They were going home", "Go", False),
        ("東京は日本の首都です", "日本", True),
        ("The Nokia N70 sold well", "nokia n70", True),
        ("Nokia’s phones", "Nokia", True),
    ],
)
def test_a_name_is_found_as_a_whole_in_any_script(text, name, is_named):
    assert (as_words(name) in as_words(text)) is is_named


def test_an_answer_in_chunks_is_refused_before_a_model_is_loaded():
    with pytest.raises(ConfigError, match="one value, at the subject"):
        method("subject-neurons", targets={"chunk": 4})


@pytest.mark.parametrize("gate", [{"opens": 0.9}, {"opens": 0.5, "full": 0.5}, {"quiet": 0.5}])
def test_a_gate_that_could_not_open_is_refused_before_a_model_is_loaded(gate):
    with pytest.raises(ConfigError, match="quiet, opens and full have to rise"):
        method("subject-neurons", gate=gate)


def test_a_text_that_is_not_there_costs_no_search(monkeypatch):
    monkeypatch.setattr("palimpsest.methods.subject_neurons.method.find_target_vectors", None)
    with pytest.raises(DataError, match="There is no text"):
        neurons(text="nowhere.txt").edit(tiny.tiny_model("llama"), tiny.requests(1))
