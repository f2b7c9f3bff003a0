"""The learning curves of docs/: train the two tiny recipes on three seeds, collect, draw.

    python benchmarks/learning_curves.py --run      trains (half an hour on one core), writes the JSONL
    python benchmarks/learning_curves.py --draw     draws the PNG from the JSONL

The JSONL has one line per evaluation on held-out tasks: algorithm, seed, step, train_seconds, accuracy, and
`is_final` on the one after the last step. `train_seconds` is the wall time of all steps before it, with their
evaluations and checkpoints. `--run` resumes what the folder of runs holds.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
RECIPES = {"ppo": REPOSITORY / "recipes" / "tiny.toml", "grpo": REPOSITORY / "recipes" / "tiny_grpo.toml"}
SEEDS = (0, 1, 2)
STYLES = {"ppo": ("#0072B2", "-", "PPO"), "grpo": ("#D55E00", "--", "GRPO")}
"""Two colours that colour-blind eyes tell apart (Okabe and Ito), and two kinds of line."""
GUIDES = (0.90, 0.95)

Point = dict[str, Any]


def train(folder: Path) -> None:
    """All runs, one after the other, by the command that a user types."""
    for algorithm, recipe in RECIPES.items():
        for seed in SEEDS:
            run = folder / f"{algorithm}-{seed}"
            command = [sys.executable, "-m", "yaoki", "train", str(recipe), "--run", str(run)]
            subprocess.run([*command, f"train.seed={seed}"], check=True)


def collect(folder: Path) -> list[Point]:
    """The evaluations of all runs in the folder, by algorithm, seed and step."""
    return [
        point
        for algorithm in RECIPES
        for seed in SEEDS
        for point in evaluations(folder / f"{algorithm}-{seed}", algorithm, seed)
    ]


def evaluations(run: Path, algorithm: str, seed: int) -> list[Point]:
    """A row of step n holds the accuracy of the policy before that step, hence after n - 1 steps."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    seconds = {0: 0.0} | {row["step"]: row["timing"]["train_s"] for row in rows}
    measured = [(row["step"] - 1, row["accuracy"], False) for row in rows if row["accuracy"] is not None]
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    measured.append((summary["steps"], summary["accuracy_after"], True))
    return [
        {
            "algorithm": algorithm,
            "seed": seed,
            "step": step,
            "train_seconds": seconds[step],
            "accuracy": accuracy,
            "is_final": is_final,
        }
        for step, accuracy, is_final in measured
    ]


def draw(points: list[Point], picture: Path) -> None:
    """Accuracy against time and against steps: a line per run, the last evaluation as a dot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for axis, key, label in zip(
        axes, ("train_seconds", "step"), ("training time (s)", "training steps"), strict=True
    ):
        for guide in GUIDES:
            axis.axhline(guide, color="0.6", linewidth=0.8, linestyle=":")
            axis.annotate(
                f"{guide:.2f}", (0.005, guide), xycoords=("axes fraction", "data"), color="0.4", fontsize=8,
                va="bottom",
            )  # fmt: skip
        _draw_runs(axis, points, key)
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("held-out accuracy")
    axes[0].set_ylim(0, 1.02)
    axes[1].legend(loc="lower right", frameon=False)
    figure.savefig(picture, dpi=150, metadata={"Software": None})


def _draw_runs(axis: Any, points: list[Point], key: str) -> None:
    """One line per seed; only the first of an algorithm has an entry in the legend."""
    for algorithm, (color, line_style, name) in STYLES.items():
        seeds = sorted({point["seed"] for point in points if point["algorithm"] == algorithm})
        for seed in seeds:
            run = [p for p in points if (p["algorithm"], p["seed"]) == (algorithm, seed)]
            label = f"{name}, seeds {', '.join(map(str, seeds))}" if seed == seeds[0] else None
            xs, ys = [point[key] for point in run], [point["accuracy"] for point in run]
            axis.plot(xs, ys, color=color, linestyle=line_style, linewidth=1.4, alpha=0.85, label=label)
            axis.plot(xs[-1:], ys[-1:], "o", color=color, markersize=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", action="store_true", help="train and write the JSONL")
    parser.add_argument("--draw", action="store_true", help="draw the PNG from the JSONL")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning-curves"), help="folder of the runs")
    parser.add_argument(
        "--jsonl", type=Path, default=REPOSITORY / "docs" / "learning_curves.jsonl", help="the JSONL"
    )
    parser.add_argument(
        "--png", type=Path, default=REPOSITORY / "docs" / "learning_curves.png", help="the picture"
    )
    arguments = parser.parse_args()
    if not (arguments.run or arguments.draw):
        parser.error("nothing to do: say --run, --draw or both")
    if arguments.run:
        train(arguments.runs)
        lines = [json.dumps(point) + "\n" for point in collect(arguments.runs)]
        arguments.jsonl.write_text("".join(lines), "utf-8")
    if arguments.draw:
        draw([json.loads(line) for line in arguments.jsonl.read_text("utf-8").splitlines()], arguments.png)


if __name__ == "__main__":
    main()
