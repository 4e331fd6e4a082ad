"""Plot of the results as SVG: throughput with its spread, and CPU time per run by process."""

from collections.abc import Iterator, Sequence
from html import escape

from bench import kinds
from bench.kinds import Kind
from bench.results import Results, Summary

WIDTH, LEFT, RIGHT = 960, 150, 930
BAR, GAP, HEAD = 30, 18, 76
COLORS = {Kind.TASKRUN: "#2563eb", Kind.JOB: "#64748b", Kind.BARE: "#94a3b8"}
PARTS = (
    ("API server", "#2563eb", (kinds.API_SERVER,)),
    ("etcd", "#93c5fd", (kinds.ETCD,)),
    ("controller manager", "#64748b", (kinds.CONTROLLER_MANAGER,)),
    ("operator or loop", "#16a34a", (kinds.OPERATOR, kinds.LOOP)),
)
FONT = 'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="14"'
TEXT, MUTED, LINE = "#0f172a", "#64748b", "#e2e8f0"


def plot_of(results: Results) -> str:
    """Return the SVG."""
    found = results.kinds
    block = HEAD + len(found) * (BAR + GAP) + 20
    height = 2 * block + 16
    policies = "with" if results.policies else "without"
    limits = "default limits" if results.defaults else "client limits raised"
    caption = f"{results.rounds} rounds of {results.runs:,} objects, {results.machine.cores} cores, {limits}, {policies} admission policies"
    title = "Reattach compared with the Job controller: runs per minute, and CPU time per run"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {FONT} role="img" aria-labelledby="title">',
        f'  <title id="title">{escape(title)}</title>',
        f'  <rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>',
        *_throughput(found, 0),
        *_cpu(found, block),
        f'  <text x="20" y="{height - 14}" fill="{MUTED}" font-size="12">{escape(caption)}</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _throughput(found: Sequence[Summary], top: int) -> Iterator[str]:
    highest = max(each.runs_per_minute.high for each in found)
    scale = (RIGHT - LEFT - 150) / highest
    yield _heading(top, "Runs per minute", "median; the line spans the lowest and the highest round")
    for number, each in enumerate(found):
        rate, y = each.runs_per_minute, top + HEAD + number * (BAR + GAP)
        middle = y + BAR / 2
        low, high = LEFT + rate.low * scale, LEFT + rate.high * scale
        yield _label(middle, each)
        yield f'  <rect x="{LEFT}" y="{y}" width="{rate.median * scale:.1f}" height="{BAR}" rx="4" fill="{COLORS[each.kind]}"/>'
        yield (
            f'  <path d="M{low:.1f} {middle:g}H{high:.1f}M{low:.1f} {middle - 6:g}v12M{high:.1f} {middle - 6:g}v12" '
            f'stroke="{TEXT}" stroke-width="1.6" fill="none"/>'
        )
        ratio = (
            f"  ({each.ratio.median:.2f} \N{MULTIPLICATION SIGN} Job)"
            if each.ratio and each.kind is not Kind.JOB
            else ""
        )
        yield _value(high + 12, middle, f"{rate.median:,.0f}{ratio}")


def _cpu(found: Sequence[Summary], top: int) -> Iterator[str]:
    totals = [sum(_parts_of(each)) for each in found]
    scale = (RIGHT - LEFT - 90) / max(totals)
    yield _heading(top, "CPU time per run, in milliseconds", "median; without kwok and the benchmark's client")
    x = float(LEFT)
    for name, color, _ in PARTS:
        yield f'  <rect x="{x:g}" y="{top + 54}" width="12" height="12" rx="2" fill="{color}"/>'
        yield f'  <text x="{x + 18:g}" y="{top + 64}" fill="{TEXT}" font-size="12">{name}</text>'
        x += 34 + 7.6 * len(name)
    for number, (each, total) in enumerate(zip(found, totals, strict=True)):
        y, x = top + HEAD + number * (BAR + GAP), float(LEFT)
        yield _label(y + BAR / 2, each)
        for (_, color, _), value in zip(PARTS, _parts_of(each), strict=True):
            width = value * scale
            yield f'  <rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{color}"/>'
            if width > 34:
                dark = color == "#93c5fd"
                yield (
                    f'  <text x="{x + width / 2:.1f}" y="{y + BAR / 2 + 4:g}" text-anchor="middle" fill="{TEXT if dark else "#ffffff"}" '
                    f'font-size="12">{value:.1f}</text>'
                )
            x += width
        yield _value(x + 12, y + BAR / 2, f"{total:.1f}")


def _parts_of(each: Summary) -> list[float]:
    return [sum(each.cpu[name].median for name in names if name in each.cpu) for _, _, names in PARTS]


def _heading(top: int, title: str, note: str) -> str:
    return (
        f'  <path d="M20 {top + 44}H{WIDTH - 20}" stroke="{LINE}"/>\n'
        f'  <text x="20" y="{top + 34}" fill="{TEXT}" font-weight="bold">{escape(title)}</text>\n'
        f'  <text x="{WIDTH - 20}" y="{top + 34}" text-anchor="end" fill="{MUTED}" font-size="12">{escape(note)}</text>'
    )


def _label(middle: float, each: Summary) -> str:
    return f'  <text x="{LEFT - 12}" y="{middle + 5:g}" text-anchor="end" fill="{TEXT}">{each.kind.label}</text>'


def _value(x: float, middle: float, text: str) -> str:
    return f'  <text x="{x:.1f}" y="{middle + 5:g}" fill="{TEXT}">{escape(text)}</text>'
