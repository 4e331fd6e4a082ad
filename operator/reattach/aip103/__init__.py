"""Runs a task function that was written for Airflow's AIP-103 (task state) without changes to it.

    reattach.aip103.run(my_task)              # as the last line of its file
    python -m reattach.aip103 module:my_task  # without a change of the file
    python -m reattach.aip103 module:my_task --on-cleanup module:my_hook
    python -m reattach.aip103 --manifest module:my_task --image IMAGE

In place of a module, the command also takes the path of a Python file.

The function receives the part of Airflow's context that a TaskRun has: `task_state`, `ti`,
`task_instance`, `try_number` and `run_id`. `task_state_store` is the name of `task_state` in
Airflow 3.3; both names work. The function may take `**context`, one argument `context`, or
arguments of these names. It may be async, and Airflow's `@task` may wrap it. Its return value is
the result of the TaskRun.

`on_cleanup` takes the context in the same ways. It is called if the TaskRun ends without success,
for example to cancel a job whose id the function stored in `task_state`. It can't change
`task_state`.

Three rules differ from Airflow:

* A value over 64 KiB is rejected, and not stored with a warning.
* A process that a later attempt has fenced gets `Fenced`, and not the default.
* No key expires while the TaskRun is unfinished.

Two features do not exist, because the state of a TaskRun is deleted with the TaskRun:
`clear_on_success`, and state that outlives a manual clear.
"""

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

from reattach.aip103.dagfile import arguments_of, install_stand_ins
from reattach.aip103.manifest import build_taskrun
from reattach.errors import NotReady, PermanentFailure
from reattach.task.cleanup import CleanupTask
from reattach.task.context import Task, TaskContext, task
from reattach.task.settings import PATIENCE_SECONDS
from reattach.task.state import State
from reattach.task.value_checks import NEVER_EXPIRE

__all__ = ["NEVER_EXPIRE", "TaskInstance", "TaskState", "context_of", "main", "run", "run_in"]


class TaskState:
    """`context["task_state"]`, with exactly the methods that AIP-103 defines.

    `set` raises `ValueError` for None, NaN, Infinity, a value that is not JSON, and one over
    64 KiB. `retention` None means 30 days.
    """

    def __init__(self, state: State) -> None:
        self._state = state

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or `default` if the key is absent."""
        return self._state.get(key, default)

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        """Store the value, over an existing one if there is one."""
        self._state.set(key, value, retention=retention)

    def delete(self, key: str) -> None:
        """Remove the key if it exists."""
        self._state.delete(key)

    def clear(self) -> None:
        """Remove all keys."""
        self._state.clear()

    async def aget(self, key: str, default: Any = None) -> Any:
        """`get` for async code."""
        return await self._state.aget(key, default)

    async def aset(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        """`set` for async code."""
        await self._state.aset(key, value, retention=retention)

    async def adelete(self, key: str) -> None:
        """`delete` for async code."""
        await self._state.adelete(key)

    async def aclear(self) -> None:
        """`clear` for async code."""
        await self._state.aclear()


@dataclass(frozen=True)
class TaskInstance:
    """`context["ti"]`, with the attributes that a TaskRun has. `try_number` counts from 1."""

    try_number: int
    task_id: str
    run_id: str
    map_index: int = -1


def context_of(opened: Task | CleanupTask) -> dict[str, Any]:
    """Return the context that Airflow would pass to the function."""
    state = TaskState(opened.state)
    instance = TaskInstance(try_number=opened.attempt, task_id=opened.name, run_id=f"{opened.namespace}/{opened.name}")
    return {
        "task_state": state,
        "task_state_store": state,
        "ti": instance,
        "task_instance": instance,
        "try_number": instance.try_number,
        "run_id": instance.run_id,
    }


def run(
    function: Callable[..., Any],
    *,
    patience: float = PATIENCE_SECONDS,
    on_cleanup: Callable[..., Any] | None = None,
) -> Any:
    """Run `function` as the task, and return its result, which is also the TaskRun's result.

    See `reattach.run`. `on_cleanup` takes the context as `function` does.
    """
    handler = None if on_cleanup is None else handler_of(on_cleanup)
    return run_in(task(patience=patience, on_cleanup=handler), function)


def run_in(context: TaskContext, function: Callable[..., Any]) -> Any:
    """Run `function` in a context that you made yourself. See `run`."""
    return context.run(handler_of(function))


def handler_of(function: Callable[..., Any]) -> Callable[[Task | CleanupTask], Any]:
    """Return a function for `reattach.run`, or for its `on_cleanup`, that calls `function`.

    Raises:
        TypeError: `function` requires arguments that the context does not have.
    """
    # Airflow's @task wraps the function and keeps it under this name.
    plain = getattr(function, "function", function)
    arguments_of = _arguments_from_context(plain)

    def body(opened: Task | CleanupTask) -> Any:
        positional, named = arguments_of(context_of(opened))
        if inspect.iscoroutinefunction(plain):
            return _call_async(plain, positional, named)
        with _translate_airflow_errors():
            return plain(*positional, **named)

    return body


def main() -> None:
    """Run a task function, or print its TaskRun.

    Usage: `python -m reattach.aip103 [--manifest --image IMAGE] FILE:function`.
    FILE is a module or the path of a Python file.
    """
    usage = (
        "python -m reattach.aip103 module:function [--on-cleanup module:function]\n"
        "       python -m reattach.aip103 --manifest module:function --image IMAGE"
    )
    parser = _Parser(prog="python -m reattach.aip103", usage=usage, allow_abbrev=False)
    parser.add_argument("function", metavar="module:function", type=_reference)
    parser.add_argument("--on-cleanup", metavar="module:function", type=_reference)
    parser.add_argument("--manifest", action="store_true")
    parser.add_argument("--image")
    arguments = parser.parse_args()
    if arguments.manifest != (arguments.image is not None):
        parser.error("--manifest and --image must be set together")
    install_stand_ins(always=arguments.manifest)
    function = _import_function(arguments.function)
    reference = ":".join(arguments.function)
    if arguments.manifest:
        try:
            taskrun = build_taskrun(reference, arguments_of(function), arguments.image)
        except ValueError as error:
            parser.error(str(error))
        sys.stdout.write(json.dumps(taskrun, indent=2) + "\n")
        return
    _warn_of_retries(function, reference)
    run(function, on_cleanup=arguments.on_cleanup and _import_function(arguments.on_cleanup))


def _warn_of_retries(function: Any, reference: str) -> None:
    """Warn at the first attempt that only the TaskRun's budgets count. A task can't read them."""
    retries = arguments_of(function).get("retries")
    if retries and os.environ.get("REATTACH_ATTEMPT") == "1":
        sys.stderr.write(
            f"retries={retries} of @task has no effect: a TaskRun retries by spec.retry.budgets.application. "
            f"To print a TaskRun with these retries: python -m reattach.aip103 --manifest {reference} --image IMAGE\n"
        )


class _Parser(argparse.ArgumentParser):
    """Parser that exits with code 1 on an error, like a task that fails."""

    def error(self, message: str) -> NoReturn:  # type: ignore[explicit-override] # typing.override exists since Python 3.12
        self.exit(1, f"{self.format_usage()}{self.prog}: {message}\n")


def _reference(text: str) -> tuple[str, str]:
    module, _, name = text.partition(":")
    if not module or not name:
        raise argparse.ArgumentTypeError(f"must be module:function, not {text!r}")
    return module, name


def _import_function(reference: tuple[str, str]) -> Callable[..., Any]:
    module, name = reference
    loaded = _import_path(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    try:
        function: Callable[..., Any] = getattr(loaded, name)
    except AttributeError:
        raise AttributeError(f"{module} must define {name} at the level of the module") from None
    return function


def _import_path(path: Path) -> types.ModuleType:
    """Import a file like a module of its folder, so that it may import files beside it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"{path} must be a Python file")
    sys.path.insert(0, str(path.parent.absolute()))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


_NAMES: Final = ("task_state", "task_state_store", "ti", "task_instance", "try_number", "run_id")


def _arguments_from_context(
    function: Callable[..., Any],
) -> "Callable[[dict[str, Any]], tuple[list[Any], dict[str, Any]]]":
    """Return a function that picks the arguments of `function` from the context.

    Raises:
        TypeError: `function` requires other arguments. Raised early, before the state is opened.
    """
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    takes_one = not takes_all and [parameter.name for parameter in parameters] == ["context"]

    def arguments_of(context: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        if takes_one:
            return [context], {}
        return [], context if takes_all else {name: context[name] for name in signature.parameters if name in context}

    positional, named = arguments_of(dict.fromkeys(_NAMES))
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        raise TypeError(f"{function}: {error}; a task function may take only {', '.join(_NAMES)}") from None
    return arguments_of


async def _call_async(function: Callable[..., Any], positional: list[Any], named: dict[str, Any]) -> Any:
    with _translate_airflow_errors():
        return await function(*positional, **named)


@contextlib.contextmanager
def _translate_airflow_errors() -> Iterator[None]:
    """Raise our exception for Airflow's.

    `AirflowFailException` means: do not retry. `AirflowRescheduleException` means: start again at
    `reschedule_date`, because something is not ready.
    """
    try:
        yield
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        if "AirflowFailException" in names:
            raise PermanentFailure(str(error)) from error
        if "AirflowRescheduleException" in names and isinstance(
            date := getattr(error, "reschedule_date", None), datetime
        ):
            seconds = max(0.0, (date - datetime.now(date.tzinfo)).total_seconds())
            raise NotReady(seconds, f"Airflow's task is rescheduled for {date.isoformat()}") from error
        raise
