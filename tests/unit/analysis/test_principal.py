import pytest
import torch
from torch import Tensor

from distill.analysis.decompose import Decomposition, decompose
from distill.analysis.principal import METRICS, SHARES, most_directions, principal


def decomposed(matrix: Tensor) -> Decomposition:
    return decompose(matrix, most_directions(min(matrix.shape)))


def measured(source: Tensor, trained: Tensor) -> dict[str, float]:
    return principal(trained - source, decomposed(source), decomposed(trained))


def directly(source: Tensor, trained: Tensor) -> dict[str, float]:
    """The definitions, letter by letter, on full decompositions."""
    update = trained - source
    u, s, vt = torch.linalg.svd(source)
    u2, s2, vt2 = torch.linalg.svd(trained)
    energy, found = update.square().sum(), {}
    for share in SHARES:
        k = max(1, int(float(share) * min(source.shape)))
        uk, vk = u[:, :k], vt[:k].T
        found[f"projection_joint_{share}"] = (uk.T @ update @ vk).square().sum() / energy
        found[f"projection_left_{share}"] = (uk.T @ update).square().sum() / energy
        found[f"projection_right_{share}"] = (update @ vk).square().sum() / energy
        for side, one, other in (("left", uk, u2[:, :k]), ("right", vk, vt2[:k].T)):
            cosines = torch.linalg.svdvals(one.T @ other)
            found[f"rotation_{side}_{share}"] = (1 - cosines.square()).clamp(min=0).sqrt().mean()
    drift = (s2 - s).square().sum().sqrt()
    found["spectral_drift"] = drift / s.square().sum().sqrt()
    found["spectral_drift_per_update"] = drift / energy.sqrt()
    return {key: float(value) for key, value in found.items()}


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50), (1, 30), (4, 3)])
def test_measures_are_those_of_their_definitions(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(shape, generator=generator, dtype=torch.float64)
    trained = source + 0.03 * torch.randn(shape, generator=generator, dtype=torch.float64)
    found = measured(source, trained)
    assert set(found) == set(METRICS)
    assert found == pytest.approx(directly(source, trained), rel=1e-6, abs=1e-9)


def test_an_update_along_the_first_direction_lies_in_every_principal_subspace() -> None:
    source = torch.diag(torch.linspace(2, 1, 20, dtype=torch.float64))
    trained = source.clone()
    trained[0, 0] += 0.1
    found = measured(source, trained)
    for share in SHARES:
        assert found[f"projection_joint_{share}"] == pytest.approx(1)
        assert found[f"rotation_left_{share}"] == pytest.approx(0, abs=1e-7)
    assert found["spectral_drift_per_update"] == pytest.approx(1)


def test_an_update_outside_projects_on_nothing() -> None:
    source = torch.diag(torch.linspace(2, 1, 20, dtype=torch.float64))
    trained = source.clone()
    trained[-1, -1] += 0.1
    assert all(measured(source, trained)[f"projection_{side}_0.2"] == 0 for side in ("joint", "left", "right"))


def test_turning_both_sides_changes_no_projection() -> None:
    source, trained = torch.randn(30, 20).double(), torch.randn(30, 20).double()
    left, _ = torch.linalg.qr(torch.randn(30, 30).double())
    right, _ = torch.linalg.qr(torch.randn(20, 20).double())
    turned = measured(left @ source @ right, left @ trained @ right)
    assert turned == pytest.approx(measured(source, trained), rel=1e-6, abs=1e-9)


def test_an_update_of_zero_has_no_projections_and_no_rotation() -> None:
    source = torch.randn(20, 30).double()
    found = measured(source, source)
    assert "projection_joint_0.1" not in found
    assert "spectral_drift_per_update" not in found
    assert found["spectral_drift"] == 0
    assert found["rotation_left_0.2"] == pytest.approx(0, abs=1e-6)


def test_directions_that_a_matrix_does_not_have_hold_no_share() -> None:
    low = torch.randn(20, 3).double() @ torch.randn(3, 20).double()
    trained = low + 0.01 * torch.randn(20, 20).double()
    found = measured(low, trained)
    assert "projection_joint_0.1" in found, "2 of 3 directions"
    assert "rotation_left_0.1" in found
    assert not {"projection_joint_0.2", "projection_left_0.2", "rotation_right_0.2"} & found.keys(), "4 of 3 directions"
    assert "rotation_left_0.2" not in measured(trained, low)
    assert not measured(torch.zeros(20, 20), torch.ones(20, 20)).keys() & {f"projection_left_{s}" for s in SHARES}
