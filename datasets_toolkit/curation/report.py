"""A plan as a table for the terminal and as one page of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from datasets_toolkit.curation.pages import bars, figure, page, table
from datasets_toolkit.curation.plan import Plan, Totals
from datasets_toolkit.schema import ByteImage
from datasets_toolkit.text_tables import sparkline, text_table

_HEAD = ("", "clips", "hours", "people", "sources")
_DATASETS = ("data set", *_HEAD[1:], "rejected clips", "hours")


@dataclass(frozen=True, kw_only=True)
class Example:
    """A clip near a limit: its id, what speaks for or against it, and a picture (h w 3) where one could be read."""

    clip: str
    text: str
    kept: bool
    picture: ByteImage | None


def plan_text(plan: Plan, plain: bool = False) -> str:
    """A plan as plain text; ``plain`` keeps to ASCII."""
    rows = [("kept", *_numbers(plan.kept)), ("rejected", *_numbers(plan.rejected))]
    parts = [text_table(_HEAD, rows)]
    if len(plan.datasets) > 1:
        parts.append(text_table(_DATASETS, _datasets(plan)))
    if plan.reasons:
        reasons = [(one.text, one.clips, one.hours, one.alone, one.alone_hours) for one in plan.reasons]
        parts.append(text_table(("clips rejected because", "clips", "hours", "by that alone", "hours"), reasons))
    if plan.problems:
        parts.append(text_table((f"problems of {plan.sources:,} source videos", "videos"), plan.problems))
    if plan.unmeasured:
        parts.append(text_table(("kept without being measured", "clips"), list(plan.unmeasured.items())))
    lines = [
        (one.title, f"{one.edges[0]:.4g}", f"|{sparkline(one.kept, plain)}|", f"{one.edges[-1]:.4g}", one.unit) for one in plan.histograms
    ]
    parts.append(text_table(("hours kept over", "from", "", "to", "unit"), lines))
    return "\n\n".join(parts)


def plan_html(plan: Plan, *, name: str, policy: str, examples: dict[str, list[Example]]) -> str:
    """A plan as one page that needs nothing else.

    Args:
        plan: to show.
        name: of the data set.
        policy: name of the policy, and below it its text.
        examples: by limit in words, clips on both sides of it.
    """
    title = f"Plan of {name}"
    body = [f"<h1>{escape(title)}</h1>", f'<p class="soft">Policy {escape(policy)}</p>']
    body.append(table(_HEAD, [("kept", *_numbers(plan.kept)), ("rejected", *_numbers(plan.rejected))]))
    body += _section("Data sets", table(_DATASETS, _datasets(plan)) if len(plan.datasets) > 1 else "")
    reasons = [(one.text, one.clips, one.hours, one.alone, one.alone_hours) for one in plan.reasons]
    body += _section("Why clips are rejected", table(("reason", "clips", "hours", "by that alone", "hours"), reasons) if reasons else "")
    body += _section("Source videos with problems", table(("problem", "videos"), plan.problems) if plan.problems else "")
    passed = list(plan.unmeasured.items())
    body += _section("Kept without being measured", table(("score", "clips"), passed) if passed else "")
    key = (
        '<p class="soft">Hours <span class="key kept"></span>kept <span class="key rejected"></span>rejected; a dashed line is a limit.</p>'
    )
    body += [f"<h2>Distributions</h2>{key}", f'<div class="grid">{"".join(_plot(plan))}</div>']
    body += ["<h2>At the limits</h2>", *_examples(examples)]
    return page(title, body)


def _numbers(one: Totals) -> tuple[int, float, int, int]:
    return one.clips, one.hours, one.people, one.sources


def _datasets(plan: Plan) -> list[tuple[str, int, float, int, int, int, float]]:
    rows = plan.datasets.items()
    return [(name or "(no name)", *_numbers(kept), lost.clips, lost.hours) for name, (kept, lost) in rows]


def _section(title: str, content: str) -> list[str]:
    return [f"<section><h2>{escape(title)}</h2>{content}</section>"] if content else []


def _plot(plan: Plan) -> list[str]:
    found = []
    for one in plan.histograms:
        unknown = f"; {one.unknown:.3g} h not measured" if one.unknown else ""
        found.append(bars(one.title, one.unit + unknown, one.edges, one.kept, one.rejected, one.limits))
    return found


def _examples(examples: dict[str, list[Example]]) -> list[str]:
    if not examples:
        return ["<p>The policy sets no limit that a clip comes near.</p>"]
    body = ["<p>The clips that only just pass a limit, and those that only just fail it.</p>"]
    missing = sorted({one.clip for row in examples.values() for one in row if one.picture is None})
    if missing:
        body.append(
            f'<p class="soft">No picture of {_list(missing)}: the source video is not where it was, and the clip is in no shard.</p>'
        )
    for limit, row in examples.items():
        pictures = [_example(one) for one in row]
        body.append(f'<h3>{escape(limit)}</h3><div class="pictures">{"".join(pictures)}</div>')
    return body


def _example(one: Example) -> str:
    kind = "kept" if one.kept else "rejected"
    if one.picture is None:
        return f'<figure class="{kind}"><figcaption>{escape(f"{one.clip}: {one.text} ({kind}, no picture)")}</figcaption></figure>'
    return figure(one.picture, f"{one.clip}: {one.text} ({kind})", kind)


def _list(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return escape(", ".join(names[:shown]) + more)
