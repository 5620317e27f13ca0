"""Top-2048 of 131,072 scores: numpy and the select kernels on the same row, in the same run.

    python select_bench.py ./select_bench

The program is built as select_bench.c says. Thread CPU time, best of the repetitions, microseconds, CSV on stdout.
"""

import subprocess
import sys
import tempfile
import time

import numpy as np

COUNT, K, REPETITIONS = 131_072, 2048, 60


def best_microseconds(function, scores):
    best = float("inf")
    for _ in range(REPETITIONS):
        start = time.thread_time_ns()
        function(scores, COUNT - K)
        best = min(best, time.thread_time_ns() - start)
    return best / 1e3


def main():
    scores = np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)
    with tempfile.NamedTemporaryFile(suffix=".f32") as file:
        scores.tofile(file.name)
        run = subprocess.run([sys.argv[1], file.name, str(K)], check=True, capture_output=True, text=True)
    print(run.stdout, end="")
    for function in (np.partition, np.argpartition):
        microseconds = best_microseconds(function, scores)
        print(f"numpy {np.__version__},file,{COUNT},{K},{function.__name__},,,,,,,{microseconds:.1f},")


if __name__ == "__main__":
    main()
