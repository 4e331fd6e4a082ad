"""Start of the frozen plugin: kubectl calls a link to it to complete `kubectl reattach`."""

import sys
from pathlib import Path

from reattach.cli.application import complete, main

if Path(sys.argv[0]).name.startswith("kubectl_complete"):
    complete()
main()
