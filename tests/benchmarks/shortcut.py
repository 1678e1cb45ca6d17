"""Measures how often the audit finds a planted shortcut, and how often it raises false alarms.

    python tests/benchmarks/shortcut.py [--seeds 20] [--first 0] [--rates 1 .5 .2 .1 .05 0] [--roaming] [--cache DIR]

Trains a model for every seed and rate (shortcut_cases.py), about five seconds each. Prints for every method how often
the marked class is ranked first, how often it raises an alarm, and the number of alarms about other classes. Precision
is the share of an alarm's rows that carry the mark; recall is the share of the marked rows that are among them.
"Fooled" measures whether the model uses the mark at all: no audit can find a mark that the model ignores. Seeds from
100 on are for tuning.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from shortcut_cases import METHODS, Case, Seen, see  # noqa: E402

from jobs.audit.audit_schema import OBJECT_MEASURES  # noqa: E402
from jobs.audit.class_examination import examine_class  # noqa: E402
from jobs.audit.group_types import Background, ClassRows  # noqa: E402

USED = 0.1  # a model uses the mark if it is fooled on at least this share of the other classes' images


@dataclass(frozen=True)
class Outcome:
    first: bool
    alarm: bool
    false_alarms: int
    precision: float
    recall: float
    used: bool
    seconds: float


def audit(seen: Seen, method: int) -> Outcome:
    """Audits all classes of a case, with rows grouped by the predicted class."""
    small, nothing = seen.small[method], np.full(len(seen.labels), np.nan, np.float32)
    background = Background(small, seen.predicted)
    scores, alarms, seconds, precision, recall = {}, {}, 0.0, np.nan, np.nan
    for number in np.unique(seen.predicted):
        rows = np.flatnonzero(seen.predicted == number)
        measures = seen.measures_of(method) | dict.fromkeys(OBJECT_MEASURES, nothing)
        group = ClassRows(
            number=int(number),
            name=None,
            rows=rows,
            small=small[rows],
            correct=(seen.labels[rows] == number).astype(np.float32),
            probability=seen.probability[rows],
            sure=seen.probability[rows],
            measures={name: values[rows] for name, values in measures.items()},
        )
        started = time.process_time()
        found = examine_class(group, background, seed=0)
        seconds += time.process_time() - started
        scores[number], alarms[number] = found.line["score"], found.line["alarm"]
        if number == seen.culprit and found.line["alarm"]:
            whole = found.line["suspect"] == -1
            told = np.ones(len(rows), np.bool_) if whole else found.cluster == found.line["suspect"]
            marked = seen.marked[rows]
            precision, recall = marked[told].mean(), told[marked].mean() if marked.any() else np.nan
    return Outcome(
        first=max(scores, key=lambda number: scores[number]) == seen.culprit,
        alarm=bool(alarms.get(seen.culprit, False)),
        false_alarms=sum(bool(alarm) for number, alarm in alarms.items() if number != seen.culprit),
        precision=float(precision),
        recall=float(recall),
        used=seen.fooled >= USED,
        seconds=seconds / len(scores),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.5, 0.2, 0.1, 0.05, 0.0])
    parser.add_argument("--roaming", action="store_true", help="place the mark at a random position in every image")
    parser.add_argument(
        "--cache", type=Path, help="folder that keeps the cases for the next call (default: a temporary one)"
    )
    given = parser.parse_args()
    cache = given.cache or Path(tempfile.mkdtemp())
    cache.mkdir(parents=True, exist_ok=True)
    seconds = []
    for rate in given.rates:
        cases = [see(Case(seed, rate, given.roaming), cache) for seed in range(given.first, given.first + given.seeds)]
        fooled = np.array([seen.fooled for seen in cases])
        rise = np.array([seen.rise for seen in cases])
        print(
            f"\n{rate:.0%} marked: accuracy {np.mean([seen.accuracy for seen in cases]):.1%}; fooled "
            f"{fooled.mean():.1%} ({(fooled >= USED).sum()} of {len(cases)} models by {USED:.0%} and more); "
            f"score rises by {np.median(rise):.1f} sd"
        )
        for method, name in enumerate(METHODS):
            found = [audit(seen, method) for seen in cases]
            seconds += [outcome.seconds for outcome in found]
            print(f"  {name:17}" + (_quiet(found) if rate == 0 else _marked(found)), flush=True)
    print(f"\n{np.mean(seconds):.3f} CPU seconds a class (about 120 rows), at most {max(seconds):.3f}")


def _marked(found: list[Outcome]) -> str:
    used = [outcome for outcome in found if outcome.used]
    alarms = [outcome for outcome in found if outcome.alarm]
    return (
        f"first {_part([o.first for o in found])} · alarm {_part([o.alarm for o in found])} · if the model uses it: "
        f"first {_part([o.first for o in used])}, alarm {_part([o.alarm for o in used])} · "
        f"precision {_mean([o.precision for o in alarms])}, recall {_mean([o.recall for o in alarms])} · "
        f"alarms about others {sum(o.false_alarms for o in found)}"
    )


def _quiet(found: list[Outcome]) -> str:
    alarms = [outcome.alarm + outcome.false_alarms for outcome in found]
    return f"no alarm in {_part([not alarm for alarm in alarms])} runs; {sum(alarms)} alarms"


def _part(flags: list[bool]) -> str:
    return f"{sum(flags)}/{len(flags)}"


def _mean(values: list[float]) -> str:
    return f"{np.nanmean(values):.2f}" if values else "–"


if __name__ == "__main__":
    main()
