"""What every test of the SDK starts from."""

from pathlib import Path

import pytest

from fakepod import Pod


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    """A pod whose state API is in good health."""
    return Pod(tmp_path)
