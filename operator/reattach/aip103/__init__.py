"""Runs a task function that was written for Airflow's AIP-103 (task state) without changes to it.

    reattach.aip103.run(my_task)              # as the last line of its file
    python -m reattach.aip103 module:my_task  # without a change of the file
    python -m reattach.aip103 module:my_task --on-cleanup module:my_hook
    python -m reattach.aip103 --manifest module:my_task --image IMAGE

In place of a module, the command also takes the path of a Python file. The function may be inside
a function under `@dag`.

The function receives the part of Airflow's context that a TaskRun has: `task_state`, `ti`,
`task_instance`, `try_number` and `run_id`. `task_state_store` is the name of `task_state` in
Airflow 3.3 and 3.4; both names work. Each use of `asset_state_store` fails the run, because the
state of an asset outlives a TaskRun. The function may take `**context`, one argument `context`, or
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

from reattach.aip103.dagfile import DecoratedTask, arguments_of, collect_tasks, install_stand_ins
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


class AssetStateStores:
    """`context["asset_state_store"]`, which a TaskRun does not have. Each use fails the run."""

    def __getitem__(self, asset: Any) -> NoReturn:
        raise PermanentFailure(_NO_ASSET_STATE)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise PermanentFailure(_NO_ASSET_STATE)


_NO_ASSET_STATE: Final = (
    "asset_state_store is not available, because the state of a TaskRun ends with it:"
    " keep the value in a system of your own, or copy the state of an earlier TaskRun with spec.stateFrom"
)


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
        "asset_state_store": AssetStateStores(),
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
        context = context_of(opened)
        positional, named = arguments_of(context)
        if inspect.iscoroutinefunction(plain):
            return _call_async(plain, context, positional, named)
        with _current(context), _translate_airflow_errors():
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
    parser.add_argument("--retries", type=int)
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
        _warn_of_policy(function)
        sys.stdout.write(json.dumps(taskrun, indent=2) + "\n")
        return
    if os.environ.get("REATTACH_ATTEMPT") == "1":
        _warn_of_retries(function, reference, arguments.retries)
        _warn_of_policy(function)
    run(function, on_cleanup=arguments.on_cleanup and _import_function(arguments.on_cleanup))


def _warn_of_retries(function: Any, reference: str, made_for: int | None) -> None:
    """Warn that the TaskRun's budgets ignore the retries of `@task`. A task can't read the budgets.

    `made_for`: the retries that `--manifest` wrote into the TaskRun, or None.
    """
    retries = arguments_of(function).get("retries") or 0
    if retries == (made_for or 0):
        return
    since = "" if made_for is None else f", which was made for retries={made_for}"
    sys.stderr.write(
        f"retries={retries} of @task has no effect: a TaskRun retries by spec.retry.budgets.application{since}. "
        f"To print a TaskRun with these retries: python -m reattach.aip103 --manifest {reference} --image IMAGE\n"
    )


def _warn_of_policy(function: Any) -> None:
    if arguments_of(function).get("retry_policy") is not None:
        sys.stderr.write(
            "retry_policy of @task has no effect: to fail the run at once, raise AirflowFailException, "
            "and for other rules use spec.retry.rules of the TaskRun\n"
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
    with collect_tasks() as tasks:
        loaded = _import_path(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    if hasattr(loaded, name):
        function: Callable[..., Any] = getattr(loaded, name)
        return function
    found = [task for task in tasks if task.function.__name__ == name] or _tasks_of_dags(loaded, name)
    if len(found) > 1:
        raise AttributeError(f"{module} must define one task {name}, not {len(found)}")
    if not found:
        raise AttributeError(f"{module} must define {name} at the level of the module, or as a task of a Dag")
    return found[0]


def _tasks_of_dags(module: types.ModuleType, name: str) -> list[DecoratedTask]:
    """Return the tasks of this name in the Dags of the module, if Airflow itself made them."""
    dags = {id(value): value for value in vars(module).values() if hasattr(value, "task_dict")}
    operators = [dag.task_dict[name] for dag in dags.values() if name in dag.task_dict]
    return [
        DecoratedTask(
            operator.python_callable,
            {"retries": operator.retries, "retry_policy": getattr(operator, "retry_policy", None)},
        )
        for operator in operators
        if hasattr(operator, "python_callable")
    ]


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


_NAMES: Final = ("task_state", "task_state_store", "ti", "task_instance", "try_number", "run_id", "asset_state_store")


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


async def _call_async(
    function: Callable[..., Any], context: dict[str, Any], positional: list[Any], named: dict[str, Any]
) -> Any:
    with _current(context), _translate_airflow_errors():
        return await function(*positional, **named)


def _current(context: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
    """Make the context that of `get_current_context`, of Airflow or of the stand-in."""
    module = sys.modules.get("airflow.sdk.execution_time.context")
    make_current = getattr(module, "set_current_context", None)
    return contextlib.nullcontext() if make_current is None else make_current(context)


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
