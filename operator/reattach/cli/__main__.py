"""`python -m reattach.cli` is `kubectl reattach`."""

from reattach.cli.application import main

if __name__ == "__main__":
    main()
