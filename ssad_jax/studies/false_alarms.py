"""Do thresholds hold the false alarm rate that they promise? Measured on simulated days without faults.

    python -m ssad_jax.studies.false_alarms --config=configs/openstack.py --workdir=runs/false_alarms

Writes false_alarms.json and false_alarms.md into `--output`. Each day is a system of its own seed; what was computed of
a day is kept in the workdir, so that an interrupted study goes on. See `studies/days.py` for what a day is.
"""

from pathlib import Path

import numpy as np
from absl import flags, logging

from data_prep import command
from ssad_jax.scoring import conformal
from ssad_jax.scoring.thresholds import METHODS, decide
from ssad_jax.studies import days
from ssad_jax.studies.common import begin, binomial_interval, interval_over, percent, table, write_results

RATES = (0.01, 0.05)
HIDDEN, EPOCHS, TRAIN_STRIDE = 32, 5, 100  # of method A: small, so that a day takes a minute or two
SPLITS = {
    "random": "half of the windows, drawn at random, calibrate, the others are judged: exchangeable by construction",
    "alternating": "every second segment (10 min) calibrates, the others are judged",
    "chronological": "segments of the first 65% of the day calibrate, the last 35% is judged: what the program does",
}
SPLITTER_SEED = 0


def split(day: days.Day, how: str, number: int) -> np.ndarray:
    """[M] bool: which windows calibrate; the others are judged."""
    if how == "chronological":
        return day.part == 1
    if how == "alternating":
        return np.unique(day.segment, return_inverse=True)[1] % 2 == 0
    return np.random.default_rng([SPLITTER_SEED, number]).permutation(len(day.score)) < len(day.score) // 2


def judge(day: days.Day, number: int, how: str, overlapping: bool, rate: float, score_config, length: int, stride: int):
    """Alerts of one day: threshold method -> (alerts, judged windows).

    Args:
        overlapping: all windows, instead of those that share no tick.
        length, stride: of windows, in ticks.
    """
    if not overlapping:
        rows = conformal.disjoint(day.start_tick, length)
        day, stride = days.Day(*(column[rows] for column in day)), length
    calibrates = split(day, how, number)
    overlap = conformal.overlap(day.start_tick[calibrates], length, stride)
    settings = score_config.copy_and_resolve_references()
    settings.update({"quantile": 1 - rate, "pot_risk": rate, "false_alarm_rate": rate})
    out = {}
    for name in (*METHODS, "conformal, disjoint windows"):
        settings.threshold, _, disjoint = name.partition(", ")
        settings.conformal_windows = "disjoint" if disjoint else "all"
        alert = decide(day.score[calibrates], day.score[~calibrates], settings, overlap).alert
        out[name] = (int(alert.sum()), len(alert))
    return out


def summary(counts: list[tuple[int, int]], rate: float, independent: bool) -> dict:
    """Observed rate over days with intervals; the binomial one where windows are independent.

    Args: counts: (alerts, windows) of each day.
    """
    alerts, windows = (int(sum(c)) for c in zip(*counts, strict=True))
    by_day = [a / n for a, n in counts]
    low, high = interval_over(by_day)
    out = {
        "nominal": rate, "observed": alerts / windows, "alerts": alerts, "windows": windows, "days": len(counts),
        "interval_over_days": [low, high], "by_day": by_day,
    }  # fmt: skip
    if independent:
        inside = [binomial_interval(a, n)[0] <= rate <= binomial_interval(a, n)[1] for a, n in counts]
        out |= {"binomial_interval": list(binomial_interval(alerts, windows)), "days_within_binomial": sum(inside)}
    return out


def study(load, score_config, numbers, how: str, overlapping: bool, length: int, stride: int) -> dict:
    """Rate -> threshold method -> `summary`. `load(number)` gives a day."""
    results: dict = {}
    for rate in RATES:
        counts: dict[str, list] = {}
        for number in numbers:
            judged = judge(load(number), number, how, overlapping, rate, score_config, length, stride)
            for name, count in judged.items():
                counts.setdefault(name, []).append(count)
        results[str(rate)] = {name: summary(each, rate, not overlapping) for name, each in counts.items()}
    return results


def parts(network_days: int) -> list[tuple[str, str, str, bool]]:
    """(detector, drift, split, overlapping windows) of each part of the study."""
    out = [("closed_form", "none", how, False) for how in SPLITS]
    out += [("closed_form", "none", "chronological", True)]
    out += [("closed_form", "latency", "chronological", overlapping) for overlapping in (False, True)]
    if network_days:
        out += [("knowledge_ssl", "none", how, False) for how in ("random", "chronological")]
        out += [("knowledge_ssl", "none", "chronological", True)]
    return out


def page(results: dict) -> str:
    """The study as Markdown."""
    facts = results["settings"]
    lines = [
        "# False alarm rate against the nominal rate\n",
        f"{facts['days']} simulated days of {facts['hours']:g} h without faults, each a system of its own seed "
        f"(first seed {facts['first_seed']}), one worker for each of Rally's scenarios, load {facts['load']:g} that "
        f"makes one wave over the day. A system is fitted on every second segment of the first 65% of its day; all "
        f"other windows were seen by no fit. `closed_form`: residuals of the closed-form expectations, no network. "
        f"`knowledge_ssl`: method A with {HIDDEN} hidden units after {EPOCHS} epochs on a "
        f"part of the training sequences, on {facts['network_days']} days. "
        f"Simulated data; written by `python -m ssad_jax.studies.false_alarms`.\n",
        "Splits of the windows that no fit saw:\n",
        *(f"- *{name}*: {text}" for name, text in SPLITS.items()),
        "\nDrift *latency*: every span takes longer and longer, up to "
        f"{1 + facts['slower']:g} times its duration at the end of the day. Windows last {facts['length']} ticks; "
        f"*disjoint* ones share no tick, *overlapping* ones begin {facts['stride']} ticks apart. Quantile and POT are "
        "set to the same rate.\n",
        "In brackets the 95% binomial interval of the pooled rate for disjoint windows, the bootstrap interval over "
        "days for overlapping ones (which are not independent). The binomial interval knows nothing of the chance in "
        "the calibration scores themselves, which is as large where as many windows calibrate as are judged. *days*: "
        "those whose own binomial interval holds the nominal rate.\n",
    ]
    for part in results["parts"]:
        windows = "overlapping windows" if part["overlapping"] else "disjoint windows"
        lines.append(f"## {part['detector']}, drift: {part['drift']}, {part['split']}, {windows}\n")
        head = ["threshold"]
        for rate in RATES:
            head += [f"at {percent(rate)}", "[95%]"] + ([] if part["overlapping"] else ["days"])
        rows = []
        for name in part["rates"][str(RATES[0])]:
            row = [name]
            for rate in RATES:
                cell = part["rates"][str(rate)][name]
                low, high = cell.get("binomial_interval", cell["interval_over_days"])
                row += [percent(cell["observed"]), f"[{percent(low)}, {percent(high)}]"]
                row += [] if part["overlapping"] else [f"{cell['days_within_binomial']}/{cell['days']}"]
            rows.append(row)
        some = part["rates"][str(RATES[0])]["conformal"]
        lines += [table(head, rows), f"{some['windows']} judged windows on {some['days']} days.\n"]
    return "\n".join(lines)


def run(config, workdir: Path, output: Path, num_days: int, drift_days: int, network_days: int, hours: float) -> dict:
    """The whole study; returns what false_alarms.json holds.

    Args:
        config: of an OpenStack; workdir: for the days; output: for the results.
        num_days: scored by closed-form expectations; drift_days: of these also with drift; network_days: of these also
            scored by method A.
        hours: simulated time of a day.
    """
    config = config.copy_and_resolve_references()
    config.model.hidden_dim, config.data.train_stride = HIDDEN, TRAIN_STRIDE
    config.train.num_epochs = config.train.checkpoint_every = EPOCHS
    begin(config, workdir, output, hours=hours)
    wanted = parts(network_days)
    numbers = {
        ("closed_form", "none"): range(num_days), ("closed_form", "latency"): range(min(drift_days, num_days)),
        ("knowledge_ssl", "none"): range(min(network_days, num_days)),
    }  # fmt: skip

    def find(detector, drift, number):
        return days.find_day(workdir, config, number, drift, detector, hours)

    for number in range(num_days):
        for detector, drift in dict.fromkeys((detector, drift) for detector, drift, _, _ in wanted):
            if number in numbers[detector, drift]:
                windows = len(find(detector, drift, number).score)
                logging.info("day %d, %s, drift %s: %d windows", number, detector, drift, windows)
        days.forget(workdir, number)

    length, stride = config.data.window_length, config.data.stride
    results = {
        "settings": {
            "days": num_days, "hours": hours, "first_seed": days.SEED, "load": days.LOAD,
            "network_days": network_days, "slower": days.SLOWER, "length": length, "stride": stride,
        },
        "parts": [
            {"detector": detector, "drift": drift, "split": how, "overlapping": overlapping}
            | {"rates": study(lambda n, a=detector, b=drift: find(a, b, n), config.score, numbers[detector, drift], how,
                              overlapping, length, stride)}
            for detector, drift, how, overlapping in wanted
        ],
    }  # fmt: skip
    write_results(output, "false_alarms", results, page(results))
    return results


if __name__ == "__main__":
    CONFIG = command.define_config_flag()
    WORKDIR = flags.DEFINE_string("workdir", "runs/false_alarms", "Where days are simulated and kept.")
    OUTPUT = flags.DEFINE_string("output", "docs/studies", "Where false_alarms.json and false_alarms.md go.")
    DAYS = flags.DEFINE_integer("days", 20, "Independent days, scored by closed-form expectations.", lower_bound=2)
    DRIFT_DAYS = flags.DEFINE_integer("drift_days", 10, "Of these, days that are also made to drift.", lower_bound=2)
    NETWORK_DAYS = flags.DEFINE_integer(
        "network_days", 5, "Of these, days without drift also scored by method A.", lower_bound=0
    )
    HOURS = flags.DEFINE_float("hours", 12.0, "Simulated hours of a day.", lower_bound=1.0)

    def main():
        with command.stopped_by_signals(f"what is finished is kept in {WORKDIR.value}; the same command goes on there"):
            results = run(
                CONFIG.value, Path(WORKDIR.value), Path(OUTPUT.value), DAYS.value, DRIFT_DAYS.value, NETWORK_DAYS.value,
                HOURS.value,
            )
        print(page(results))

    command.run(main)
