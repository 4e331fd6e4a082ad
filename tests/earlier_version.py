"""Run a module of an earlier version of Reattach: `earlier_version.py SOURCES MODULE ARGUMENTS`.

`sources` extracts such a version from the history.
"""

import argparse
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def sources(commit: str, directory: Path) -> Path:
    """Return a folder with the package of a commit.

    Skip the test where the history does not reach the commit: in a shallow clone or an archive.
    """
    git = ["git", "-C", str(REPOSITORY)]
    if subprocess.run([*git, "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True, check=False).returncode:
        pytest.skip(f"needs the history of the repository up to {commit[:7]}; run git fetch --unshallow")
    archive = subprocess.run([*git, "archive", commit, "operator"], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True)
    return directory / "operator"


def main() -> None:
    path, module, *arguments = sys.argv[1:]
    sys.path.insert(0, path)
    sys.argv = [module, *arguments]
    # Tests pass the flags of this version. In a cluster, each version has the flags of its chart.
    parse_known = argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_args = lambda *given, **named: parse_known(*given, **named)[0]  # type: ignore[method-assign]
    import reattach

    assert Path(reattach.__file__).is_relative_to(path), f"{reattach.__file__} is not of the earlier version"
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
