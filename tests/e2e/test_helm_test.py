"""`helm test` on the real cluster, as docs/install.md shows it."""

import os
import subprocess

from controlplane import HELM
from realcluster import RELEASE_NAMESPACE, Cluster


def test_helm_test_of_a_working_installation_passes_and_leaves_no_taskrun(release: Cluster) -> None:
    command = [str(HELM), "test", "reattach", "--namespace", RELEASE_NAMESPACE]
    command += ["--kubeconfig", str(release.kind.kubeconfig_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HELM_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The installation works" in done.stdout + done.stderr
    assert release.get("taskrun", "reattach-test", "default") is None
