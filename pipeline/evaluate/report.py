"""Results for people: a table as text, and one self-contained page."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from pipeline.evaluate.opened import OpenedStore
from schemas.store import USABLE, RowStatus

MAIN_METRICS = ("psnr", "snr", "iou_near", "iou_uniform", "distance_surface", "relative_l2")
"""The first of these that a store has is written under its rows."""


def main_metric(store: OpenedStore) -> str | None:
    names = [column.name for column in store.plan.columns]
    return next((name for name in MAIN_METRICS if name in names), None)


def number(value: float | None) -> str:
    """A figure for people: four digits, or '-' where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, int) or math.isinf(value):
        return str(value)
    return f"{value:.4g}"


def quantiles(values: np.ndarray) -> list[float] | None:
    """Least, 10 %, median, 90 % and greatest of the values that are numbers."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    ordered = np.sort(values)  # np.quantile turns an infinite neighbour into NaN
    places = (len(ordered) - 1) * np.array([0, 0.1, 0.5, 0.9, 1])
    return ordered[np.round(places).astype(int)].tolist()


def results(
    store: OpenedStore, extra: Mapping[str, np.ndarray] | None = None
) -> tuple[dict[str, int], list[tuple[str, int, list[float]]]]:
    """Rows by status, and (metric, rows that have it, quantiles) over usable rows.

    Args:
        extra: Further metrics by name, e.g. of meshes, over any rows.
    """
    index = store.index
    status = index["status"].to_numpy()
    found, counts = np.unique(status, return_counts=True)
    by_status = {RowStatus(int(s)).name.lower(): int(c) for s, c in zip(found, counts)}
    usable = np.isin(status, [int(s) for s in USABLE])
    columns = {
        column.name: index[column.name].to_numpy()[usable]
        for column in store.plan.columns
        if column.dtype in ("float32", "float64")
        and column.name not in ("center_x", "center_y", "center_z", "scale")
    }
    columns |= {name: np.asarray(values) for name, values in (extra or {}).items()}
    lines = []
    for name, values in columns.items():
        spread = quantiles(values)
        if spread is not None:
            lines.append((name, int((~np.isnan(values.astype(np.float64))).sum()), spread))
    return by_status, lines


HEADINGS = ("metric", "rows", "least", "10 %", "median", "90 %", "greatest")


def markdown(store: OpenedStore, extra: Mapping[str, np.ndarray] | None = None) -> str:
    """Results as a table that reads well as plain text and as Markdown."""
    by_status, lines = results(store, extra)
    table = [HEADINGS, *((n, str(c), *map(number, q)) for n, c, q in lines)]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEADINGS))]

    def row(line: Sequence[str]) -> str:
        first = line[0].ljust(widths[0])
        return (
            "| " + " | ".join([first, *(t.rjust(w) for t, w in zip(line[1:], widths[1:]))]) + " |"
        )

    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    counts = ", ".join(f"{count} {name}" for name, count in by_status.items())
    return "\n".join(
        [f"{store.plan.name}: {counts}", "", row(table[0]), rule, *map(row, table[1:])]
    )


# --- page -----------------------------------------------------------------------------------

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
       color: #28282f; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; image-rendering: pixelated; }
.note { color: #666; }
"""


def html_report(
    store: OpenedStore,
    sheet: Image.Image | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    *,
    failures: int = 50,
) -> str:
    """One self-contained page: counts, metrics with their conventions, the sheet, rows that failed.

    Holds no script and loads nothing; every text from the store is escaped.
    """
    escape = html.escape
    by_status, lines = results(store, extra)
    described = {column.name: column.description for column in store.plan.columns}
    parts = [f"<h1>{escape(store.plan.name)}</h1>", "<h2>Rows</h2>"]
    parts.append(_table(("status", "rows"), [(s, str(c)) for s, c in by_status.items()]))
    parts.append("<h2>Metrics</h2><p class='note'>Over usable rows that have the metric.</p>")
    parts.append(_table(HEADINGS, [(n, str(c), *map(number, q)) for n, c, q in lines]))
    notes = [f"<li><b>{escape(n)}</b>: {escape(described[n])}</li>" for n, _, _ in lines
             if n in described]  # fmt: skip
    parts.append(f"<ul class='note'>{''.join(notes)}</ul>")
    if sheet is not None:
        sink = io.BytesIO()
        sheet.save(sink, "png")
        data = base64.b64encode(sink.getvalue()).decode()
        parts.append("<h2>Samples</h2>")
        parts.append(
            f"<img alt='inputs beside reconstructions' src='data:image/png;base64,{data}'>"
        )
    failed = store.rows(status=[s for s in RowStatus if s not in USABLE])
    if failed:
        parts.append(f"<h2>Rows without a field ({len(failed)})</h2>")
        shown = [store.line(row) for row in failed[:failures]]
        cells = [(str(e["row"]), e["sample_id"], e["code"], e["message"]) for e in shown]
        parts.append(_table(("row", "sample", "code", "message"), cells))
    spec = store.spec
    parts.append("<h2>Field</h2>")
    facts = [
        ("method", spec.method),
        ("coordinates", str(spec.coords)),
        ("output", str(spec.output)),
        ("start", str(spec.init.get("start"))),
        *sorted(spec.versions.items()),
    ]
    parts.append(_table(("key", "value"), facts))
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(store.plan.name)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def row(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    return "<table>" + row("th", headings) + "".join(row("td", line) for line in lines) + "</table>"
