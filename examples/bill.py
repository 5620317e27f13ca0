"""One request and its bill: what it computed, what a dense attention would have computed, and what both cost.

    python examples/bill.py [DIRECTORY [FILE [RECORDS]]]

DIRECTORY: a checkpoint. FILE: the text that is read and continued. RECORDS: gets the JSON lines of tenant and request,
which `tamis cost --report RECORDS page.html` makes a page of.
"""
import pathlib
import sys

import tamis

root = pathlib.Path(__file__).resolve().parents[1]
directory = sys.argv[1] if len(sys.argv) > 1 else root / "Tests" / "Fixtures" / "toy-v32"
text = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else root / "include" / "tamis.h").read_text("utf-8")
model = tamis.Model(directory)
tokens = model.tokenize(text)[: model.info.max_tokens - 32]

# What this machine can do at this model's shapes and in its own steps; what it costs an hour is what you pay.
machine = tamis.Machine.measure(model.ctx, architecture=tamis.Architecture.from_config(directory), model=model)
prices = tamis.Prices(input="0.28", cached="0.028", output="0.42", machine_hour="0.10")

# A tenant may spend a cent and 10,000 tokens; a request asks before any work is done.
tenant = tamis.Meter("tenant", model.ctx, budget=tamis.Amount(money="0.01", tokens=10_000), machine=machine)
request = tamis.Meter("request", tenant)
with model.cache() as cache, request, request.reserve(money="0.002", tokens=len(tokens) + 16) as held:
    answer = model.generate(tokens, sequence=cache.sequence(), max_tokens=16)
    answer.finish()
    request.charge(input_tokens=len(tokens), output_tokens=len(answer.tokens))
    bill = request.bill(prices)
    held.settle(money=bill.amount, tokens=len(tokens) + len(answer.tokens))

cost = request.read()
print(model.describe())
print(f"""
{cost.input_tokens:>14,} tokens in, {cost.output_tokens} out
{cost.keys_dense:>14,} comparisons a dense attention makes
{cost.keys_attended:>14,} selected, {cost.keys_scored:,} keys scored by the indexer, {cost.keys_avoided:,} not selected
{cost.keys_expanded:>14,} of all made and masked, where gathering what is selected would be dearer
{cost.flops / 1e9:>14.2f} GFLOP, {cost.dense_flops / 1e9:.2f} dense
{cost.seconds:>14.3f} s in the operators, {cost.dense_seconds:.3f} s dense ({cost.basis})
{str(bill):>14} by the list, {request.bill(prices, "machine").amount:.3e} USD by the machine's hours
{tenant.budget().spent.tokens:>14,} of the tenant's {tenant.budget().limit.tokens:,} tokens and {tenant.budget().spent.money} of
{'':>14} {tenant.budget().limit.money} USD are spent""")
if len(sys.argv) > 3:
    lines = [meter.json_line(model=pathlib.Path(directory).name, prices=prices) for meter in (tenant, request)]
    pathlib.Path(sys.argv[3]).write_text("".join(lines), "utf-8")
