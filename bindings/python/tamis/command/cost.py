"""`tamis cost`: what a request will cost dense, sparse and cached, from which context on sparse pays, and how far to trust
that. Owns the plan and its table; drawing is cost_plot's, reports of metered runs are cost_report's."""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import decimal
import pathlib
import textwrap
from collections.abc import Iterator
from typing import Any

from .. import Architecture, Context, Machine, Model, Prices
from .._errors import wrong
from . import context, report, table

HELP = "what a request will cost, and from which context on sparse attention pays"
MODES = (("dense", "dense"), ("sparse", "sparse, as published"), ("automatic", "sparse, scoring none while all fit"))
KINDS = (("decode", "one decoded token"), ("prefill", "one prefilled token"), ("prompt", "a whole prompt"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=int, default=4000, metavar="N", help="input tokens, cached ones included (4000)")
    parser.add_argument("--output", type=int, default=500, metavar="N", help="output tokens (500)")
    parser.add_argument("--cached", type=int, default=None, metavar="N",
                        help="input tokens that are in a cache (without it: none, and 90 %% beside it)")
    parser.add_argument("--requests", type=int, default=1000, metavar="N", help="how many such requests (1000)")
    parser.add_argument("--machine", default="H800", metavar="WHICH",
                        help='"H800" (published), "here" (measured now, a few seconds) or a file of --save')
    parser.add_argument("--model", metavar="PATH", help="config.json of a model with an indexer, or its directory "
                        "(with its weights there --machine here times some of its steps); without it DeepSeek-V3.2")
    parser.add_argument("--price-per-hour", metavar="PRICE", help="of the machine, such as 2 or 0.35")
    parser.add_argument("--currency", default="USD", help="of --price-per-hour (USD)")
    parser.add_argument("--litellm", nargs=2, metavar=("FILE", "MODEL"), help="list prices from litellm's price file; "
                        "without it DeepSeek's at the V3.2-Exp release")
    parser.add_argument("--save", metavar="FILE", help="keep the machine's profile")
    parser.add_argument("--plot", metavar="FILE", help="draw the published figure, the prediction, and this machine's own "
                        "curve (SVG, PNG or PDF; needs matplotlib)")
    parser.add_argument("--report", nargs=2, metavar=("RECORDS", "HTML"),
                        help="a report of a metered run instead: the JSON lines of Meter.json_line as one HTML page")


def run(arguments: argparse.Namespace) -> int:
    if arguments.report:
        from .cost_report import write_report
        written = write_report(*map(pathlib.Path, arguments.report))
        report(arguments, written, f"{written['report']}: {written['records']} records")
        return 0
    architecture = architecture_of(arguments.model)
    machine = machine_of(arguments, architecture)
    if arguments.save:
        machine.save(arguments.save)
    record = plan(arguments, machine, architecture)
    if arguments.plot:
        from .cost_plot import draw
        draw(pathlib.Path(arguments.plot), own_curve(arguments, machine, architecture), architecture)
        record["plot"] = arguments.plot
    report(arguments, record, text(record))
    return 0


# -- what is asked


def architecture_of(path: str | None) -> Architecture:
    """DeepSeek-V3.2's, or that of a config.json."""
    return Architecture() if path is None else Architecture.from_config(path)


def machine_of(arguments: argparse.Namespace, architecture: Architecture) -> Machine:
    """Published, measured or loaded."""
    if arguments.machine == "here":
        return measured(arguments, architecture)
    if pathlib.Path(arguments.machine).is_file():
        return Machine.load(arguments.machine)
    return Machine.published(arguments.machine)


def measured(arguments: argparse.Namespace, architecture: Architecture) -> Machine:
    with context(arguments) as ctx, own_steps(arguments.model, ctx) as model:
        return Machine.measure(ctx, architecture=architecture, price_per_hour=arguments.price_per_hour,
                               currency=arguments.currency, model=model)


@contextlib.contextmanager
def own_steps(path: str | None, ctx: Context) -> Iterator[Model | None]:
    """The model itself, where its weights lie beside its config: some of its steps are timed."""
    if path is None or not any(pathlib.Path(path).glob("*.safetensors")):
        yield None
        return
    with Model(path, ctx) as model:
        yield model


def own_curve(arguments: argparse.Namespace, machine: Machine, architecture: Architecture) -> Machine:
    """The machine at hand for the plot: the planned one where it was measured."""
    return machine if machine.profile["basis"] == "calibrated" else measured(arguments, architecture)


def hour_of(arguments: argparse.Namespace, profile: dict[str, Any]) -> Prices | None:
    """The machine's price: the one given, or that of its profile."""
    if arguments.price_per_hour is not None:
        return Prices(machine_hour=arguments.price_per_hour, currency=arguments.currency)
    known = profile.get("price_per_hour")
    return known and Prices(machine_hour=known["amount"], currency=known["currency"])


# -- the plan


def plan(arguments: argparse.Namespace, machine: Machine, architecture: Architecture) -> dict[str, Any]:
    profile = machine.profile
    hour = hour_of(arguments, profile)
    listed = Prices() if not arguments.litellm else Prices.litellm(*arguments.litellm)
    cached = [0, arguments.input * 9 // 10] if arguments.cached is None else [arguments.cached]
    if arguments.requests < 1 or min(arguments.input, arguments.output, *cached) < 0:
        raise wrong("--input, --output, --cached: expected at least 0, --requests at least 1")
    rows = [row_of(arguments, machine, architecture, hour, tokens, mode) for tokens in cached for mode, _ in MODES]
    bills = [{"cached": tokens, **money(listed.bill(
        input_tokens=arguments.input, cached_tokens=tokens, output_tokens=arguments.output), arguments.requests)}
        for tokens in cached]
    return {
        "machine": profile["name"], "source": profile["source"], "basis": profile["basis"], "trust": profile["trust"],
        "architecture": dataclasses.asdict(architecture), "input": arguments.input, "output": arguments.output,
        "requests": arguments.requests, "predictions": rows, "list_prices": bills,
        "list": "DeepSeek-V3.2-Exp at its release" if not arguments.litellm else arguments.litellm[1],
        "break_even": {kind: dataclasses.asdict(machine.break_even(kind, architecture=architecture))
                       for kind, _ in KINDS}}


def money(bill: Any, times: int = 1) -> dict[str, str]:
    """Exact, as text. A list bills each request: tiers are by its own length."""
    exact = decimal.Context(prec=100)
    return {"amount": f"{exact.multiply(bill.amount, times).normalize(exact):f}", "currency": bill.currency}


def row_of(arguments: argparse.Namespace, machine: Machine, architecture: Architecture, hour: Prices | None,
           cached: int, mode: str) -> dict[str, Any]:
    """One request's prediction, and the money of all of them."""
    found = machine.request(arguments.input, arguments.output, cached_tokens=cached, mode=mode,
                            architecture=architecture)
    row = {"cached": cached, "mode": mode, **dataclasses.asdict(found)}
    if hour is not None:
        for name, seconds in (("cost", found.seconds), ("low_cost", found.low_seconds),
                              ("high_cost", found.high_seconds)):
            row[name] = money(hour.bill(kind="machine", nanoseconds=round(seconds * arguments.requests * 1e9)))
    return row


# -- as text


def text(record: dict[str, Any]) -> str:
    lines = [f"{record['input']:,} tokens in, {record['output']:,} out on {record['machine']} ({record['basis']}: "
             f"{record['source']})", ""]
    names, priced = dict(MODES), "cost" in record["predictions"][0]
    unit = record["predictions"][0]["cost"]["currency"] if priced else ""
    head = ["", "cached", "seconds", "low", "high"]
    head += [f"{unit} / {record['requests']:,}", "low", "high"] if priced else []
    rows = [[*head, "dense / this"]]
    for row in record["predictions"]:
        dense = next(other for other in record["predictions"]
                     if other["mode"] == "dense" and other["cached"] == row["cached"])
        cells = [f"{row['cached']:,}", *(figure(row[name]) for name in ("seconds", "low_seconds", "high_seconds"))]
        cells += [figure(float(row[name]["amount"])) for name in ("cost", "low_cost", "high_cost")] if priced else []
        rows.append([names[row["mode"]], *cells, f"{dense['seconds'] / row['seconds']:.2f}" if row["seconds"] else "-"])
    lines += [table(rows), ""]
    for bill in record["list_prices"]:
        lines.append(f"list price ({record['list']}), {bill['cached']:,} cached: {figure(float(bill['amount']))} "
                     f"{bill['currency']} for {record['requests']:,}")
    lines += ["", "sparse costs more than dense below", table([
        [f"  {name}", *break_even(record["break_even"][kind])] for kind, name in KINDS])]
    lines += ["", textwrap.fill(f"How far to trust this: {record['trust']['note']}", 118)]
    return "\n".join(lines + ([f"plot: {record['plot']}"] if "plot" in record else []))


def break_even(found: dict[str, Any]) -> list[str]:
    low, mid, high = ("never" if found[name] is None else f"{found[name]:,.0f}" for name in ("low", "tokens", "high"))
    return [f"{mid} tokens" if mid != "never" else "any context: it never pays", f"({low} to {high})"]


def figure(value: float) -> str:
    """Four significant digits without an exponent where that is readable."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:,.4g}"
    return f"{value:,.0f}" if value >= 1e4 else f"{value:.3e}"
