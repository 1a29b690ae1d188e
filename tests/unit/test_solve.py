"""The solves against direct dense float64 solves, against their own optimality conditions, and against each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.errors import ConfigError, DataError
from palimpsest.solve.factorised import Factorised
from palimpsest.solve.least_squares import equality_constrained, ridge
from palimpsest.solve.null_space import EarlierKeys, null_space_projected
from palimpsest.solve.rank_one import rank_one

WIDTH, OUT = 12, 7


def problem(n=4, *, width=WIDTH, out=OUT, seed=0):
    """C (width, width) with condition of some hundreds, keys (n, width), residuals (n, out)."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(6 * width, width, generator=generator, dtype=torch.float64)
    text = text * torch.logspace(-1, 1, width, dtype=torch.float64)
    keys = torch.randn(n, width, generator=generator, dtype=torch.float64)
    return text.T @ text / len(text), keys, torch.randn(n, out, generator=generator, dtype=torch.float64)


def memit(moment, keys, residuals, strength, weights=None):
    """MEMIT's equation with an explicit inverse, as its code solves it."""
    weights = torch.ones(len(keys), dtype=torch.float64) if weights is None else weights
    weighted = keys.T * weights
    return residuals.T @ weighted.T @ torch.linalg.inv(strength * moment + weighted @ keys)


problems = st.builds(problem, n=st.integers(1, 8), seed=st.integers(0, 10_000))
strengths = st.floats(1e-2, 1e5)


@settings(max_examples=40, deadline=None)
@given(problems, strengths)
def test_ridge_solves_the_normal_equations(given_problem, strength):
    moment, keys, residuals = given_problem
    found = ridge(Factorised(moment), keys, residuals, strength=strength)
    torch.testing.assert_close(found.dense(), memit(moment, keys, residuals, strength), rtol=1e-8, atol=1e-12)
    target = residuals.T @ keys
    left = found.dense() @ (strength * moment + keys.T @ keys)
    assert (left - target).norm() <= 1e-8 * target.norm()
    assert found.rank == len(keys)
    torch.testing.assert_close(found.remaining_norms, (residuals - keys @ found.dense().T).norm(dim=1))


@settings(max_examples=40, deadline=None)
@given(problems, strengths)
def test_ridge_is_emmet_with_that_ridge(given_problem, strength):
    moment, keys, residuals = given_problem
    by_memit = ridge(Factorised(moment), keys, residuals, strength=strength)
    by_emmet = equality_constrained(Factorised(moment), keys, residuals, ridge=strength)
    torch.testing.assert_close(by_memit.dense(), by_emmet.dense(), rtol=1e-10, atol=1e-14)


def test_emmet_on_a_scaled_moment_is_memit_with_the_product():
    moment, keys, residuals = problem()
    by_emmet = equality_constrained(Factorised(1000 * moment), keys, residuals, ridge=0.1)
    torch.testing.assert_close(by_emmet.dense(), memit(moment, keys, residuals, 100.0), rtol=1e-9, atol=1e-13)


def test_more_keys_than_dimensions_give_the_same_equation():
    moment, keys, residuals = problem(n=3 * WIDTH)
    found = ridge(Factorised(moment), keys, residuals, strength=3.0)
    torch.testing.assert_close(found.dense(), memit(moment, keys, residuals, 3.0), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("n", [4, 3 * WIDTH])
def test_weights_are_repeated_keys(n):
    moment, keys, residuals = problem(n=n)
    weights = torch.tensor([1.0, 3.0] * (n // 2), dtype=torch.float64)
    found = ridge(Factorised(moment), keys, residuals, strength=2.0, weights=weights)
    repeats = weights.long()
    repeated = memit(moment, keys.repeat_interleave(repeats, 0), residuals.repeat_interleave(repeats, 0), 2.0)
    torch.testing.assert_close(found.dense(), repeated, rtol=1e-8, atol=1e-12)


def test_a_fact_given_twice_counts_twice():
    moment, keys, residuals = problem(n=1)
    twice = ridge(Factorised(moment), keys.repeat(2, 1), residuals.repeat(2, 1), strength=2.0)
    torch.testing.assert_close(twice.dense(), memit(moment, keys, residuals, 1.0), rtol=1e-8, atol=1e-12)


def test_the_order_of_facts_does_not_matter():
    moment, keys, residuals = problem(n=5)
    order = torch.tensor([3, 0, 4, 1, 2])
    for solve in (
        lambda k, r: ridge(Factorised(moment), k, r, strength=5.0),
        lambda k, r: equality_constrained(Factorised(moment), k, r),
    ):
        torch.testing.assert_close(
            solve(keys, residuals).dense(), solve(keys[order], residuals[order]).dense(), rtol=1e-9, atol=1e-12
        )


def test_ridge_goes_from_exact_to_nothing():
    moment, keys, residuals = problem()
    weak = ridge(Factorised(moment), keys, residuals, strength=1e-9)
    assert float(weak.remaining_norms.max()) < 1e-7
    strong, stronger = (ridge(Factorised(moment), keys, residuals, strength=s).norm() for s in (1e8, 1e9))
    assert strong / stronger == pytest.approx(10, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(problems, st.integers(0, 1000))
def test_equality_is_exact_and_smallest(given_problem, seed):
    moment, keys, residuals = given_problem
    found = equality_constrained(Factorised(moment), keys, residuals)
    change = found.dense()
    torch.testing.assert_close(keys @ change.T, residuals, rtol=1e-7, atol=1e-8)
    # Any other change that fits differs by one that leaves the keys alone, and costs more.
    other = torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    other = other - other @ torch.linalg.pinv(keys) @ keys
    assert torch.trace((change + other) @ moment @ (change + other).T) >= torch.trace(change @ moment @ change.T)
    # KKT: Delta C lies in the span of the keys.
    pulled = change @ moment
    torch.testing.assert_close(pulled @ torch.linalg.pinv(keys) @ keys, pulled, rtol=1e-7, atol=1e-8)


def test_equality_does_not_see_the_scale_of_c():
    moment, keys, residuals = problem()
    once = equality_constrained(Factorised(moment), keys, residuals).dense()
    torch.testing.assert_close(
        equality_constrained(Factorised(7e4 * moment), keys, residuals).dense(), once, rtol=1e-9, atol=1e-12
    )


def test_one_fact_is_r_rome():
    moment, keys, residuals = problem(n=1)
    by_rome = rank_one(Factorised(moment), keys[0], residuals[0])
    by_emmet = equality_constrained(Factorised(moment), keys, residuals)
    torch.testing.assert_close(by_rome.dense(), by_emmet.dense(), rtol=1e-10, atol=1e-13)


def test_one_fact_of_memit_is_rome_shrunk():
    moment, keys, residuals = problem(n=1)
    rome = rank_one(Factorised(moment), keys[0], residuals[0])
    leverage = float(keys[0] @ torch.linalg.inv(moment) @ keys[0])
    assert float(rome.leverages[0]) == pytest.approx(leverage, rel=1e-10)
    shrunk = ridge(Factorised(moment), keys, residuals, strength=4.0)
    torch.testing.assert_close(shrunk.dense(), rome.dense() * leverage / (4.0 + leverage), rtol=1e-9, atol=1e-13)


def test_rome_maps_the_prompts_key_to_its_value():
    moment, keys, residuals = problem(n=2)
    mean_key, prompt_key = keys
    found = rank_one(Factorised(moment), mean_key, residuals[0], applied_to=prompt_key)
    direction = torch.linalg.inv(moment) @ mean_key
    torch.testing.assert_close(
        found.dense(), torch.outer(residuals[0], direction) / (direction @ prompt_key), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(found.dense() @ prompt_key, residuals[0], rtol=1e-9, atol=1e-12)
    # Whatever is orthogonal to C^-1 k stays.
    still = prompt_key - direction * (direction @ prompt_key) / (direction @ direction)
    assert (found.dense() @ still).norm() < 1e-10 * residuals[0].norm()
    # With one key for both, ROME and R-ROME are one.
    same = rank_one(Factorised(moment), prompt_key, residuals[0], applied_to=prompt_key)
    assert torch.equal(same.dense(), rank_one(Factorised(moment), prompt_key, residuals[0]).dense())


def test_rome_without_a_moment_follows_the_key_itself():
    _, keys, residuals = problem(n=1)
    identity = torch.eye(WIDTH, dtype=torch.float64)
    expected = torch.outer(residuals[0], keys[0]) / (keys[0] @ keys[0])
    torch.testing.assert_close(rank_one(Factorised(5 * identity), keys[0], residuals[0]).dense(), expected)


def null_space(moment, dimensions):
    """(U, P) with the `dimensions` largest eigenvectors taken away."""
    vectors = torch.linalg.eigh(moment)[1]
    basis = vectors[:, WIDTH - dimensions :]
    return basis, torch.eye(WIDTH, dtype=torch.float64) - basis @ basis.T


def alphaedit(projector, keys, residuals, strength, previous):
    """AlphaEdit's equation by an LU solve of its unsymmetric system, as its code does."""
    gram = keys.T @ keys + previous.T @ previous
    identity = torch.eye(len(projector), dtype=torch.float64)
    return torch.linalg.solve(projector @ gram + strength * identity, projector @ keys.T @ residuals).T


def earlier_keys(*edits, basis):
    """The keys of edits before, told one edit at a time."""
    found = EarlierKeys.none(WIDTH)
    for keys in edits:
        found = found.joined(keys, basis)
    return found


@settings(max_examples=40, deadline=None)
@given(
    problems, st.floats(1e-2, 1e3), st.integers(0, 20), st.integers(0, WIDTH - 2), st.integers(0, 1000)
)  # 0 to 28 keys in 12 dimensions: both systems are used
def test_null_space_solve_is_the_published_one(given_problem, strength, earlier, preserved, seed):
    moment, keys, residuals = given_problem
    basis, projector = null_space(moment, preserved)
    previous = torch.randn(earlier, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    told = earlier_keys(*previous.split(5), basis=basis)
    # However many edits there were, what is carried stays as large as the matrix.
    assert len(told.rows) <= WIDTH and (told.moment is None) == (earlier <= WIDTH)
    found = null_space_projected(basis, keys, residuals, strength=strength, previous=told)
    change = found.dense()
    torch.testing.assert_close(change, alphaedit(projector, keys, residuals, strength, previous), rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(change @ projector, change, rtol=1e-9, atol=1e-12)
    # The reduced form of the card, in coordinates of the null space.
    inside = torch.linalg.eigh(moment)[1][:, : WIDTH - preserved]
    gram = inside.T @ (keys.T @ keys + previous.T @ previous) @ inside
    reduced = (
        residuals.T
        @ keys
        @ inside
        @ torch.linalg.inv(gram + strength * torch.eye(len(gram), dtype=gram.dtype))
        @ inside.T
    )
    torch.testing.assert_close(change, reduced, rtol=1e-7, atol=1e-10)


def test_an_empty_basis_gives_ridge_regression():
    _, keys, residuals = problem()
    nothing = torch.zeros(WIDTH, 0, dtype=torch.float64)
    found = null_space_projected(nothing, keys, residuals, strength=2.0)
    expected = memit(torch.eye(WIDTH, dtype=torch.float64), keys, residuals, 2.0)
    torch.testing.assert_close(found.dense(), expected, rtol=1e-9, atol=1e-12)


def test_text_in_the_preserved_span_is_not_moved_at_all():
    generator = torch.Generator().manual_seed(5)
    text = torch.randn(50, 5, generator=generator, dtype=torch.float64) @ torch.randn(
        5, WIDTH, generator=generator, dtype=torch.float64
    )
    basis, _ = null_space(text.T @ text / 50, 5)
    _, keys, residuals = problem()
    found = null_space_projected(basis, keys, residuals, strength=1.0)
    assert float((text @ found.dense().T).abs().max()) < 1e-12
    assert found.norm() > 0.1


def test_null_space_weights_are_repeated_keys():
    moment, keys, residuals = problem()
    basis, _ = null_space(moment, 3)
    weights = torch.tensor([1.0, 2.0, 1.0, 3.0], dtype=torch.float64)
    found = null_space_projected(basis, keys, residuals, strength=1.0, weights=weights)
    repeats = weights.long()
    repeated = null_space_projected(
        basis, keys.repeat_interleave(repeats, 0), residuals.repeat_interleave(repeats, 0), strength=1.0
    )
    torch.testing.assert_close(found.dense(), repeated.dense(), rtol=1e-8, atol=1e-12)


def test_a_second_identical_batch_changes_nothing():
    moment, keys, residuals = problem()
    basis, _ = null_space(moment, 3)
    found = null_space_projected(
        basis, keys, torch.zeros_like(residuals), strength=1.0, previous=earlier_keys(keys, basis=basis)
    )
    assert found.norm() == 0.0


# What cannot be solved is said, and nothing explodes.


def test_a_singular_moment_is_named():
    rows = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(DataError, match="singular") as failure:
        Factorised(rows.T @ rows / 5, where="site mlp.down, layer 3")
    assert failure.value.where == "site mlp.down, layer 3"
    assert "more tokens" in failure.value.remedy and "ridge" in failure.value.remedy
    damped = Factorised(rows.T @ rows / 5, damping=1e-3)
    moment = rows.T @ rows / 5
    moment.diagonal().add_(1e-3 * float(moment.diagonal().mean()))
    torch.testing.assert_close(damped.matrix(), moment)


def test_a_dead_neuron_is_singular_too():
    moment, _, _ = problem()
    moment[3] = moment[:, 3] = 0
    with pytest.raises(DataError, match="singular") as failure:
        Factorised(moment, where="site mlp.down, layer 3")
    assert failure.value.found.startswith("a smallest eigenvalue of")


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(broken):
    moment, keys, residuals = problem()
    bad = moment.clone()
    bad[2, 1] = broken
    with pytest.raises(DataError, match="second moment is not finite"):
        Factorised(bad)
    keys[2, 0] = broken
    with pytest.raises(DataError, match="key is not finite") as failure:
        ridge(Factorised(moment), keys, residuals, strength=1.0)
    assert failure.value.where == "key 2"


def test_the_callers_matrix_is_not_damped():
    moment, _, _ = problem()
    before = moment.clone()
    Factorised(moment, damping=0.1)
    assert torch.equal(moment, before)


def test_a_vanishing_key_is_reported_and_not_exploded():
    moment, keys, residuals = problem()
    keys[1] *= 1e-9
    found = equality_constrained(Factorised(moment), keys, residuals)
    assert found.vanishing == (1,)
    assert float(found.right[1].abs().max()) == 0.0
    kept = torch.tensor([0, 2, 3])
    torch.testing.assert_close(
        found.dense(), equality_constrained(Factorised(moment), keys[kept], residuals[kept]).dense()
    )
    assert float(found.remaining_norms[1]) == pytest.approx(float(residuals[1].norm()), rel=1e-6)
    assert found.facts()["vanishing"] == [1]


def test_keys_that_rome_cannot_tell_apart_from_orthogonal_are_reported():
    moment, keys, residuals = problem(n=2)
    direction = torch.linalg.inv(moment) @ keys[0]
    orthogonal = keys[1] - direction * (direction @ keys[1]) / (direction @ direction)
    found = rank_one(Factorised(moment), keys[0], residuals[0], applied_to=orthogonal)
    assert found.vanishing == (0,)
    assert found.norm() == 0.0
    assert rank_one(Factorised(moment), keys[0] * 1e-8, residuals[0]).vanishing == (0,)


def test_a_key_in_the_preserved_span_is_reported():
    moment, keys, residuals = problem()
    basis, _ = null_space(moment, 4)
    keys[0] = basis @ torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    found = null_space_projected(basis, keys, residuals, strength=1.0)
    assert found.vanishing == (0,)
    assert found.norm() > 0


def test_facts_with_one_key_are_named():
    moment, keys, residuals = problem(n=5)
    keys[4] = keys[2] * (1 + 1e-15)
    with pytest.raises(DataError, match="depend on each other") as failure:
        equality_constrained(Factorised(moment), keys, residuals)
    assert "key 4" in failure.value.found and "key 2" in failure.value.found
    # With a ridge they share what they can.
    assert equality_constrained(Factorised(moment), keys, residuals, ridge=0.1).norm() > 0
    alike = keys.clone()
    alike[4] = keys[2] + 1e-4 * torch.eye(WIDTH, dtype=torch.float64)[0]
    assert equality_constrained(Factorised(moment), alike, residuals).condition > 1e4


def test_more_exact_facts_than_dimensions_are_refused():
    moment, keys, residuals = problem(n=WIDTH + 1)
    with pytest.raises(DataError, match="depend on each other"):
        equality_constrained(Factorised(moment), keys, residuals)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan")])
def test_a_ridge_is_positive(strength):
    moment, keys, residuals = problem()
    with pytest.raises(ConfigError, match="not positive"):
        ridge(Factorised(moment), keys, residuals, strength=strength)
    with pytest.raises(ConfigError, match="not positive"):
        null_space_projected(torch.zeros(WIDTH, 0), keys, residuals, strength=strength)


def test_no_facts_change_nothing():
    moment, keys, residuals = problem()
    found = ridge(Factorised(moment), keys[:0], residuals[:0], strength=1.0)
    assert found.dense().shape == (OUT, WIDTH)
    assert found.norm() == 0.0


def test_shapes_are_checked():
    moment, keys, residuals = problem()
    with pytest.raises(ValueError, match="shape"):
        ridge(Factorised(moment), keys[:, :-1], residuals, strength=1.0)


def test_float32_keys_are_solved_in_float64():
    moment, keys, residuals = problem()
    found = ridge(Factorised(moment.float()), keys.float(), residuals.float(), strength=1.0)
    assert found.left.dtype == found.right.dtype == torch.float64
    torch.testing.assert_close(found.dense(), memit(moment, keys, residuals, 1.0), rtol=1e-4, atol=1e-5)
    assert found.norm() == pytest.approx(float(found.dense().norm()), rel=1e-10)
