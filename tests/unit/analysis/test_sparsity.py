"""Counts and energies against a brute-force float64 reference."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.analysis import sparsity
from distill.analysis.sparsity import (
    PRECISIONS,
    TOLERANCES,
    Counts,
    by_group,
    by_layer,
    by_module,
    compare,
    group_by,
    pack,
    share,
    total,
    total_pair,
    unpack,
)


def tensors(shape: tuple[int, ...], scale: float = 2e-5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    source = 0.02 * torch.randn(shape, generator=generator)
    return source, source + scale * torch.randn(shape, generator=generator)


def reference(source: Tensor, trained: Tensor, precision: str) -> tuple[list[int], float, float]:
    """Within-tolerance counts, ΣΔ², Σθ₀² in numpy float64; bfloat16 by rounding the upper half of the fp32 bits."""

    def rounded(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float32)
        if precision == "fp32":
            return values
        bits = values.view(np.uint32)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return bits.astype(np.uint32).view(np.float32)

    start = rounded(source.float().numpy().ravel())
    delta = rounded(rounded(trained.float().numpy().ravel()) - start)
    counts = [sum(abs(float(d)) <= float(np.float32(t)) for d in delta) for t in TOLERANCES]
    return counts, math.fsum(float(d) ** 2 for d in delta), math.fsum(float(s) ** 2 for s in start)


@pytest.mark.parametrize("scale", [0.0, 1e-7, 1e-5, 1e-3])
def test_counts_equal_brute_force(scale: float) -> None:
    source, trained = tensors((37, 29), scale)
    for precision, counts in compare(source, trained).items():
        within, update, start = reference(source, trained, precision)
        assert list(counts.within) == within
        assert counts.numel == 37 * 29
        assert counts.update_energy == pytest.approx(update, rel=1e-12)
        assert counts.source_energy == pytest.approx(start, rel=1e-12)


def test_tolerance_is_inclusive_at_its_fp32_value() -> None:
    tolerance = np.float32(1e-5)
    steps = [tolerance, np.nextafter(tolerance, np.float32(1)), -tolerance]
    trained = torch.from_numpy(np.array(steps, dtype=np.float32))
    assert compare(torch.zeros(3), trained)["fp32"].within[TOLERANCES.index(1e-5)] == 2


def test_small_change_vanishes_in_bf16_only() -> None:
    source = torch.full((100,), 0.5)
    pair = compare(source, source + 1e-4)
    assert pair["bf16"].sparsity(0.0) == 1
    assert pair["bf16"].relative_norm == 0
    assert pair["fp32"].sparsity(1e-5) == 0
    assert pair["fp32"].relative_norm == pytest.approx(2e-4, rel=1e-3)


def test_pieces_and_splits_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    source, trained = tensors((50, 40))
    whole = compare(source, trained)
    parts = [compare(a, b) for a, b in zip(source.split(7), trained.split(7), strict=True)]
    monkeypatch.setattr(sparsity, "PIECE", {"cpu": 64, "cuda": 64})
    for found in (total_pair(parts), compare(source, trained)):
        for precision in PRECISIONS:
            assert found[precision].within == whole[precision].within
            assert found[precision].numel == whole[precision].numel
            assert found[precision].update_energy == pytest.approx(whole[precision].update_energy, rel=1e-12)


def test_a_transposed_tensor_is_read_in_its_own_order() -> None:
    source, trained = tensors((16, 24))
    assert compare(source.T, trained.T)["fp32"].within == compare(source, trained)["fp32"].within


def test_half_precision_checkpoint_against_fp32() -> None:
    source, trained = tensors((64, 8))
    pair = compare(source, trained.bfloat16())
    assert pair["bf16"].within == compare(source, trained)["bf16"].within
    assert pair["fp32"].within == compare(source, trained.bfloat16().float())["fp32"].within


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        compare(torch.zeros(2, 3), torch.zeros(3, 2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_is_seen_on_either_side(value: float) -> None:
    clean, broken = torch.ones(10), torch.ones(10)
    broken[3] = value
    for pair in (compare(clean, broken), compare(broken, clean)):
        assert not any(counts.finite for counts in pair.values())
    assert all(counts.finite for counts in compare(clean, clean).values())


def test_relative_norm_at_the_edges() -> None:
    assert Counts(1, (1,) * 6, 0.0, 0.0).relative_norm == 0
    assert Counts(1, (0,) * 6, 4.0, 0.0).relative_norm == math.inf
    assert Counts(1, (0,) * 6, 4.0, 16.0).relative_norm == 0.5
    assert Counts().energy_share(Counts()) == 0
    assert math.isnan(Counts().sparsity())


def test_sparsity_is_weighted_by_parameters() -> None:
    still, moved = torch.zeros(900), torch.ones(100)
    pairs = [compare(still, still), compare(moved, moved + 1)]
    assert total(pair["fp32"] for pair in pairs).sparsity() == 0.9


def test_groups_sum_to_the_model() -> None:
    names = [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.mlp.up_proj.weight",
        "model.norm.weight",
    ]
    pairs = {name: compare(*tensors((8 + i, 4), seed=i)) for i, name in enumerate(names)}
    whole = total_pair(pairs.values())
    groups = group_by(pairs, by_group)
    assert total_pair(groups.values())["bf16"].within == whole["bf16"].within
    assert sum(pair["bf16"].energy_share(whole["bf16"]) for pair in groups.values()) == pytest.approx(1)
    assert set(group_by(pairs, by_layer)) == {0, 1}
    modules = group_by(pairs, by_module)
    assert set(modules) == {(0, "q_proj"), (1, "up_proj")}
    assert modules[0, "q_proj"]["fp32"].numel == pairs[names[1]]["fp32"].numel + pairs[names[2]]["fp32"].numel


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_summed_shares_equal_one_process_exactly(world_size: int) -> None:
    pairs = {f"model.layers.{i}.mlp.fc1.weight": compare(*tensors((5 + i, 7), seed=i)) for i in range(5)}
    names = list(pairs)
    shares = [share(names, rank, world_size) for rank in range(world_size)]
    assert sorted(name for part in shares for name in part) == names
    packed = [pack(names, {name: pairs[name] for name in part}) for part in shares]
    counts, energies = (torch.stack(parts).sum(0) for parts in zip(*packed, strict=True))
    assert counts.dtype == torch.int64
    assert energies.dtype == torch.float64
    assert unpack(names, counts, energies) == pairs
