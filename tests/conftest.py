"""How the tests are shared out among processes."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays in one process, for its fixtures; so do all that share the trained model, which come first."""
    items.sort(key=lambda item: item.get_closest_marker("end_to_end") is None)
    for item in items:
        end_to_end = item.get_closest_marker("end_to_end") is not None
        group = "end_to_end" if end_to_end else str(item.path.relative_to(TESTS))
        item.add_marker(pytest.mark.xdist_group(group))
