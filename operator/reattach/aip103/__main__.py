"""`python -m reattach.aip103`."""

from reattach.aip103 import main

main()
