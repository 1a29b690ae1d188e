"""Second moments of which only the experts' blocks are kept, and changes of three axes, against dense matrices."""

from __future__ import annotations

import pytest
import torch

import tiny
from palimpsest import DataError, PatchError
from palimpsest.methods.compressing import strongest
from palimpsest.models.hooks import Point
from palimpsest.patches import LowRank
from palimpsest.solve import Factorised, equality_constrained, null_space_projected, rank_one, ridge
from palimpsest.statistics import KEYS, Spectrum, collect, decompose, lowest_energy, open_text
from palimpsest.statistics.blocks import BlockMoments, moment_of

READ = Point("mlp.down", 1, "input")


def random_keys(tokens=400, experts=4, width=6, chosen=2):
    keys = torch.randn(tokens, experts, width, dtype=torch.float64)
    for row in keys:
        row[torch.randperm(experts)[: experts - chosen]] = 0
    return keys.flatten(1)


def diagonal(moment, experts=4):
    size = len(moment) // experts
    return torch.block_diag(*[moment[i : i + size, i : i + size] for i in range(0, len(moment), size)])


def test_blocks_times_the_number_of_chosen_experts_bound_the_whole_moment():
    keys = random_keys()
    whole = keys.T @ keys / len(keys)
    assert torch.linalg.eigvalsh(2 * diagonal(whole) - whole).min() > -1e-12
    assert torch.linalg.eigvalsh(diagonal(whole) - whole).min() < -1e-3  # one times them does not


def test_moments_factors_and_spectra_of_blocks_are_those_of_their_matrix():
    keys = random_keys()
    matrix, rows = diagonal(keys.T @ keys / len(keys)), torch.randn(5, 24, dtype=torch.float64)
    moment = BlockMoments(24, 4)
    moment.add(keys[:150])
    later = BlockMoments(24, 4)
    later.add(keys[150:])
    moment = moment.merge(later)
    assert moment.count == 400 and torch.allclose(torch.block_diag(*moment.mean()), matrix, atol=1e-12)
    assert torch.equal(moment_of(moment.sum(), 400).mean(), moment.mean())

    blocks, plain = Factorised(moment.mean(), damping=0.1), Factorised(matrix, damping=0.1)
    for name in ("whiten", "solve", "unwhiten", "spread", "drawn"):
        assert torch.allclose(getattr(blocks, name)(rows), getattr(plain, name)(rows), atol=1e-10), name
    more = torch.randn(24, 24, dtype=torch.float64)
    more = more @ more.T
    expected = torch.linalg.solve(plain.matrix() + diagonal(more), rows.T).T
    assert blocks.width == 24 and torch.allclose(blocks.plus(more).solve(rows), expected, atol=1e-10)

    spectra, whole = decompose(moment.mean()), decompose(matrix)
    assert isinstance(spectra, Spectrum) and spectra.vectors.shape == (4, 6, 6)
    assert torch.allclose(spectra.spread(rows).norm(dim=1), whole.spread(rows).norm(dim=1), atol=1e-10)
    null, same = lowest_energy(spectra, 0.2), lowest_energy(whole, 0.2)
    assert null.null_dimension == same.null_dimension > 0 and null.width == 24
    assert torch.allclose(null.apply(rows), same.apply(rows), atol=1e-10)


def test_solves_in_blocks_are_those_of_one_dense_matrix():
    keys = random_keys()
    moment = BlockMoments(24, 4)
    moment.add(keys)
    factor, matrix = Factorised(moment.mean()), torch.block_diag(*moment.mean())
    some, residuals = random_keys(3), torch.randn(3, 5, dtype=torch.float64)
    inverse = torch.linalg.inv(matrix)

    memit = ridge(factor, some, residuals, strength=0.7).dense()
    assert torch.allclose(memit, residuals.T @ some @ torch.linalg.inv(0.7 * matrix + some.T @ some), atol=1e-10)
    emmet = equality_constrained(factor, some, residuals).dense()
    assert torch.allclose(emmet, residuals.T @ torch.linalg.inv(some @ inverse @ some.T) @ some @ inverse, atol=1e-10)
    rome = rank_one(factor, some[0], residuals[0]).dense()
    assert torch.allclose(
        rome, torch.outer(residuals[0], inverse @ some[0]) / (some[0] @ inverse @ some[0]), atol=1e-10
    )
    null, whole = lowest_energy(decompose(moment.mean()), 0.3), lowest_energy(decompose(matrix), 0.3)
    alphaedit = null_space_projected(null.basis, some, residuals, strength=0.5).dense()
    past = torch.eye(24, dtype=torch.float64) - whole.basis @ whole.basis.T
    system = some.T @ some @ past + 0.5 * torch.eye(24, dtype=torch.float64)
    assert torch.allclose(alphaedit, residuals.T @ some @ past @ torch.linalg.inv(system), atol=1e-10)

    # An expert that none of the keys reach is left exactly as it is.
    alone = some.clone()
    alone[:, :6] = torch.randn(3, 6, dtype=torch.float64)
    alone[:, 6:12] = 0
    for solution in (ridge(factor, alone, residuals, strength=0.7), equality_constrained(factor, alone, residuals)):
        assert not solution.dense()[:, 6:12].any() and solution.dense()[:, :6].any()


def test_a_block_without_tokens_does_not_break_the_moment_and_a_bad_key_is_named():
    keys = random_keys()
    keys[:, :6] = 0
    moment = BlockMoments(24, 4)
    moment.add(keys)
    factor = Factorised(moment.mean(), damping=moment.floor)
    # One token more, all of its length in every block and in no direction of it.
    floor = float((keys.square().sum() / len(keys)) / 6 / len(keys))
    assert torch.allclose(factor.matrix()[0], floor * torch.eye(6, dtype=torch.float64), rtol=1e-9)
    keys[7, 20] = float("nan")
    with pytest.raises(DataError, match="token 7"):
        moment.add(keys, where="token {}".format)


def test_a_text_gives_each_expert_the_moment_of_the_tokens_it_is_sent():
    model = tiny.tiny_model("qwen3_moe")
    found = collect(model, [READ], open_text(tiny.text_file()), max_tokens=300, tolerance=None)[READ]
    rows, left = [], 300
    for text in tiny.text_lines():
        _, read = model.capture([text], [READ])
        rows.append(read[READ][0][:left].double())
        left -= len(rows[-1])
        if not left:
            break
    keys = torch.cat(rows).view(300, 4, 16)
    expected = torch.stack([keys[:, i].T @ keys[:, i] for i in range(4)]) / 300
    assert found.moment.shape == (4, 16, 16) and torch.allclose(found.moment.mean(), expected, atol=1e-5)
    # Two of four experts a token: as many tokens as for half of all entries.
    assert KEYS.width(model, READ) == 64 and KEYS.dimensions(model, READ) == 32


def test_factors_of_three_axes():
    left, right = torch.randn(4, 5, 2), torch.randn(4, 2, 7)
    assert LowRank(left, right).shape == (4, 5, 7) and LowRank(left[0], right).shape == (4, 5, 7)
    assert torch.allclose(LowRank(left, right[0]).dense(), torch.stack([one @ right[0] for one in left]))
    for wrong in ((left, right[:3]), (left, right[:, :1]), (left[None], right)):
        with pytest.raises(PatchError, match="do not fit together"):
            LowRank(*wrong)
    change = left @ right
    change[1] = 0
    kept = strongest(change, 2)
    assert kept.rank == 2 and torch.allclose(kept.dense(), change, atol=1e-5)
    assert kept.of_expert(1) is None and kept.of_expert(2) is not None
