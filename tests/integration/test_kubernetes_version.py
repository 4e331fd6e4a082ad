"""Version of the control plane that these tests run on."""

import json
import re

from controlplane import LOCAL_MINOR, MINOR, REPOSITORY, ControlPlane

MODULES = REPOSITORY / "hack/cluster"


def test_api_server_and_kubectl_have_the_version_that_the_module_of_the_chosen_minor_pins(
    control_plane: ControlPlane,
) -> None:
    module = MODULES / ("kube" if MINOR == LOCAL_MINOR else f"minors/{MINOR}") / "go.mod"
    pinned = re.search(r"^\tk8s\.io/kubernetes (v\S+)$", module.read_text(), re.MULTILINE)
    assert pinned
    assert pinned[1].startswith(f"v{MINOR}.")
    versions = json.loads(control_plane.kubectl("version", "--output=json"))
    assert versions["serverVersion"]["gitVersion"] == pinned[1]
    assert versions["clientVersion"]["gitVersion"] == pinned[1]
