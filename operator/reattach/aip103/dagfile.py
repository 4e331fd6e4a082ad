"""Stand-ins for the names of Airflow that a Dag file imports, for machines without Airflow.

A Dag file describes a Dag around its task functions. The stand-ins keep the functions and the
arguments of their decorators. A call of a task, which Airflow would add to the Dag, does nothing.
A call of a function under `@dag` runs it, because its tasks are defined inside.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, Final, Self

from reattach.aip103 import pendulum_names
from reattach.task.value_checks import NEVER_EXPIRE

_DEFAULT_ARGS: Final[ContextVar[dict[str, Any]]] = ContextVar("default_args")
"""The `default_args` of the DAG whose `with` block is open."""
_TASKS: Final[ContextVar["list[DecoratedTask]"]] = ContextVar("tasks")
"""The tasks of the Dag file that is being imported."""
_CONTEXT: Final[ContextVar[Mapping[str, Any]]] = ContextVar("context")
"""The context of the task function that runs."""


class DAG:
    """Stand-in for `airflow.sdk.DAG`. It keeps only `default_args`."""

    def __init__(self, dag_id: str = "", *_: Any, default_args: dict[str, Any] | None = None, **__: Any) -> None:
        self.dag_id = dag_id
        self.default_args = default_args or {}

    def __enter__(self) -> Self:
        self._token = _DEFAULT_ARGS.set(self.default_args)
        return self

    def __exit__(self, *_: object) -> None:
        _DEFAULT_ARGS.reset(self._token)


def dag(function: Callable[..., Any] | str = "", **arguments: Any) -> Any:
    """Stand-in for `@dag` and `@dag(...)`."""

    def decorate(decorated: Callable[..., Any]) -> Callable[..., DAG]:
        @functools.wraps(decorated)
        def make(*positional: Any, **named: Any) -> DAG:
            with DAG(decorated.__name__, **{name: arguments[name] for name in arguments if name != "dag_id"}) as made:
                decorated(*positional, **named)
            return made

        return make

    return decorate(function) if callable(function) else decorate


class Asset:
    """Stand-in for `airflow.sdk.Asset`. It does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Accept what Airflow's class does."""


class TaskOutput:
    """Stand-in for the result of a call of a task in a Dag file. It may be ordered by >> and <<."""

    def _ordered(self, other: Any) -> Any:
        return other

    __rshift__ = __lshift__ = __rrshift__ = __rlshift__ = _ordered


class DecoratedTask:
    """Stand-in for a function under `@task`.

    `arguments`: those of the decorator, over the `default_args` of the DAG.
    """

    def __init__(self, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
        self.function = function
        self.arguments = {**_DEFAULT_ARGS.get({}), **arguments}
        _TASKS.get([]).append(self)

    def __call__(self, *_: Any, **__: Any) -> TaskOutput:
        """Return a placeholder. Airflow would add the task to the Dag."""
        return TaskOutput()

    def __getattr__(self, name: str) -> Any:
        if name in {"expand", "expand_kwargs", "partial"}:
            message = f"{name}() makes several tasks, and a TaskRun is one task: create one TaskRun for each item"
            raise NotImplementedError(message)
        if name == "override":
            raise NotImplementedError("override() is not supported: write its arguments into @task(...)")
        raise AttributeError(name)


def task(function: Callable[..., Any] | None = None, **arguments: Any) -> Any:
    """Stand-in for `@task` and `@task(...)`."""
    if function is not None:
        return DecoratedTask(function, arguments)
    return lambda decorated: DecoratedTask(decorated, arguments)


@contextlib.contextmanager
def collect_tasks() -> Iterator[list[DecoratedTask]]:
    """Yield a list that receives each task which is defined inside the `with`."""
    tasks: list[DecoratedTask] = []
    token = _TASKS.set(tasks)
    try:
        yield tasks
    finally:
        _TASKS.reset(token)


@contextlib.contextmanager
def set_current_context(context: Mapping[str, Any]) -> Iterator[None]:
    """Stand-in for Airflow's function of this name: makes the context the current one."""
    token = _CONTEXT.set(context)
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def get_current_context() -> Mapping[str, Any]:
    """Stand-in for Airflow's function of this name."""
    try:
        return _CONTEXT.get()
    except LookupError:
        raise RuntimeError("get_current_context() must be called by a task function that runs") from None


def arguments_of(function: Any) -> dict[str, Any]:
    """Return the arguments of the function's `@task`, or of Airflow's own decorator."""
    arguments = function.arguments if isinstance(function, DecoratedTask) else getattr(function, "kwargs", {})
    return arguments if isinstance(arguments, dict) else {}


class _AirflowRescheduleException(Exception):  # noqa: N818 # Airflow named it
    def __init__(self, reschedule_date: datetime) -> None:
        super().__init__()
        self.reschedule_date = reschedule_date


_AirflowRescheduleException.__name__ = "AirflowRescheduleException"

_EXCEPTIONS: Final = {
    "AirflowFailException": type("AirflowFailException", (Exception,), {}),
    "AirflowRescheduleException": _AirflowRescheduleException,
}
_CONTENTS: Final[dict[str, dict[str, Any]]] = {
    "airflow": {},
    "airflow.exceptions": _EXCEPTIONS,
    "airflow.sdk": {
        "Asset": Asset,
        "Context": dict,
        "DAG": DAG,
        "NEVER_EXPIRE": NEVER_EXPIRE,
        "dag": dag,
        "get_current_context": get_current_context,
        "task": task,
    },
    "airflow.sdk.exceptions": _EXCEPTIONS,
    "airflow.sdk.execution_time": {},
    "airflow.sdk.execution_time.context": {"NEVER_EXPIRE": NEVER_EXPIRE, "set_current_context": set_current_context},
}


def install_stand_ins(*, always: bool = False) -> None:
    """Provide Airflow's names if Airflow is not installed, or `always`.

    Provide those of pendulum, with which Dag files write dates, if it is not installed.
    """
    if importlib.util.find_spec("pendulum") is None:
        _add_module("pendulum", pendulum_names.NAMES)
    if not always and importlib.util.find_spec("airflow") is not None:
        return
    for name, names in _CONTENTS.items():
        module = _add_module(name, names)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    sys.meta_path.insert(0, _MissingModules())


def _add_module(name: str, names: Mapping[str, Any]) -> types.ModuleType:
    module = types.ModuleType(name, "Names that a Dag file imports.")
    module.__path__ = []  # makes it a package, which may contain modules
    module.__dict__.update(names)
    module.__dict__["__getattr__"] = _refuse_name(name)
    sys.modules[name] = module
    return module


def _refuse_name(module: str) -> Callable[[str], Any]:
    def refuse(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        # A module that exists but was not imported yet would be a child; none is left to import.
        raise ImportError(_missing(f"{module}.{name}"), name=module)

    return refuse


class _MissingModules(importlib.abc.MetaPathFinder):
    """Finder that refuses modules of Airflow which have no stand-in."""

    def find_spec(  # type: ignore[explicit-override] # typing.override exists since Python 3.12
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 # part of the interface
        target: types.ModuleType | None = None,  # noqa: ARG002 # part of the interface
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.startswith("airflow."):
            raise ModuleNotFoundError(_missing(fullname), name=fullname)
        return None


def _missing(name: str) -> str:
    if name.startswith("pendulum"):
        return f"Reattach has no stand-in for {name}: install pendulum in the image"
    is_provider = name.startswith("airflow.providers")
    package = "its provider package, apache-airflow-providers-…," if is_provider else "apache-airflow-task-sdk"
    return (
        f"Reattach has no stand-in for {name} of Airflow: install {package} in the image, "
        "or move the task function into a file that does not import it"
    )


def seconds_of(value: timedelta | float) -> float:
    """Return the seconds of one of Airflow's durations, which is a timedelta or a number."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)
