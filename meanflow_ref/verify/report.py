"""The HTML report: one file, figures inside, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

from matplotlib.figure import Figure

from meanflow_ref import plots
from meanflow_ref.verify.check import Result
from meanflow_ref.verify.command import margin, number

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #c62828; --bar: #4c78a8; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem }
.verdict { font-size: 1.2rem; font-weight: 600 } .good { color: var(--good) } .bad { color: var(--bad) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .5rem; text-align: right; vertical-align: top }
th:first-child, td:first-child { text-align: left }
td small { display: block; opacity: .7 } pre { overflow-x: auto; font-size: 12px }
.bar { width: 8rem } .bar div { background: var(--bar); height: .6rem; border-radius: .3rem; margin-top: .45rem }
figure { margin: 1rem 0 } img { max-width: 100%; background: #fff } figcaption { opacity: .8 }
"""


def _bar(result: Result) -> str:
    """Margin as a bar on a logarithmic scale, full at a factor of 10,000."""
    if not result.ok:
        return ""
    width = 100.0 if math.isinf(result.margin) else min(100.0, 25.0 * math.log10(max(result.margin, 1.0)))
    return f'<div style="width:{width:.0f}%"></div>'


def _row(result: Result) -> str:
    note = f"<small>{escape(result.note)}</small>" if result.note else ""
    error = f"<pre>{escape(result.error)}</pre>" if result.error else ""
    sense = {"<=": "≤", ">=": "≥"}[result.sense]
    return (
        f"<tr><td>{escape(result.name)}{note}{error}</td><td>{number(result.observed)}</td>"
        f"<td>{sense} {number(result.bound)}</td><td class={'good' if result.ok else 'bad'}>{margin(result)}</td>"
        f'<td class="bar">{_bar(result)}</td><td>{result.seconds:.1f}</td></tr>'
    )


def html_report(
    results: Sequence[Result], seconds: float, environment: Mapping[str, str], figures: Mapping[str, Figure]
) -> str:
    """The report as one HTML document."""
    failed = sum(not result.ok for result in results)
    verdict = f"{len(results)} checks run, {len(results) - failed} hold, {failed} failed, in {seconds:.0f} s"
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>meanflow-ref: {escape(verdict)}</title>",
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>",
        f"<h1>meanflow-ref verify</h1><p class='verdict {'bad' if failed else 'good'}'>{escape(verdict)}</p>",
        f"<p>{escape(' · '.join(f'{key} {value}' for key, value in environment.items()))}</p>",
    ]
    for name, figure in figures.items():
        data = base64.b64encode(plots.png(figure)).decode()
        caption = escape(plots.CAPTIONS[name])
        parts.append(f"<figure><img alt='{caption}' src='data:image/png;base64,{data}'>")
        parts.append(f"<figcaption>{caption}</figcaption></figure>")
    for group, rows in groupby(results, key=lambda result: result.group):
        parts.append(f"<h2>{escape(group)}</h2><table><tr><th>check<th>observed<th>bound<th>margin<th><th>s</tr>")
        parts += [_row(row) for row in rows]
        parts.append("</table>")
    parts.append(
        "<p>A margin is how many times better than its bound an observation is. Rows with ≥ are mutants: wrong code "
        "that the check must see.</p></html>"
    )
    return "\n".join(parts)
