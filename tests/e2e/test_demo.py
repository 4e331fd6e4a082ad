"""`make demo` holds itself to what it promises; here once more, on the release that the other tests use."""

import subprocess
import sys

from realcluster import REPOSITORY, Cluster


def test_the_demo_ends_well_also_when_it_is_run_again(release: Cluster) -> None:
    command = [sys.executable, str(REPOSITORY / "hack/demo.py")]
    try:
        for _ in range(2):
            demo = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
            assert demo.returncode == 0, demo.stdout + demo.stderr
            assert "Two attempts, one job" in demo.stdout
            assert "What to try next" in demo.stdout
    finally:
        examples = REPOSITORY / "examples"
        release.kubectl(
            "delete", "-f", str(examples / "10-submit-once.yaml"), "--ignore-not-found", namespace="default"
        )
        release.kubectl("delete", "-k", str(examples / "jobserver"), "--ignore-not-found", namespace="default")
