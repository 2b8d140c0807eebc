"""The table of vendors and features: each cell is tried, and each that is not green has its reason."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest
from tests.features import FEATURES, VENDORS, WHY, Vendor, main

from nitinol.provider import ENTRY_POINTS


@pytest.mark.parametrize("vendor", VENDORS, ids=str)
@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_is_there_or_its_absence_has_a_reason(feature: str, vendor: Vendor) -> None:
    """A reason that is out of date is as wrong as one that is missing."""
    reason = WHY.get((feature, vendor.name))
    assert FEATURES[feature](vendor) == (reason is None), reason


def test_every_prefix_is_a_vendor_of_the_table() -> None:
    """As `pyproject.toml` names them."""
    assert {point.name for point in entry_points(group=ENTRY_POINTS)} == {vendor.name for vendor in VENDORS}


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m tests.features`."""
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("| ")]) == len(FEATURES) + 1
    assert set(WHY.values()) == {line.partition(". ")[2] for line in lines if line[:1].isdigit()}


def test_the_table_that_people_read_is_the_one_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m tests.features` again, into `providers/README.md`, if this fails."""
    page = Path(__file__).parents[2] / "providers" / "README.md"
    if not page.exists():
        pytest.skip("only in the sources")
    main()
    assert page.read_text().endswith(capsys.readouterr().out)
