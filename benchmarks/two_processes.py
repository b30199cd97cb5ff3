"""Loss curves of a pretraining recipe on one process and on two, which share its batch.

    python -m benchmarks.two_processes smoke/pretrain optim.steps=40 optim.learning_rate=1e-4

Both are the real command, `almosaic train` and `torchrun --nproc_per_node 2 -m almosaic train`, with one
thread per process. Everything drawn depends on the clip, so that both see the same views, masks and dropped
branches; negatives and BatchNorm reach over both processes. What is left is the order of sums in float32, and
training lets that grow: look at the first lines, and at both curves as a whole. `--double` trains in float64,
where it does not.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="of one pretraining stage")
    parser.add_argument("overrides", nargs="*", help="key=value, as for `almosaic train`")
    parser.add_argument("--folder", type=Path, default=Path("runs/two_processes"), help="must not hold runs")
    parser.add_argument("--lines", type=int, default=20, help="of the table, spread over all")
    parser.add_argument("--double", action="store_true", help="float64, see benchmarks/double_precision.py")
    parser.add_argument("--output", type=Path, default=Path("two_processes.json"))
    return parser.parse_args()


def curve(options: argparse.Namespace, processes: int) -> tuple[dict[int, float], float]:
    """Logged losses by step, and the seconds that the command took."""
    folder = options.folder / str(processes)
    launcher = [] if processes == 1 else [*TORCHRUN, str(processes)]
    program = "benchmarks.double_precision" if options.double else "almosaic"
    command = [sys.executable, *launcher, "-m", program, "train", options.recipe, f"output={folder}"]
    started = time.perf_counter()
    subprocess.run([*command, *options.overrides], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    seconds = time.perf_counter() - started
    (log,) = folder.glob("stages/*/training_log.json")
    return {line["step"]: line["loss"] for line in json.loads(log.read_text()) if "loss" in line}, seconds


def main() -> None:
    """Run both, print the table and write the JSON."""
    options = arguments()
    (one, alone), (two, together) = curve(options, 1), curve(options, 2)
    rows = [{"step": step, "one": one[step], "two": two[step]} for step in one]
    chosen = [
        rows[round(place * (len(rows) - 1) / max(1, options.lines - 1))] for place in range(options.lines)
    ]
    print(f"{'step':>8} {'1 process':>12} {'2 processes':>12} {'difference':>12}")
    for row in {row["step"]: row for row in chosen}.values():
        print(f"{row['step']:8d} {row['one']:12.6f} {row['two']:12.6f} {row['two'] - row['one']:12.2e}")
    largest = max(abs(row["two"] - row["one"]) for row in rows)
    print(f"largest difference of {len(rows)} lines {largest:.2e}; {alone:.0f} s and {together:.0f} s")
    about = {
        "recipe": options.recipe,
        "double": options.double,
        "overrides": options.overrides,
        "largest_difference": largest,
    }
    found = {**about, "seconds": {"one": alone, "two": together}, "losses": rows}
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
