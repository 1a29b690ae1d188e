"""Second moments, spectra and convergence against one-shot numpy computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.errors import ConfigError, DataError
from palimpsest.statistics import moments
from palimpsest.statistics.convergence import direction_error, is_due
from palimpsest.statistics.moments import BLOCK_ROWS, CHAIN_ROWS, STATED_ERROR, STEP_ROWS, SecondMoment
from palimpsest.statistics.subspaces import below_threshold, decompose, lowest_energy


def sample(n, width, *, seed=0, dtype=torch.float32):
    """Rows with a mean and with scales that differ, as keys have."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-2, 1, width)
    return (torch.randn(n, width, generator=generator) * scales + 0.3 * scales).to(dtype)


def one_shot(rows):
    values = rows.double().numpy()
    return torch.from_numpy(values.T @ values)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 30))
def test_a_stream_in_any_pieces_is_the_whole(sizes, width):
    rows = sample(sum(sizes), width, dtype=torch.float64)
    moment = SecondMoment(width)
    for piece in rows.split(sizes):
        moment.add(piece)
    assert moment.count == len(rows)
    torch.testing.assert_close(moment.sum(), one_shot(rows), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [1, 383, 384, 385, 800])
def test_panels_cover_every_width(width):
    rows = sample(50, width, dtype=torch.float64)
    moment = SecondMoment(width)
    moment.add(rows)
    assert torch.equal(moment.sum(), moment.sum().T)
    torch.testing.assert_close(moment.sum(), one_shot(rows), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moment.mean(), one_shot(rows) / 50, rtol=1e-12, atol=1e-12)


def test_float32_products_keep_the_stated_error():
    rows = sample(2 * BLOCK_ROWS + 17, 200)
    moment = SecondMoment(200)
    moment.add(rows)
    assert ((moment.sum() - one_shot(rows)).norm() / one_shot(rows).norm()) < 5e-7


@pytest.mark.parametrize("width", [4, 63, 64, 65, 400])
@pytest.mark.parametrize("value", [0.1, 0.0123, 1 / 3, 0.7])
def test_rounding_that_goes_one_way_all_along_stays_below_the_stated_error(width, value):
    constant = SecondMoment(width)
    constant.add(torch.full((3 * BLOCK_ROWS + 5, width), value))
    exact = float(torch.tensor(value)) ** 2
    assert float((constant.mean() - exact).abs().max()) < STATED_ERROR * exact


def equal_keys(width):
    """A vector whose products round by every share of a unit, also those that are all rounded up."""
    spread = torch.arange(width, dtype=torch.float64) * 3**0.5 % 1
    # The first ones: a product of one and a little more than half a unit of the sums that 256 to 4,096 rows end in.
    spread[:5] = torch.tensor([1.1 * rows * 2.0**-26 for rows in (256, 512, 1024, 2048, 4096)])[: min(width, 5)]
    return (1 + spread).float()


@pytest.mark.parametrize("can_go_on", [None, False])
@pytest.mark.parametrize("rows", [STEP_ROWS + 3, BLOCK_ROWS, 2 * BLOCK_ROWS + 700])
@pytest.mark.parametrize("width", [4, 63, 400, 600, 900])
def test_equal_keys_keep_the_stated_error_in_every_entry(width, rows, can_go_on, monkeypatch):
    if can_go_on is not None:
        monkeypatch.setattr(moments, "_keeps_error", lambda *_: can_go_on)
    values = equal_keys(width)
    moment = SecondMoment(width)
    moment.add(values.repeat(rows, 1))
    exact = torch.outer(values.double(), values.double())
    assert float(((moment.mean() - exact).abs() / exact).max()) < STATED_ERROR


def test_a_chain_errs_by_a_quarter_of_a_unit_an_addition():
    """What the lengths are chosen by: one chain of float32 additions, whatever the kernels do."""
    for rows in (CHAIN_ROWS, BLOCK_ROWS):
        square = (1 + 1.1 * rows * 2.0**-26) ** 2
        total = np.float32(0)
        for _ in range(rows):
            total += np.float32(square)
        error = abs(float(total) / (rows * float(np.float32(square))) - 1)
        assert 0.2 * rows * 2.0**-24 < error <= 0.26 * rows * 2.0**-24
    assert 0.26 * (CHAIN_ROWS + BLOCK_ROWS // CHAIN_ROWS) * 2.0**-24 < STATED_ERROR


def test_a_kernel_that_goes_on_with_the_chain_is_found_out(monkeypatch):
    def one_chain(total, left, right):
        for column in range(left.shape[1]):
            total += torch.outer(left[:, column], right[column])
        return total

    device = torch.device("cpu")
    moments._keeps_error.cache_clear()
    monkeypatch.setattr(torch.Tensor, "addmm_", one_chain)
    assert not moments._keeps_error(24, 0, device, 1)
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda total, left, right: total.add_(left @ right))
    monkeypatch.setattr(moments, "STEP_ROWS", CHAIN_ROWS)
    moments._keeps_error.cache_clear()
    assert moments._keeps_error(24, 0, device, 1)
    moments._keeps_error.cache_clear()


def test_products_are_exact_where_float32_may_be_rounded():
    rows = sample(64, 20)
    moment = SecondMoment(20)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        moment.add(rows)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(moment.sum(), one_shot(rows), rtol=1e-13, atol=1e-13)


def test_half_precision_keys_are_summed_as_they_are():
    rows = sample(64, 20, dtype=torch.bfloat16)
    moment = SecondMoment(20)
    moment.add(rows)
    torch.testing.assert_close(moment.sum(), one_shot(rows), rtol=1e-5, atol=1e-5)


def test_two_streams_merge_to_one():
    rows = sample(90, 30, dtype=torch.float64)
    first, second = SecondMoment(30), SecondMoment(30)
    first.add(rows[:40])
    second.add(rows[40:])
    both = first.merge(second)
    assert (both.count, first.count, second.count) == (90, 40, 50)
    torch.testing.assert_close(both.sum(), one_shot(rows), rtol=1e-12, atol=1e-12)
    again = SecondMoment.from_sum(first.sum(), 40).merge(second)
    assert torch.equal(again.sum(), both.sum())
    with pytest.raises(ValueError, match="widths differ"):
        first.merge(SecondMoment(31))


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_key_that_is_not_finite_is_named(broken):
    rows = sample(20, 6)
    rows[13, 2] = broken
    moment = SecondMoment(6)
    with pytest.raises(DataError, match="not finite") as failure:
        moment.add(rows, where=lambda row: f"token {row}")
    assert failure.value.where == "token 13"
    assert moment.count == 0


# Convergence


@pytest.mark.parametrize(("multiple", "expected"), [(16, 0.25), (64, 0.125)])
def test_the_error_of_gaussian_keys_is_as_theory_says(multiple, expected):
    width = 60
    halves = []
    for seed in (1, 2):
        half = SecondMoment(width)
        half.add(sample(multiple * width // 2, width, seed=seed) - 0.3 * torch.logspace(-2, 1, width))
        halves.append(half)
    keys = sample(200, width, seed=3)
    error = direction_error(*halves, keys)
    assert error == pytest.approx(expected, rel=0.2)
    # The true error of the whole, against the covariance that the keys were drawn with.
    truth = keys.double() / torch.logspace(-2, 1, width).double() ** 2
    whole = torch.linalg.solve(halves[0].merge(halves[1]).mean(), keys.double().T).T
    true_error = (torch.nn.functional.normalize(whole) - torch.nn.functional.normalize(truth)).norm(dim=1).mean()
    assert error == pytest.approx(float(true_error), rel=0.2)


def test_a_singular_half_has_no_error():
    rows = sample(100, 10)
    rows[:, 4] = 0
    halves = [SecondMoment(10), SecondMoment(10)]
    for half in halves:
        half.add(rows)
    assert direction_error(*halves, rows) is None
    assert direction_error(SecondMoment(10), halves[1], rows) is None


def test_checks_come_at_8_12_16_24_tokens_a_dimension():
    width = 100
    due = [now for now in range(100, 7000, 100) if is_due(now - 100, now, width)]
    assert due == [800, 1200, 1600, 2400, 3200, 4800, 6400]
    assert is_due(0, 100_000, width)
    assert not is_due(800, 1199, width)


# Subspaces


def spectrum(width=40):
    rows = sample(5 * width, width, dtype=torch.float64)
    return decompose(one_shot(rows) / len(rows)), one_shot(rows) / len(rows)


@pytest.mark.parametrize("choose", [lambda s: below_threshold(s, 1e-2), lambda s: lowest_energy(s, 0.05)])
def test_a_projector_is_one(choose):
    found, moment = spectrum()
    projector = choose(found)
    matrix = projector.apply(torch.eye(40, dtype=torch.float64))
    assert 0 < projector.null_dimension < 40
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix @ matrix, matrix)
    assert float(torch.trace(matrix)) == pytest.approx(projector.null_dimension)
    assert projector.energy == pytest.approx(float(torch.trace(matrix @ moment) / torch.trace(moment)), rel=1e-9)


def test_the_threshold_is_on_eigenvalues():
    found, moment = spectrum()
    projector = below_threshold(found, 1e-2)
    values = np.linalg.eigvalsh(moment.numpy())
    assert projector.null_dimension == int((values < 1e-2).sum())
    matrix = projector.apply(torch.eye(40, dtype=torch.float64))
    assert float(torch.linalg.matrix_norm(matrix @ moment, 2)) <= 1e-2
    # tr(Delta C Delta^T) <= threshold |Delta|^2 for a change that lives in the null space.
    change = torch.randn(7, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ matrix
    assert torch.trace(change @ moment @ change.T) <= 1e-2 * change.square().sum()


def test_the_energy_is_a_share_whatever_the_scale():
    found, moment = spectrum()
    projector, scaled = lowest_energy(found, 0.05), lowest_energy(decompose(1e6 * moment), 0.05)
    assert projector.null_dimension == scaled.null_dimension
    values = np.linalg.eigvalsh(moment.numpy())
    assert values[: projector.null_dimension].sum() <= 0.05 * values.sum()
    assert values[: projector.null_dimension + 1].sum() > 0.05 * values.sum()
    assert lowest_energy(found, 0.0).null_dimension == 0


def test_a_null_space_out_of_range_is_refused():
    found, _ = spectrum()
    with pytest.raises(ConfigError, match="threshold"):
        below_threshold(found, 0.0)
    with pytest.raises(ConfigError, match="share"):
        lowest_energy(found, 1.0)
    with pytest.raises(DataError, match="not finite"):
        decompose(torch.full((3, 3), float("nan")))
