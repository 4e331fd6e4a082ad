"""The state API, killed -9 at one call to the API server. The environment says which: `DIE="before PATCH /status"`.

`before`: the call was never made. `after`: it was carried out, and its answer is lost with the process. Part of the path is enough.
"""

import os
import signal
from typing import Any

from reattach.cluster import Cluster
from reattach.server.__main__ import main

when, method, part = os.environ["DIE"].split(" ")
call = Cluster._call


async def dying_call(self: Cluster, made: str, path: str, **more: Any) -> bytes:
    hit = made == method and part in path
    if hit and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    answer = await call(self, made, path, **more)
    if hit and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return answer


Cluster._call = dying_call  # type: ignore[assignment,method-assign]
main()
