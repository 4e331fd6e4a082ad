"""What a person sees of the SDK in `kubectl logs`, as the program of the task has set up logging or not."""

import subprocess
import sys

import pytest

SAYS = "from reattach.task.log import configure; configure(); configure(); logging.getLogger('reattach').info('reattached to %s', 'job-1')"


@pytest.mark.parametrize(
    "before,shown",
    [
        pytest.param("", 1, id="nothing set up"),
        pytest.param("logging.basicConfig(level=logging.WARNING);", 0, id="a level of its own"),
        pytest.param("logging.basicConfig(level=logging.INFO);", 1, id="its own, at INFO"),
        pytest.param("logging.getLogger('reattach').setLevel(logging.ERROR);", 0, id="a level for the SDK"),
    ],
)
def test_what_the_sdk_does_is_shown_once_where_the_task_wants_it(before: str, shown: int) -> None:
    ran = _run(f"import logging; {before} {SAYS}")
    assert ran.count("reattached to job-1") == shown


def test_logging_that_is_set_up_later_takes_over() -> None:
    ran = _run(
        f"import logging; {SAYS}; logging.basicConfig(level=logging.INFO, format='mine: %(message)s', force=True); {SAYS}"
    )
    first, second = ran.splitlines()
    assert "INFO" in first
    assert second == "mine: reattached to job-1"


@pytest.mark.parametrize(
    "after,shown",
    [
        pytest.param("logging.basicConfig(level=logging.WARNING);", 0, id="a level of its own"),
        pytest.param("logging.basicConfig(level=logging.INFO);", 1, id="its own, at INFO"),
        pytest.param(
            "logging.basicConfig(level=logging.WARNING); logging.getLogger('reattach').setLevel(logging.DEBUG);",
            1,
            id="a level for the SDK",
        ),
    ],
)
def test_and_its_level_counts(after: str, shown: int) -> None:
    ran = _run(f"import logging; from reattach.task.log import configure; configure(); {after} {SAYS}")
    assert ran.count("reattached to job-1") == shown


def _run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    return done.stderr
