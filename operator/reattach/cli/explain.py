"""Text of `explain`: a report in, lines out. Pure."""

import json
from datetime import datetime

from reattach.api.reasons import SENTENCES, Outcome, Reason
from reattach.api.state import JobState
from reattach.api.taskrun import Attempt
from reattach.api.text import one_line, printable
from reattach.cli.hold_options import ACTIONS, ResolutionOption
from reattach.cli.report import JobReport, RunReport
from reattach.cli.text import NOTHING, PLAIN, Cell, Styler, ago, count, duration, table
from reattach.planner.textformat import last_line_first

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
    JobState.CANCELLING: "yellow",
    JobState.ORPHANED: "red",
}


def format_report(report: RunReport, now: datetime, style: Styler = PLAIN) -> list[str]:
    """Return the report section by section; empty sections are left out."""
    sections = [
        _head(report, now, style),
        _section("Attempts", _attempts(report, now, style), style),
        _section("Budgets", _budgets(report, style), style),
        _section("External jobs", _jobs(report, now, style), style),
        _section("What was decided", [_INDENT + text for text in report.decisions], style),
        _section("What happens next", [_INDENT + text for text in report.next], style),
        _section("What you can do", _options(report.ways, style), style),
        _section("Events", _events(report, now, style), style),
        _section("What could not be read", [_INDENT + one_line(note) for note in report.notes], style),
    ]
    filled = [section for section in sections if section]
    return [line for section in filled[:-1] for line in (*section, "")] + filled[-1]


def _section(title: str, lines: list[str], style: Styler) -> list[str]:
    return [style("bold", title), *lines] if lines else []


def _head(report: RunReport, now: datetime, style: Styler) -> list[str]:
    rows: list[tuple[str, str | Cell]] = [("TaskRun", f"{report.name} in namespace {report.namespace}")]
    rows.append(("Status", Cell(report.reason or NOTHING, _colour_of(report))))
    if report.message:
        rows.append(("", one_line(_without_options(report.reason, report.message))))
    if report.result is not None:
        rows.append(("Result", one_line(report.result)))
    if report.created is not None:
        rows.append(("Created", ago(report.created, now)))
    return [style("bold", report.headline), "", *table(rows, style, indent=_INDENT)]


def _colour_of(report: RunReport) -> str | None:
    if report.outcome is not None:
        return _OUTCOME_COLOURS.get(Outcome(report.outcome)) if report.outcome in set(Outcome) else None
    if any(hold.answer is None for hold in report.holds) or report.reason in _TROUBLE:
        return "yellow"
    return "cyan" if report.reason == Reason.RUNNING else None


# -- attempts --------------------------------------------------------------------------------------


def _attempts(report: RunReport, now: datetime, style: Styler) -> list[str]:
    if not report.attempts:
        return []
    rows: list[tuple[str | Cell, ...]] = [_titles("#", "STARTED", "TOOK", "ENDED BY", "CHARGED TO", "WHY")]
    rows += [_attempt(attempt, now) for attempt in report.attempts]
    lines = table(rows, style, indent=_INDENT)
    if report.hidden_attempts:
        hidden = f"{count(report.hidden_attempts, 'earlier attempt')} no longer listed (spec.historyLimit)"
        causes = ", ".join(f"{one.count} by {printable(one.cause)}" for one in report.folded_attempts)
        lines.insert(1, f"{_INDENT}… {hidden}{f': {causes}' if causes else ''}")
    return lines


def _attempt(attempt: Attempt, now: datetime) -> tuple[str | Cell, ...]:
    number = str(attempt.number) if attempt.purpose == "Run" else f"{attempt.number} ({attempt.purpose.lower()})"
    started = ago(attempt.start_time, now) if attempt.start_time else NOTHING
    if attempt.finish_time is None:
        took = duration(now - attempt.start_time) if attempt.start_time else NOTHING
        where = f"on {attempt.node}" if attempt.node else "on no node yet"
        return number, started, took, Cell("(not ended)", "cyan"), NOTHING, attempt.message or where
    took = duration(attempt.finish_time - attempt.start_time) if attempt.start_time else NOTHING
    colour = {"Succeeded": "green", "Waiting": None}.get(attempt.cause or "", "red")
    return (
        number,
        started,
        took,
        Cell(attempt.cause or NOTHING, colour),
        attempt.charged_to or NOTHING,
        _reason_cell(attempt),
    )


def _reason_cell(attempt: Attempt) -> str:
    parts = [attempt.reason or ""]
    if attempt.exit_code is not None:
        parts.append(f"exit code {attempt.exit_code}")
    if attempt.end == "Presumed":
        parts.append("presumed, because no kubelet reported it")
    how = ", ".join(part for part in parts if part)
    text = one_line(last_line_first(attempt.message or ""), 200)
    return ": ".join(part for part in (how, text) if part) or NOTHING


def _budgets(report: RunReport, style: Styler) -> list[str]:
    if not any(one.charged for one in report.budgets):
        return []
    rows: list[tuple[str | Cell, ...]] = []
    for one in report.budgets:
        text = (
            f"{one.charged} of {one.allowed} used"
            if not one.used_up
            else f"used up ({one.charged} charged, {one.allowed} allowed)"
        )
        granted = f", {count(one.granted, 'grant')} included" if one.granted else ""
        rows.append((one.name, Cell(text + granted, "red" if one.used_up else None)))
    return table(rows, style, indent=_INDENT)


# -- external jobs ---------------------------------------------------------------------------------


def _jobs(report: RunReport, now: datetime, style: Styler) -> list[str]:
    if not report.external_jobs:
        return []
    rows: list[tuple[str | Cell, ...]] = [_titles("KEY", "GEN", "STATE", "HANDLE", "ADAPTER", "SUBMITTED")]
    for job in report.external_jobs:
        state = Cell(job.state + (", held" if job.held else ""), "yellow" if job.held else _job_colour(job.state))
        handle, adapter = job.handle or NOTHING, job.adapter or NOTHING
        rows.append((job.key, str(job.generation), state, handle, adapter, _submitted(job, now)))
    lines = table(rows, style, indent=_INDENT)
    for job in report.external_jobs:
        lines += [f"{_INDENT}{job.key}: {text}" for text in _job_notes(job)]
    return lines


def _submitted(job: JobReport, now: datetime) -> str:
    if job.submitted_time is not None:
        return ago(job.submitted_time, now)
    if job.handle_time is not None and not job.why:
        # The state can't be read, and the status has only the time of the handle, which is later.
        return f"at least {ago(job.handle_time, now)}"
    return NOTHING


def _job_notes(job: JobReport) -> list[str]:
    text = [one_line(job.message, 500)] if job.message else []
    if job.url:
        text.append(job.url)
    if job.detached:
        text.append("detached: the TaskRun can succeed while this job runs")
    return text


def _job_colour(state: str) -> str | None:
    return _JOB_COLOURS.get(JobState(state)) if state in set(JobState) else None


# -- the rest --------------------------------------------------------------------------------------


def _options(options: tuple[ResolutionOption, ...], style: Styler) -> list[str]:
    lines = []
    for option in options:
        lines += [_INDENT + style("cyan", option.command), f"{_INDENT}{_INDENT}{option.what}"]
    return lines


def _events(report: RunReport, now: datetime, style: Styler) -> list[str]:
    rows: list[tuple[str | Cell, ...]] = [
        (
            ago(event.time, now) if event.time else NOTHING,
            Cell(event.reason, "yellow" if event.type == "Warning" else None),
            one_line(_without_options(event.reason, event.message), 300),
        )
        for event in report.events
    ]
    return table(rows, style, indent=_INDENT) if rows else []


def _without_options(reason: str, message: str) -> str:
    """Return the message; for a hold only the first sentence, because sections list the rest."""
    return SENTENCES[Reason(reason)] if reason in ACTIONS else message


def _titles(*titles: str) -> tuple[Cell, ...]:
    return tuple(Cell(title, "dim") for title in titles)


def shown_value(text: str, most: int = 60) -> str:
    """Return a JSON text in one line, for a table."""
    return one_line(json.dumps(json.loads(text), ensure_ascii=False), most)
