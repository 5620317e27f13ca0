"""What the model is asked: held-out text, and facts planted in it.

Owns the choice of text (the modules that `training/stdlib.py` holds out, read
from this machine's Python) and the planting of records, `<|record|> key value
<|stop|>`, as in training.  Each query is asked alone behind the context.  Easy
records have keys and values of one word token; hard ones have two or three, and
keys share their tokens, so that only the whole key tells records apart.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))

from stdlib import documents  # noqa: E402  (training's own split)


@dataclass
class Query:
    ids: np.ndarray  # record mark, key, value, stop: int32
    value: slice  # where in ids the value stands


@dataclass
class Recall:
    context: np.ndarray  # int32 [n]
    queries: list  # each is asked alone behind the context


class Text:
    """Held-out text (or that of the other side) as tokens, and word tokens for keys and values."""

    def __init__(self, tokenize, wanted="validation"):
        begin, end, self.record, self.stop, _ = (int(tokenize(mark)[0]) for mark in (
            "<|begin|>", "<|end|>", "<|record|>", "<|stop|>", "<|copy|>"))
        parts, sizes, self.modules = [], [], set()
        for side, group, text in documents():
            if side == wanted:
                ids = np.asarray(tokenize(text), np.int32)
                parts += [[begin], ids, [end]]
                self.modules.add(group)
                sizes.append(len(text.encode()))
        self.tokens = np.concatenate(parts).astype(np.int32)
        self.bytes_per_token = sum(sizes) / len(self.tokens)
        words = {int(ids[0]) for ids in (tokenize(" " + word) for word in WORDS) if len(ids) == 1}
        self.words = np.array(sorted(words), np.int32)

    def windows(self, length, count, seed):
        """count windows of length + 1 tokens, spread over the text without overlap where it is long enough."""
        starts = np.linspace(0, len(self.tokens) - length - 1, count).astype(int)
        shift = np.random.default_rng(seed).integers(0, max(1, (starts[1] - starts[0] - length) if count > 1 else 1))
        return [self.tokens[s : s + length + 1] for s in np.minimum(starts + shift, starts[-1])]

    def recall(self, length, pairs, queries, hard, seed):
        """A context with `pairs` records, and queries for some of them; together they have `length` tokens or fewer."""
        rng = np.random.default_rng([seed, length, pairs, hard])
        start = int(rng.integers(0, len(self.tokens) - length))
        widest = 8  # of a record
        context = self.tokens[start : start + length - widest].copy()
        records = self.records(rng, pairs, hard)
        for place, record in zip(rng.permutation(np.arange(1, len(context) - widest, widest)), records):
            context[place : place + len(record.ids)] = record.ids
        return Recall(context, [records[i] for i in rng.choice(pairs, queries, replace=False)])

    def records(self, rng, count, hard):
        """As queries: what stands in the context is what is asked."""
        return [Query(np.array([self.record, *key, *value, self.stop], np.int32),
                      slice(1 + len(key), 1 + len(key) + len(value))) for key, value in self.draw(rng, count, hard)]

    def draw(self, rng, count, hard):
        if not hard:
            keys = [[k] for k in rng.choice(self.words, count, replace=False)]
            return [(key, [rng.choice(self.words)]) for key in keys]
        pool, keys = rng.choice(self.words, int(2 * count ** 0.5), replace=False), {}
        while len(keys) < count:
            keys[tuple(rng.choice(pool, int(rng.integers(2, 4))))] = None
        return [(list(key), list(rng.choice(self.words, int(rng.integers(2, 4))))) for key in keys]


# Common English and programming words; those that are one token of the model's vocabulary are used.
WORDS = """able about above accept access action active add address after again all allow also always and another any
append apply are argument array assert async attribute available await back base because been before begin being best
between bit block body bool both break buffer build but byte bytes cache call callback can cancel case change char
check child class clean clear client close code command comment compare complete config connect connection const
contain content context continue convert copy correct count create current data date day debug decode default define
delete depth dict different direct directory do document does done down each element else empty enable encode end
ensure enter entry enum env equal error even event every example except exception exec exist exit expect extra fail
false field file filter final find first fix flag float flush for force format found frame from full function future
generate generic get given global group handle handler has hash have header help here high hold host how ignore
import index info init input insert install instance instead int integer internal into invalid is item iter iterable
its job join just keep key keyword kind know known label large last later leave left len length less level like limit
line link list load local lock log long loop lower main make many map mask match max may mean memory message method
might min missing mode module more most mount move much must name need nested network never new next no node none normal
not note nothing now null number object of offset old on once one only open operation option or order other out output
over own package parent parse part pass path pattern pending period pipe place plain platform point pool port position
possible prefix present print process property protocol put python queue raise range raw read ready reader real reason
receive record reference regular relative remove repeat replace report request require reset resource response result
return right root row rule run safe same save scope script search second section see self send sent separate sequence
server session set several shape should show side signal simple since single size skip slot socket some sort source
space special specific stack standard start state statement static status step still stop store stream strict string
sub such support sure switch symbol system table tag take target task temp test text than that the their them then
there these they this thread through time title to token top total trace transport tree true try tuple two type under
unique unit until update upper url use used user using valid value variable version very view wait want warning was way
week what when where which while will window with within without word work worker would wrap write writer wrong year
yield you zero zip""".split()
