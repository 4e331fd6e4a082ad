"""Airflow's durable operators, in the environment with Airflow that `hack/systems/up` prepared."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from systems.conftest import CACHE

REPOSITORY = Path(__file__).parents[2]
PYTHON = CACHE / "airflow/bin/python"


def test_durable_operators_submit_once(tmp_path: Path) -> None:
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} must exist: make systems")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST", "COV"))
    }
    paths = os.pathsep.join(str(REPOSITORY / name) for name in ("operator", "tests"))
    # Airflow warns of its own use of its own names.
    options = ["-q", "-o", "filterwarnings=", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'run'}"]
    ended = subprocess.run(
        [PYTHON, "-m", "pytest", *options, "tests/systems/airflow/durable_operators.py"],
        cwd=REPOSITORY,
        env=environment | {"PYTHONPATH": paths, "AIRFLOW_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    sys.stdout.write(ended.stdout)
    assert ended.returncode == 0, ended.stdout[-5000:]
