"""The report of `tamis cost --report`: the JSON lines of a metered run as one HTML page that needs nothing else. Owns its
layout; every figure is the meter's, and what was not measured is said to be so."""
from __future__ import annotations

import json
import pathlib
from html import escape
from typing import Any

from .._errors import wrong

STYLE = ("body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
         "td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}"
         "svg{display:block;margin:.4em 0}.dense{fill:#d62728}.done{fill:#1f77b4}small{color:#555}")
BARS = (("keys_dense", "keys_attended", "comparisons of attention"), ("dense_flops", "flops", "operations"),
        ("dense_seconds", "seconds", "seconds"))


def write_report(records: pathlib.Path, page: pathlib.Path) -> dict[str, Any]:
    """Writes the page; returns what it holds."""
    found = [parsed(number, line) for number, line in enumerate(records.read_text("utf-8").splitlines(), 1) if line.strip()]
    if not found:
        raise wrong(f"{records}: no record in it")
    page.write_text(html(found), "utf-8")
    return {"report": str(page), "records": len(found)}


def parsed(number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        return {**record, "flops": int(record["flops"]), "bills": list(record["bills"]), "label": str(record["label"])}
    except (ValueError, KeyError, TypeError):
        raise wrong(f"line {number} is no record of Meter.json_line") from None


def html(records: list[dict[str, Any]]) -> str:
    parts = [f"<!doctype html><meta charset=utf-8><title>Tamis: what it cost</title><style>{STYLE}</style>",
             "<h1>What it cost, and what it would have cost</h1>", overview(records)]
    parts += [section(record) for record in records]
    parts.append("<p><small>Counts are exact. \"dense\" is a full attention for the same calls; its seconds rest on the basis "
                 "named. Bills by machine hours are as good as the seconds; list prices are exact.</small></p>")
    return "\n".join(parts) + "\n"


def overview(records: list[dict[str, Any]]) -> str:
    head = ["meter", "input", "cached", "output", "attended / dense", "seconds", "bills"]
    rows = ["<tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>"]
    for record in records:
        dense = record["keys_dense"]
        share = f"{record['keys_attended'] / dense:.1%}" if dense else "-"
        bills = ", ".join(f"{bill['amount']} {bill['currency']} ({bill['source']})" for bill in record["bills"]) or "-"
        tokens = (f"{record[name]:,}" for name in ("input_tokens", "cached_tokens", "output_tokens"))
        cells = [record["label"] or "(root)", *tokens, share, f"{float(record['seconds']):,.3f}", bills]
        rows.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    return "<table>" + "".join(rows) + "</table>"


def section(record: dict[str, Any]) -> str:
    basis = record["basis"] or "none: it was not estimated"
    joules = "not measured" if record["joules"] is None else f"{record['joules']} J"
    parts = [f"<h2>{escape(record['label'] or '(root)')}</h2>",
             f"<p>{record['calls']:,} calls, {record['keys_scored']:,} keys scored, {record['keys_avoided']:,} comparisons "
             f"avoided{form(record)}. Energy: {escape(joules)}. Basis of the dense seconds: {escape(basis)}.</p>"]
    return "\n".join(parts + [bars(record, *names) for names in BARS])


def form(record: dict[str, Any]) -> str:
    """Which form of attention ran, where the record says so."""
    expanded = record.get("keys_expanded")
    if expanded is None:
        return ""
    return f"; {expanded:,} pairs computed in the expanded form of attention" if expanded else "; all in the absorbed form"


def bars(record: dict[str, Any], dense: str, done: str, what: str) -> str:
    """Two bars to one scale."""
    values = [(name, css, record[key]) for name, css, key in (("dense", "dense", dense), ("this run", "done", done))]
    most = max((float(value) for _, _, value in values if value is not None), default=0) or 1
    rows = []
    for i, (name, css, value) in enumerate(values):
        y = 20 * i
        shown = "not estimated" if value is None else f"{value:,}"
        width = 0 if value is None else 420 * float(value) / most
        rows.append(f'<text x="0" y="{y + 14}">{name}</text><rect class="{css}" x="80" y="{y + 2}" width="{width:.1f}" '
                    f'height="15"/><text x="{86 + width:.1f}" y="{y + 14}">{escape(shown)}</text>')
    return (f'<p>{escape(what)}</p><svg width="720" height="42" font-size="12" font-family="sans-serif" role="img" '
            f'aria-label="{escape(what)}">{"".join(rows)}</svg>')
