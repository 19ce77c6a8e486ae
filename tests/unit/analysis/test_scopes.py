import statistics

import pytest
import torch

from distill.analysis.scopes import OF_SCOPE, OF_TENSOR, Beside, beside, of_scope, of_tensor, scopes
from distill.analysis.sparsity import compare, total_pair
from distill.analysis.tensor import Measured, Options, measure

SHAPES = {
    "model.embed_tokens.weight": (40, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.mlp.up_proj.weight": (32, 16),
    "model.layers.10.mlp.up_proj.weight": (32, 16),
    "model.layers.2.mlp.up_proj.weight": (32, 16),
    "model.norm.weight": (16,),
}


@pytest.fixture(scope="module")
def model() -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], dict[str, Measured]]:
    generator = torch.Generator().manual_seed(0)
    sources = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    tensors = {k: (v, v + 4e-5 * torch.randn(v.shape, generator=generator)) for k, v in sources.items()}
    options = Options(draws=3)
    return tensors, {name: measure(name, *both, tensors[name][1], options) for name, both in tensors.items()}


def test_the_model_is_weighted_by_coordinates_and_matrices_count_once(model) -> None:  # type: ignore[no-untyped-def]
    tensors, measured = model
    everything = [*measured.values()]
    found = of_scope(everything, everything, "bf16")
    whole = total_pair(compare(*both) for both in tensors.values())["bf16"]
    assert set(found) == set(OF_SCOPE)
    assert found["sparsity_1e-5"].observed == whole.sparsity()
    assert found["relative_norm"].observed == whole.relative_norm
    assert found["energy_share"].observed == pytest.approx(1)
    ranks = [part.matrix["stable_rank"] for each in everything if (part := each.observed["bf16"]).matrix]
    assert len(ranks) == 5
    assert found["stable_rank.median"].observed == statistics.median(ranks)
    assert found["stable_rank.mean"].observed == pytest.approx(statistics.fmean(ranks))


def test_top_energy_of_the_model_is_that_of_all_its_coordinates(model) -> None:  # type: ignore[no-untyped-def]
    tensors, measured = model
    everything = [*measured.values()]
    deltas = [(b.bfloat16() - a.bfloat16()).double().flatten() for a, b in tensors.values()]
    energy = torch.cat(deltas).square().sort(descending=True).values
    for fraction in (0.001, 0.01, 0.05):
        expected = float(energy[: -(-int(fraction * 1e6) * len(energy) // 10**6)].sum() / energy.sum())
        found = of_scope(everything, everything, "bf16")[f"top_energy_{fraction:g}"].observed
        assert found == pytest.approx(expected, rel=1e-9)


def test_the_null_of_a_scope_is_made_of_the_draws_of_its_tensors(model) -> None:  # type: ignore[no-untyped-def]
    _, measured = model
    everything = [*measured.values()]
    found = of_scope(everything, everything, "bf16")["sparsity_0"]
    draws = []
    for draw in range(3):
        counts = [each.draws[draw]["bf16"].counts for each in everything]
        draws.append(sum(part.within[0] for part in counts) / sum(part.numel for part in counts))
    assert found.null == pytest.approx(statistics.fmean(draws))
    assert found.null_sd == pytest.approx(statistics.stdev(draws))
    assert found.difference == pytest.approx(found.observed - statistics.fmean(draws))
    assert found.z == pytest.approx((found.observed - statistics.fmean(draws)) / statistics.stdev(draws))


def test_a_tensor_has_its_metrics_and_its_share_of_the_energy(model) -> None:  # type: ignore[no-untyped-def]
    _, measured = model
    everything = [*measured.values()]
    rows = {name: of_tensor(each, everything, "fp32") for name, each in measured.items()}
    assert set(rows["model.layers.0.mlp.up_proj.weight"]) == set(OF_TENSOR)
    assert "stable_rank" not in rows["model.norm.weight"]
    assert sum(row["energy_share"].observed for row in rows.values()) == pytest.approx(1)
    assert rows["model.norm.weight"]["numel"].null is None


def test_scopes_are_in_the_order_of_layers() -> None:
    found = [*scopes(SHAPES)]
    assert found[0] == ("model", "all", [*SHAPES])
    assert [name for scope, name, _ in found if scope == "group"] == ["attention", "mlp", "embedding", "norm"]
    assert [name for scope, name, _ in found if scope == "layer"] == ["0", "2", "10"]
    modules = [name for scope, name, _ in found if scope == "module"]
    assert modules == ["0.q_proj", "0.up_proj", "2.up_proj", "10.up_proj"]


def test_what_a_null_needs() -> None:
    assert beside({"a": 2.0}, []) == {"a": Beside(2.0)}
    assert beside({"a": 2.0}, [{"a": 1.0}]) == {"a": Beside(2.0, 1.0, None, 1.0, None)}
    assert beside({"a": 2.0}, [{"a": 1.0}, {"a": 1.0}]) == {"a": Beside(2.0, 1.0, 0.0, 1.0, None)}
    assert beside({"a": 2.0}, [{"a": 1.0}, {}]) == {"a": Beside(2.0)}
    assert beside({"numel": 2}, [{"numel": 2}]) == {"numel": Beside(2)}
