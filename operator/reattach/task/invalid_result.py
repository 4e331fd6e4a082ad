"""Texts about a result that can't be stored: what is lost, and how to get it nevertheless."""

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from reattach.api.messages import Job
from reattach.api.state import JobState
from reattach.api.text import printable_json

LOGGED_CHARACTERS_MAX = 16 * 1024
"""Length of a value in the log."""
_NAMED_JOBS_MAX = 4
_JOB_RESULT_CHARACTERS_MAX = 300


def describe_value(value: Any) -> str:
    """Return the value for the log, which is the only place that keeps it."""
    try:
        return repr(value)[:LOGGED_CHARACTERS_MAX]
    except Exception as error:  # noqa: BLE001 -- classes of the task may fail in any way
        return f"a {type(value).__name__}, whose repr() raised {type(error).__name__}"


def describe_invalid_result(why: str, jobs: Iterable[Job]) -> str:
    """Return the message of `InvalidResult`.

    jobs: those of this process; the newest generation of a key comes last.
    """
    newest = {job.key: job for job in jobs}.values()
    finished = [job for job in newest if job.state is JobState.SUCCEEDED and job.handle is not None]
    text = (
        f"{why}. The task returned it after its work was done, and another attempt would, too, so no attempt follows."
    )
    text = f"{text} The log of this pod has the value."
    if not finished:
        return text
    named = finished[:_NAMED_JOBS_MAX]
    more = f", and {len(finished) - len(named)} more" if len(finished) > len(named) else ""
    jobs_text = ", ".join(_describe(job) for job in named)
    adopt = json.dumps([{"key": job.key, "handle": job.handle, "adapter": job.adapter} for job in named])
    return (
        f"{text} Finished external jobs: {printable_json(jobs_text)}{more}. To use them, correct the program and create a"
        f" TaskRun with spec.adopt: {printable_json(adopt)}. It takes them over and does not submit them again."
    )


def _describe(job: Job) -> str:
    result = "" if job.result is msgspec.UNSET else _cut(json.dumps(job.result, ensure_ascii=False))
    return f"{job.key!r} (generation {job.generation}, {job.handle}) {f'with the result {result}' if result else 'without a result'}"


def _cut(text: str) -> str:
    return text if len(text) <= _JOB_RESULT_CHARACTERS_MAX else f"{text[:_JOB_RESULT_CHARACTERS_MAX]}…"
