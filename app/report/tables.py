"""The report's page: tables in Markdown, with what is missing named."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from app.evaluation.intervals import Interval
from app.report.comparison import PRIMARY, Difference, Key, Outcome
from app.report.measures import NAMES
from app.report.plan import Plan
from app.report.runs import runs_of, sweep_names
from app.report.scheduling import State, area_of, chosen_rate, sweep_areas

LEVEL = 0.05
FEWEST = 6
"""Pairs below which nothing is called different: to a bootstrap, three that point the same way are certain, where a
test of signs gives 2 · 2⁻³ = 0.25. With six that agree it gives 0.03."""
TOO_FEW = f"Fewer than {FEWEST} pairs"
SHARES = ("area", "last", "heldout_middle", "heldout_end")
"""Measures between 0 and 1; the others count iterations and tokens."""
TITLES = {"main": "The main comparison", "control": "The controls"}
EXPLAINED = """\
An interval is the 2.5th to the 97.5th percentile of a bootstrap that draws warm starts, and within each drawn one its
seeds; pairs stay together. p is two-sided and corrected after Holm over all comparisons of this section on all tasks,
for each measure on its own. The area is the mean train reward of all iterations; "of the area" is the difference as a
share of the other method's area, "above the start" as a share of what that area lies above the reward of the first
iteration, which is the policy's before any update. "Ahead" counts the pairs in which the method has the larger area."""
PICTURES = """\
![The train reward of each main method](curves.png)

![Differences of the area, with their intervals](differences.png)

The raw curves are [reward.csv](reward.csv), [heldout.csv](heldout.csv) and [tokens.csv](tokens.csv) (a run a line), the
measures [measures.csv](measures.csv). This page was written by `python -m app.report`."""


def report(state: State, outcomes: Mapping[tuple[str, str], Outcome], differences: Mapping[Key, Difference]) -> str:
    """The whole page."""
    plan = state.plan
    parts = ["# What the runs showed", _standing(state), _settings(plan), EXPLAINED, PICTURES]
    for group, title in TITLES.items():
        if not any(method.group == group for method in plan.methods.values()):
            continue
        parts.append(f"## {title}")
        for task in plan.tasks:
            parts += [
                f"### {task}",
                _in_words(plan, task, group, differences),
                _differences(plan, task, group, differences),
            ]
            parts += ["Means of each method's own runs:", _means(plan, task, group, outcomes)]
    parts += ["## Learning rates", _rates(state), "## Missing runs", _missing(state)]
    return "\n\n".join(parts) + "\n"


def _standing(state: State) -> str:
    runs = runs_of(state.plan)
    done, failed = len(state.finished), len(state.failed)
    whole = "All planned runs are done" if done == len(runs) else f"**{done} of {len(runs)} planned runs are done**"
    return f"{whole}; {failed} failed." if failed else f"{whole}."


def _settings(plan: Plan) -> str:
    measures = plan.measures
    return (
        f"Fixed beforehand: {plan.warm_starts} warm starts of each task, {plan.seeds} seeds from each; the last "
        f"{measures.last} iterations; an accuracy of {measures.accuracy:g}, reached when the mean train reward of "
        f"{measures.window} iterations is at least that."
    )


def _differences(plan: Plan, task: str, group: str, differences: Mapping[Key, Difference]) -> str:
    head = ["method", "against", "pairs", "area", "of the area", "above the start", "ahead", "p (area)"]
    head += ["last reward", "held-out, middle", "held-out, end", "iterations", "tokens"]
    rows = [head]
    for method in plan.group(group):
        against = str(plan.methods[method].against)
        found = {name: differences[task, method, name] for name in NAMES if (task, method, name) in differences}
        if not found:
            rows.append([method, against, "none yet", *[""] * (len(head) - 3)])
            continue
        area = found["area"]
        row = [method, against, _of(area.pairs, area.planned), _signed(area.absolute), _percent(area.relative)]
        row += [_percent(area.above_start)]
        row += [f"{area.ahead} of {area.pairs}", _p(area.corrected) if area.pairs >= FEWEST else "too few pairs"]
        row += [_signed(found[name].absolute) for name in SHARES[1:]]
        row += [_counted(found[name].absolute) for name in ("iterations", "tokens")]
        rows.append(row)
    return table(rows)


def _in_words(plan: Plan, task: str, group: str, differences: Mapping[Key, Difference]) -> str:
    """Which methods differ from what they are compared with, after the correction, and which do not."""
    kinds: dict[str, list[str]] = {kind: [] for kind in ("Larger", "Smaller", "Cannot be told apart", TOO_FEW)}
    for method in plan.group(group):
        found = differences.get((task, method, PRIMARY))
        if found is not None:
            kinds[kind_of(found)].append(f"{method} (against {plan.methods[method].against})")
    said = [f"{kind}: {', '.join(methods)}." for kind, methods in kinds.items() if methods]
    return " ".join(["The area, at a corrected p below 0.05.", *said]) if said else "No pair is finished yet."


def kind_of(found: Difference) -> str:
    """What a comparison came to, in the words of the page."""
    if found.pairs < FEWEST:
        return TOO_FEW
    if found.corrected >= LEVEL:
        return "Cannot be told apart"
    return "Larger" if found.absolute.value > 0 else "Smaller"


def _means(plan: Plan, task: str, group: str, outcomes: Mapping[tuple[str, str], Outcome]) -> str:
    rows = [["method", "runs", *NAMES.values(), "reached it"]]
    methods = [name for name, method in plan.methods.items() if method.group == group]
    for method in methods:
        outcome = outcomes[task, method]
        count = len(outcome.runs)
        row = [method, _of(count, outcome.planned)]
        for name in NAMES:
            row.append(_number(outcome.mean(name), name) if count else "")
        rows.append([*row, f"{outcome.reached} of {count}"])
    return table(rows)


def _rates(state: State) -> str:
    plan = state.plan
    if plan.sweep is None:
        return "Not swept: they are those of the configurations."
    rows = [["task", "method", *(f"{rate:g}" for rate in plan.sweep.rates), "chosen"]]
    for task in plan.tasks:
        for method in (name for name, each in plan.methods.items() if each.rate_of is None):
            areas = sweep_areas(state, task, method)
            swept = sweep_names(plan, task, method).values()
            over = all(name in state.finished or name in state.failed for names in swept for name in names)
            chosen = _chosen(areas, plan.sweep.rates) if areas and over else "not yet"
            rows.append([task, method, *(_swept(state, names) for names in swept), chosen])
    borrowed = [f"{name} that of {each.rate_of}" for name, each in plan.methods.items() if each.rate_of]
    note = f"\n\nWithout a sweep of their own: {'; '.join(borrowed)}." if borrowed else ""
    about = (
        f"Mean area under the train reward over {plan.sweep.seeds} seeds of the sweep's own, from the first warm start."
    )
    return f"{about}\n\n{table(rows)}{note}"


def _swept(state: State, names: Sequence[str]) -> str:
    """The mean area of a rate's finished runs; a rate that lacks one is not chosen."""
    areas = [area_of(state.finished[name]) for name in names if name in state.finished]
    if not areas:
        return "missing"
    count = "" if len(areas) == len(names) else f" ({len(areas)} of {len(names)})"
    return f"{fmean(areas):.3f}{count}"


def _chosen(areas: Mapping[float, float], rates: Sequence[float]) -> str:
    rate = chosen_rate(areas)
    edge = " (at the edge of the sweep)" if rate in (min(rates), max(rates)) else ""
    return f"{rate:g}{edge}"


def _missing(state: State) -> str:
    failed = [f"- {name}: {line}" for name, line in state.failed.items()]
    waiting: dict[str, list[str]] = {}
    for run in runs_of(state.plan):
        if run.name not in state.finished and run.name not in state.failed:
            place, _, last = run.name.rpartition("/")
            waiting.setdefault(place, []).append(last)
    lines = [*failed, *(f"- {place}: not run yet: {', '.join(names)}" for place, names in waiting.items())]
    return "\n".join(lines) or "None."


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _of(count: int, planned: int) -> str:
    return str(count) if count == planned else f"{count} of {planned}"


def _signed(each: Interval) -> str:
    return f"{each.value:+.3f} ({each.low:+.3f} to {each.high:+.3f})"


def _percent(each: Interval | None) -> str:
    if each is None:
        return "nothing to share"
    return f"{each.value:+.1%} ({each.low:+.1%} to {each.high:+.1%})"


def _counted(each: Interval) -> str:
    return f"{each.value:+,.0f} ({each.low:+,.0f} to {each.high:+,.0f})"


def _number(value: float, name: str) -> str:
    return f"{value:,.0f}" if name == "tokens" else f"{value:.1f}" if name == "iterations" else f"{value:.3f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
