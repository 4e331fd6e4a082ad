"""How `explain` shows a story to people. Pure: a story in, lines out."""

import json
from datetime import datetime

from reattach.api.reasons import SENTENCES, Outcome, Reason
from reattach.api.state import JobState
from reattach.api.taskrun import Attempt
from reattach.cli.hold_options import ANSWERS, Way
from reattach.cli.report import JobStory, Story
from reattach.cli.text import NOTHING, PLAIN, Cell, Paint, ago, count, duration, one_line, table

_INDENT = "  "
_OUTCOME_COLOURS = {Outcome.SUCCEEDED: "green", Outcome.FAILED: "red", Outcome.CANCELLED: "yellow"}
_TROUBLE = {Reason.QUOTA_EXCEEDED, Reason.POD_REFUSED, Reason.POD_NAME_TAKEN}
_JOB_COLOURS = {
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.ACTIVE: "cyan",
    JobState.INTENDED: "yellow",
    JobState.UNKNOWN: "yellow",
    JobState.NOT_FOUND: "yellow",
    JobState.ORPHANED: "red",
}


def lines_of(story: Story, now: datetime, paint: Paint = PLAIN) -> list[str]:
    """All of it, section by section; a section that has nothing to say is left out."""
    sections = [
        _head(story, now, paint),
        _section("Attempts", _attempts(story, now, paint), paint),
        _section("Budgets", _budgets(story, paint), paint),
        _section("External jobs", _jobs(story, now, paint), paint),
        _section("What was decided", [_INDENT + one_line(said) for said in story.decisions], paint),
        _section("What happens next", [_INDENT + one_line(said) for said in story.next], paint),
        _section("What you can do", _ways(story.ways, paint), paint),
        _section("Events", _events(story, now, paint), paint),
        _section("What could not be seen", [_INDENT + one_line(note) for note in story.notes], paint),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section).splitlines()


def _section(title: str, lines: list[str], paint: Paint) -> list[str]:
    return [paint("bold", title), *lines] if lines else []


def _head(story: Story, now: datetime, paint: Paint) -> list[str]:
    rows: list[tuple[str, str | Cell]] = [("TaskRun", f"{story.name} in namespace {story.namespace}")]
    rows.append(("Status", Cell(story.reason or NOTHING, _colour_of(story))))
    if story.message:
        rows.append(("", one_line(_without_options(story.reason, story.message))))
    if story.result is not None:
        rows.append(("Result", one_line(story.result)))
    if story.created is not None:
        rows.append(("Created", ago(story.created, now)))
    return [paint("bold", story.headline), "", *table(rows, paint, indent=_INDENT)]


def _colour_of(story: Story) -> str | None:
    if story.outcome is not None:
        return _OUTCOME_COLOURS.get(Outcome(story.outcome)) if story.outcome in set(Outcome) else None
    if any(hold.answer is None for hold in story.holds) or story.reason in _TROUBLE:
        return "yellow"
    return "cyan" if story.reason == Reason.RUNNING else None


# -- attempts -------------------------------------------------------------------------------------------------------


def _attempts(story: Story, now: datetime, paint: Paint) -> list[str]:
    if not story.attempts:
        return []
    rows: list[tuple[str | Cell, ...]] = [_titles("#", "STARTED", "TOOK", "ENDED BY", "CHARGED TO", "WHY")]
    rows += [_attempt(attempt, now) for attempt in story.attempts]
    lines = table(rows, paint, indent=_INDENT)
    if story.hidden_attempts:
        lines.insert(
            1, f"{_INDENT}… {count(story.hidden_attempts, 'earlier attempt')} left the list (spec.historyLimit)"
        )
    return lines


def _attempt(attempt: Attempt, now: datetime) -> tuple[str | Cell, ...]:
    number = str(attempt.number) if attempt.purpose == "Run" else f"{attempt.number} ({attempt.purpose.lower()})"
    started = ago(attempt.start_time, now) if attempt.start_time else NOTHING
    if attempt.finish_time is None:
        took = duration(now - attempt.start_time) if attempt.start_time else NOTHING
        where = f"on {attempt.node}" if attempt.node else "on no node yet"
        return number, started, took, Cell("(not ended)", "cyan"), NOTHING, attempt.message or where
    took = duration(attempt.finish_time - attempt.start_time) if attempt.start_time else NOTHING
    colour = "green" if attempt.cause == "Succeeded" else "red"
    return number, started, took, Cell(attempt.cause or NOTHING, colour), attempt.charged_to or NOTHING, _why(attempt)


def _why(attempt: Attempt) -> str:
    parts = [attempt.reason or ""]
    if attempt.exit_code is not None:
        parts.append(f"exit code {attempt.exit_code}")
    if attempt.end == "Presumed":
        parts.append("presumed, as no kubelet reported it")
    how = ", ".join(part for part in parts if part)
    said = one_line(attempt.message or "", 200)
    return ": ".join(part for part in (how, said) if part) or NOTHING


def _budgets(story: Story, paint: Paint) -> list[str]:
    if not any(one.charged for one in story.budgets):
        return []
    rows: list[tuple[str | Cell, ...]] = []
    for one in story.budgets:
        used_up = one.charged > one.allowed
        text = (
            f"{one.charged} of {one.allowed} used"
            if not used_up
            else f"used up ({one.charged} charged, {one.allowed} allowed)"
        )
        granted = f", {count(one.granted, 'grant')} included" if one.granted else ""
        rows.append((one.name, Cell(text + granted, "red" if used_up else None)))
    return table(rows, paint, indent=_INDENT)


# -- external jobs --------------------------------------------------------------------------------------------------


def _jobs(story: Story, now: datetime, paint: Paint) -> list[str]:
    if not story.external_jobs:
        return []
    rows: list[tuple[str | Cell, ...]] = [_titles("KEY", "GEN", "STATE", "HANDLE", "ADAPTER", "SUBMITTED")]
    for job in story.external_jobs:
        submitted = ago(job.submitted_time, now) if job.submitted_time else NOTHING
        state = Cell(job.state + (", held" if job.held else ""), "yellow" if job.held else _job_colour(job.state))
        handle = one_line(job.handle) if job.handle else NOTHING
        rows.append((one_line(job.key), str(job.generation), state, handle, job.adapter or NOTHING, submitted))
    lines = table(rows, paint, indent=_INDENT)
    for job in story.external_jobs:
        lines += [f"{_INDENT}{one_line(job.key)}: {said}" for said in _said_of(job)]
    return lines


def _said_of(job: JobStory) -> list[str]:
    said = [one_line(job.message, 500)] if job.message else []
    if job.url:
        said.append(one_line(job.url))
    if job.detached:
        said.append("detached: the TaskRun may succeed while it runs on")
    return said


def _job_colour(state: str) -> str | None:
    return _JOB_COLOURS.get(JobState(state)) if state in set(JobState) else None


# -- the rest -------------------------------------------------------------------------------------------------------


def _ways(ways: tuple[Way, ...], paint: Paint) -> list[str]:
    lines = []
    for way in ways:
        lines += [_INDENT + paint("cyan", way.command), f"{_INDENT}{_INDENT}{one_line(way.what)}"]
    return lines


def _events(story: Story, now: datetime, paint: Paint) -> list[str]:
    rows: list[tuple[str | Cell, ...]] = [
        (
            ago(event.time, now) if event.time else NOTHING,
            Cell(event.reason, "yellow" if event.type == "Warning" else None),
            one_line(_without_options(event.reason, event.message), 300),
        )
        for event in story.events
    ]
    return table(rows, paint, indent=_INDENT) if rows else []


def _without_options(reason: str, message: str) -> str:
    """Return the message, but only its first sentence for a hold: the options and the jobs have sections of their own."""
    return SENTENCES[Reason(reason)] if reason in ANSWERS else message


def _titles(*titles: str) -> tuple[Cell, ...]:
    return tuple(Cell(title, "dim") for title in titles)


def shown_value(text: str, most: int = 60) -> str:
    """A JSON text in one line of a table."""
    return one_line(json.dumps(json.loads(text), ensure_ascii=False), most)
