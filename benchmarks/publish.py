"""Write the tables of docs/results.md, and a page for each row of the queue, from the summaries kept in ``results/``.

python benchmarks/publish.py

A table stands between ``<!-- table: name -->`` and ``<!-- end -->`` and is replaced. What is written by hand about a
row, such as why a claim was missed, is ``results/<row>/notes.md`` and becomes part of its page.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyactor.settings.presets import METHODS, PRESETS
from polyactor.storage.metrics_log import read_rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "results", ROOT / "docs"
PAGE, PAGES = DOCS / "results.md", DOCS / "results"
Summary = Mapping[str, Any]

BESIDE = "other work beside it"
PONG: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "A3C, 2 workers, bf16 torso (`pong-fast`, what `make train` runs)",
        ("precision-pong-fast/bf16-seed-1", "precision-pong-fast/bf16-seed-2", "pong-fast/seed-3"),
        "",
    ),
    ("the same in fp32", ("precision-pong-fast/fp32-seed-1", "precision-pong-fast/fp32-seed-2"), BESIDE),
    ("APPO, 2 actors and a learner, bf16 torso (`pong-appo`)", ("pong-appo",), BESIDE),
    ("A3C over a server, 2 workers, bf16 torso (`pong-a3c-server`)", ("pong-a3c-server",), BESIDE),
    (
        "ACER, replay ratio 4, 2 workers of 16 environments, Nature CNN, bf16 torso (`pong-acer`)",
        ("pong-acer",),
        BESIDE,
    ),
    ("ACER without replay", ("pong-acer-without-replay",), BESIDE),
    ("ACER with other settings, an earlier run", ("pong-acer-2w-wide",), BESIDE),
    ("ACKTR, 32 environments in one process (`pong-acktr`)", ("pong-acktr",), BESIDE),
    ("A2C, 32 environments in one process, bf16 torso", ("pong-a2c-32",), BESIDE),
)
"""Label, folders of summaries, and what was otherwise than on a quiet machine."""
SMALL: tuple[tuple[str, str, str, str], ...] = (
    ("CartPole-v1", "A2C", "cartpole-a2c", ""),
    ("CartPole-v1", "A3C, 2 workers", "cartpole-a3c", ""),
    ("CartPole-v1", "ACER, 2 workers", "cartpole-acer", BESIDE),
    ("Pendulum-v1", "A3C, Gaussian, 2 workers", "pendulum-a3c", ""),
    ("Pendulum-v1", "ACER, Gaussian, 2 workers", "pendulum-acer", BESIDE),
    ("LunarLander-v3", "ACER, 2 workers", "lunarlander-acer", BESIDE),
)


def summaries(*folders: str) -> list[Summary]:
    """The summaries of the seeds in these folders of ``results/``, or of the folders themselves."""
    found = []
    for folder in folders:
        path = RESULTS / folder
        single = [path] if (path / "summary.json").is_file() else sorted(path.glob("seed-*"), key=_seed)
        found += [
            json.loads((each / "summary.json").read_text()) for each in single if (each / "summary.json").exists()
        ]
    return found


def _seed(path: Path) -> int:
    return int(path.name.removeprefix("seed-"))


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """One or two numbers, or the median of more and the least and the most in brackets."""
    text = [format(value, form).replace("-", "−") for value in sorted(values)]
    if len(values) < 3:
        return " and ".join(text)
    return f"{format(statistics.median(values), form).replace('-', '−')} [{text[0]} – {text[-1]}]"


def table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A table of Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


# -- tables of docs/results.md -----------------------------------------------------------------------------------------


def pong() -> str:
    """Every way to a mean of 18 on Pong."""
    lines = []
    for label, folders, beside in PONG:
        found = summaries(*folders)
        scores = ", ".join(f"{each['confirmation_score']:.2f}" for each in found)
        seconds = spread([each["reached_at_s"] for each in found])
        steps = spread([each["reached_at_steps"] for each in found])
        lines.append([label, len(found), scores, steps, ", ".join(filter(None, [seconds, beside]))])
    return table(["method", "seeds", "confirmed by 100 fresh games", "steps", "seconds"], lines)


def small() -> str:
    """Environments that take seconds to minutes."""
    lines = []
    for env, label, folder, beside in SMALL:
        found = summaries(folder)
        steps = [each.get("reached_at_steps") or each["target_at_steps"] for each in found]
        seconds = [each.get("reached_at_s") or each["target_at_s"] for each in found]
        if not all(each["status"] == "reached" for each in found):
            steps, seconds = ([each[f"target_at_{unit}"] for each in found] for unit in ("steps", "s"))
        form = ",.0f" if min(seconds) >= 15 else ".1f"
        target = f"{found[0]['target']:g}".replace("-", "−")
        shown = ", ".join(filter(None, [spread(seconds, form), beside]))
        lines.append([env, label, len(found), target, spread(steps), shown])
    return table(["environment", "method", "seeds", "target", "steps", "seconds"], lines)


def halfcheetah() -> str:
    """A million steps of HalfCheetah-v5."""
    lines = []
    for label, folder in (("ACER", "halfcheetah-acer"), ("A3C", "halfcheetah-a3c")):
        found = summaries(folder)
        scores = ", ".join(f"{each['score_mean100']:,.0f}" for each in found)
        lines.append([label, len(found), scores, spread([each["wall_s"] for each in found])])
    return table(["method", "seeds", "scores", "seconds"], lines)


def memory() -> str:
    """The T-maze with and without an LSTM."""
    lines = []
    for label, folder in (
        ("A3C with an LSTM", "tmaze-a3c-lstm"),
        ("A3C without", "tmaze-a3c-without-memory"),
        ("ACER with an LSTM", "tmaze-acer-lstm"),
    ):
        (found,) = summaries(folder)
        lines.append([label, f"{found['evaluation_games']:,}", f"{found['evaluation_mean']:.3f}"])
    return table(["method", "games", "score"], lines)


def schemes() -> str:
    """Seeds of every algorithm under every scheme that reached the target on CartPole."""
    kept = json.loads((RESULTS / "schemes-CartPole-v1.json").read_text())
    names = list(dict.fromkeys(run["scheme"] for run in kept["runs"]))
    lines = []
    for algorithm in dict.fromkeys(run["algorithm"] for run in kept["runs"]):
        cells = []
        for scheme in names:
            runs = [run for run in kept["runs"] if (run["algorithm"], run["scheme"]) == (algorithm, scheme)]
            steps = [run["target_at_steps"] for run in runs if run["target_at_steps"] is not None]
            cells.append(f"{len(steps)} of {len(runs)}, {statistics.median(steps):,.0f}")
        lines.append([algorithm, *cells])
    return table([f"to {kept['target']:g}", *names], lines)


def precision() -> str:
    """Pairs of seeds in bf16 and fp32, and gradients side by side."""
    lines = []
    for game, preset in (("Catch", "catch-a3c"), ("Pong", "pong-fast")):
        steps = json.loads((RESULTS / f"precision-{preset}" / "pairs.json").read_text())["steps"]
        lines.append([game, len(steps["each"]), f"{steps['mean']:.2f}", f"{steps['low']:.2f} – {steps['high']:.2f}"])
    pairs = table(["game", "pairs", "steps of bf16 ÷ steps of fp32, geometric mean", "95 % interval"], lines)
    lines = []
    for game, path in (
        ("Catch", "catch-a3c/gradients-1x100"),
        ("Pong", "pong-fast/gradients-1x100"),
        ("Pong", "pong-fast/gradients-8x100"),
    ):
        kept = json.loads((RESULTS / f"precision-{path}.json").read_text())
        cosines = sorted(point["cosine"] for point in kept["points"])
        steps_of_each = kept["envs"] * kept["rollout"] * kept.get("rollouts", 1)
        lines.append([game, f"{steps_of_each:,}", len(cosines), f"{cosines[0]:.4f}", f"{cosines[1]:.4f}"])
    return f"{pairs}\n\n" + table(
        ["game", "steps of each gradient", "points of a run", "least cosine", "second least"], lines
    )


def queue() -> str:
    """The rows of the queue that are through."""
    lines = []
    for name in finished():
        found, claim = summaries(name), claim_of(name)
        steps = max(each["agent_steps"] for each in found)
        last, best = (spread([each[key] for each in found], ",.4g") for key in ("score_mean100", "best_score_mean100"))
        lines.append([f"[{name}](results/{name}.md)", claim or "–", f"{steps:,}", len(found), last, best])
    if not lines:
        return "None is through yet."
    return table(["row", "published", "steps", "seeds", "score at the end", "best"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "pong": pong, "small": small, "halfcheetah": halfcheetah, "memory": memory, "schemes": schemes,
    "precision": precision, "queue": queue,
}  # fmt: skip
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def written(page: str) -> str:
    """The page with every table as the summaries have it now."""
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", page)


# -- a page for each row of the queue ----------------------------------------------------------------------------------


def entries() -> dict[str, dict[str, Any]]:
    """The rows of the queue by name."""
    return {entry["name"]: entry for entry in tomllib.loads((ROOT / "benchmarks" / "results.toml").read_text())["row"]}


def finished() -> list[str]:
    """Names of the rows of which a seed is through."""
    return [name for name in entries() if any("queue" in each for each in summaries(name))]


def preset_of(name: str) -> str:
    """The preset or method that a row runs."""
    return str(entries()[name].get("preset", name))


def claim_of(name: str) -> str:
    """What the row's source published."""
    preset = PRESETS.get(preset_of(name))
    return preset.claim if preset else ""


def measured(name: str) -> str:
    """What `polyactor presets` says of a preset that the queue ran."""
    found = summaries(name)
    steps = max(each["agent_steps"] for each in found)
    scores = ", ".join(f"{each['score_mean100']:,.4g}" for each in found)
    return f"{scores} after {steps / 1e6:.2f}M steps ({len(found)} seed{'s' * (len(found) > 1)})"


def page(name: str) -> str:
    """The page of a row."""
    found = [each for each in summaries(name) if "queue" in each]
    preset, first = preset_of(name), found[0]
    known = PRESETS.get(preset)
    about = known.about if known else METHODS[preset].about
    lines = [f"# {name}", "", f"{about[0].upper()}{about[1:]}.", ""]
    if known and known.source:
        lines += [f"Source: {known.source}. Published: {known.claim}. [What had to differ](../presets.md).", ""]
    lines += [f"![Learning curves of {name}]({name}.png)", ""]
    lines += [
        table(
            ["seed", "steps", "score at the end", "best", "confirmed by 100 fresh games", "processor hours", "resumed"],
            [
                [
                    each["seed"], f"{each['agent_steps']:,}", _score(each["score_mean100"]),
                    _score(each["best_score_mean100"]), _score(each.get("confirmation_score")),
                    f"{each['queue']['processor_s'] / 3600:.2f}", each["queue"]["resumed"],
                ]
                for each in found
            ],
        ),
        "",
        "Scores are means of 100 training games, whole and unclipped.",
    ]  # fmt: skip
    anew = [str(each["seed"]) for each in found if each["queue"]["began_anew"]]
    if anew:
        lines += [f"The machine was lost while seed {' and '.join(anew)} ran, and the run began anew."]
    if (RESULTS / name / "notes.md").is_file():
        lines += ["", (RESULTS / name / "notes.md").read_text().strip()]
    versions = ", ".join(f"{package} {version}" for package, version in first["versions"].items())
    lines += ["", f"{first['cpu']}, two cores, other work beside it; {versions}.", ""]
    if (RESULTS / name / "speed.txt").is_file():
        lines += ["On a quiet machine:", "", "```", (RESULTS / name / "speed.txt").read_text().strip(), "```", ""]
    commands = [f"git checkout {first['queue']['commit'][:12]}", *(each["queue"]["command"] for each in found)]
    lines += ["```", *commands, "```", ""]
    return "\n".join(lines)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}".replace("-", "−")


def draw(name: str, out: Path) -> None:
    """The learning curves of a row's seeds, their median where there are three, and published curves behind them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from polyactor.report.curves import COLORS, GREY

    figure = Figure(figsize=(9, 4.8), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    curves, config, most = [], {}, 1.0
    for folder in sorted((RESULTS / name).glob("seed-*"), key=_seed):
        if not (folder / "summary.json").is_file():
            continue
        config = json.loads((folder / "config.json").read_text())
        rows = [row for row in read_rows(folder / "metrics.jsonl") if row.get("score_mean100") is not None]
        curves.append((folder.name, [(row["agent_steps"], row["score_mean100"]) for row in rows]))
    most = max(x for _, points in curves for x, _ in points) / 1e6
    for label, points in published_curves(str(config["env"]), str(config["algorithm"]["name"])).items():
        xs, ys = zip(*[(x / 1e6, y) for x, y in points if x / 1e6 <= 1.5 * most], strict=True)
        panel.plot(xs, ys, color=GREY, linestyle=(0, (4, 3)), linewidth=1.8, label=label)
    for (label, points), color in zip(curves, COLORS, strict=False):
        xs, ys = zip(*[(x / 1e6, y) for x, y in points], strict=True)
        many = len(curves) >= 3
        panel.plot(xs, ys, color=color, alpha=0.45 if many else 1, linewidth=1.4 if many else 2.2, label=label)
    if len(curves) >= 3:
        panel.plot(*_median([points for _, points in curves]), color="black", linewidth=2.4, label="median")
    panel.set_xlabel("agent steps (millions)")
    panel.set_ylabel("score, mean of 100 games")
    panel.set_title(name, fontsize=14, fontweight="bold", loc="left")
    panel.set_xlim(left=0)
    panel.grid(True, color="#e3e6ea")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    figure.savefig(out, format="png")


def published_curves(env: str, algorithm: str) -> dict[str, list[tuple[float, float]]]:
    """Curves of this algorithm on this game that somebody published, by their label."""
    game = env.removesuffix("NoFrameskip-v4")
    kept = json.loads((RESULTS / "published.json").read_text())["curves"].get(game, {})
    theirs = {"a2c": ["a2c"], "ppo": ["ppo"], "acer": ["acer"], "vtrace": ["a2c"]}.get(algorithm, [])
    return {f"openai/baselines {each}, mean of 6": kept[each] for each in theirs if each in kept}


def _median(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[list[float], list[float]]:
    """The median of curves at 100 places, each with its last score up to there."""
    most = min(points[-1][0] for points in curves)
    xs = [most * n / 100 for n in range(1, 101)]
    ys = []
    for x in xs:
        at = [[score for steps, score in points if steps <= x] for points in curves]
        ys.append(statistics.median(scores[-1] for scores in at) if all(at) else float("nan"))
    return [x / 1e6 for x in xs], ys


def main() -> None:
    """Write it all."""
    PAGE.write_text(written(PAGE.read_text()))
    for name in finished():
        PAGES.mkdir(exist_ok=True)
        draw(name, PAGES / f"{name}.png")
        (PAGES / f"{name}.md").write_text(page(name))
        preset = PRESETS.get(preset_of(name))
        if preset is not None and preset_of(name) == name and preset.measured != measured(name):
            sys.stdout.write(f'settings/published.py, {name}: measured="{measured(name)}"\n')


if __name__ == "__main__":
    main()
