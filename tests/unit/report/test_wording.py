"""Numbers keep the digits that matter near 0 and near 100 %, and unknown ones look unknown."""

import pytest

from distill.report import wording


@pytest.mark.parametrize(
    ("x", "share", "shown"),
    [
        (0.8243, True, "82.4 %"),
        (0.99962, True, "99.96 %"),
        (0.999999, True, "99.9999 %"),
        (0.00034, True, "0.034 %"),
        (2e-6, True, "2.0e-4 %"),
        (1.0, True, "100 %"),
        (1 - 1e-16, True, "100 %"),
        (1 - 1e-8, True, ">99.9999 %"),
        (0.0, True, "0 %"),
        (None, True, "–"),
        (4096.4, False, "4,096"),
        (12.345, False, "12.3"),
        (5.2e-4, False, "5.2e-4"),
        (None, False, "–"),
    ],
)
def test_values(x: float | None, share: bool, shown: str) -> None:
    assert wording.value(x, share=share) == shown


@pytest.mark.parametrize(
    ("x", "share", "shown"),
    [
        (0.0243, True, "+2.4 points"),
        (-0.0012, True, "−0.12 points"),
        (-3e-6, True, "−3.0e-4 points"),
        (0.0, True, "±0 points"),
        (-36.1, False, "−36.1"),
        (None, True, "–"),
    ],
)
def test_differences_have_a_sign_and_shares_points(x: float | None, share: bool, shown: str) -> None:
    assert wording.gap(x, share=share) == shown


@pytest.mark.parametrize(
    ("x", "share", "shown"),
    [
        *((0.0008, True, "0.08"), (0.02, True, "2.0"), (2e-5, True, "<0.01"), (0.0, True, "0"), (None, True, "?")),
        *((0.0602, False, "0.06"), (4.4e-3, False, "4.4e-3"), (0.0, False, "0")),
    ],
)
def test_spreads(x: float | None, share: bool, shown: str) -> None:
    assert wording.spread(x, share=share) == shown


def test_a_huge_z_says_no_more_than_that() -> None:
    assert [wording.deviations(z) for z in (-3.21, 0.0, 54321.0, -100.0, None)] == [
        "−3.2",
        "+0.0",
        "beyond +100",
        "beyond −100",
        "–",
    ]
