"""RESULTS.md and its plots, from what the cases left in results/*.json."""
import json
import os

import figures
import plot

# What the figures are to be: key, text, must, near the limit
WANTED = (
    ("capture_on", "INSERT rate with capture to bare INSERT, workers resting, synchronous commit",
     ">= .90", ".93"),
    ("capture_off", "the same, asynchronous commit", ">= .73", ".77"),
    ("bulk", "bulk capture: CPU added by it to that of a bare row", "<= 3.4", "2.6"),
    ("drain_cpu", "drain, one publisher: CPU µs a message of server, worker and bridge, above"
     " librdkafka's own producer's", "<= 3.0", "2.3"),
    ("drain_cpu_two", "the same, two publishers", "<= 3.0", "2.3"),
    ("drain_rate", "drain rate to librdkafka's own producer, one publisher", ">= .4", "-"),
    ("drain_rate_two", "the same, two publishers", "-", ".7"),
    ("drain_debezium", "drain rate to Debezium's", ">= 5", "10"),
    ("drain_debezium_cpu", "CPU a message to Debezium's", "<= .2", ".125"),
    ("acknowledge", "commit to acknowledged, idle, p50 above the raw produce round trip, ms",
     "<= 1", ".3"),
    ("latency", "latency p99 at 1,000/s to that of a raw produce", "<= 3", "1.5"),
    ("wal", "WAL a message, capture to SENT and vacuumed, above the payload, bytes",
     "<= 280", "185"),
    ("rot_rate", "drain, time with messages retained to without", "<= 1.2", "1.0"),
    ("rot_latency", "latency p50 with messages retained to without", "<= 1.2", "1.0"),
    ("snapshot_rate", "drain, time with a snapshot held to without", "<= 1.2", "1.0"),
    ("snapshot_latency", "latency p50 with a snapshot held to without", "<= 1.2", "1.0"),
    ("results", "results to CONFIRMED, rows a CPU second", ">= 250k", "400k (estimate)"),
    ("subscription", "subscription, records/s to a Python consumer's", ">= 3", "6 (estimate)"),
    ("idle_wakeups", "idle: wake-ups a second of all workers", "<= 1", ".2"),
    ("idle_memory", "idle: memory of a worker, MB", "<= 30", "20"),
)


def number(value):
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread(values):
    """median (min to max)"""
    if len(values) == 1:
        return number(values[0])
    return f"{number(figures.median(values))} ({number(min(values))} to {number(max(values))})"


def limit(text):
    """(is a minimum, value) of ">= .9", or None"""
    if not text.startswith((">=", "<=")):
        return None
    value = text.split()[1]
    return text[0] == ">", float(value.rstrip("k")) * (1000 if value.endswith("k") else 1)


def verdict(must, values):
    bound = limit(must)
    if bound is None:
        return ""
    at_least, value = bound
    middle = figures.median(values)
    return "yes" if (middle >= value if at_least else middle <= value) else "**no**"


def wanted_table(cases):
    found = {figure["key"]: figure["values"]
             for case in cases for figure in case["figures"] if figure.get("key")}
    lines = ["| figure | must | near the limit | measured | reached |", "|---|---|---|---|---|"]
    for key, text, must, near in WANTED:
        values = found.get(key)
        lines.append(f"| {text} | {must} | {near} | "
                     + (f"{spread(values)} | {verdict(must, values)} |" if values
                        else "not measured | |"))
    return lines


def case_table(results):
    metrics = []
    for measured in results.values():
        metrics += [metric for metric in measured if metric not in metrics]
    lines = ["| | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for name, measured in results.items():
        lines.append(f"| {name} | " + " | ".join(
            spread(measured[metric]) if metric in measured else "" for metric in metrics) + " |")
    return lines


def case_section(case, work):
    lines = [f"## {case['title']}", "", case["what"], "",
             f"{case['sizes']}; {case['runs']} run{'' if case['runs'] == 1 else 's'}; measured"
             f" {case['when']}, load before {case['load']}.", ""]
    lines += case_table(case["results"])
    if case["figures"]:
        lines += ["", "| ratio | median (min to max) |", "|---|---|"]
        lines += [f"| {figure['figure']} | {spread(figure['values'])} |"
                  for figure in case["figures"]]
    for note in case.get("notes", []):
        lines += ["", note]
    lines.append("")
    for metric in case["plots"]:
        rows = [(name, measured[metric]) for name, measured in case["results"].items()
                if metric in measured]
        name = f"{case['case']}-{metric}.svg"
        with open(f"{work}/{name}", "w") as file:
            file.write(plot.bars(f"{case['title']}: {metric}", rows))
        lines += [f"![{metric}]({name})", ""]
    return lines


def machine_section(machine):
    lines = ["## Where", "",
             f"{machine['cpu']}, {machine['memory']}, Linux {machine['kernel']}."
             " The broker runs on the same machine.", "", "| | version |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in machine["versions"].items()]
    lines += ["", "Settings of every server (a case names its own): " + ", ".join(
        f"`{name} = {value}`" for name, value in machine["settings"].items()) + ".", ""]
    return lines


def write(work, order):
    cases = []
    for name in order:
        path = f"{work}/results/{name}.json"
        if os.path.exists(path):
            with open(path) as file:
                cases.append(json.load(file))
    if not cases:
        return
    lines = ["# What the bench measured", "",
             "Written by `make bench`; see [README.md](README.md). Runs took turns; a figure is the"
             " median, with the smallest and the largest. Ratios are those of runs side by side:"
             " only they mean anything elsewhere.", ""]
    if any(case["quick"] for case in cases):
        lines += ["**Quick sizes: to try the bench out, not to prove anything.**", ""]
    lines += ["## What is to be reached", ""] + wanted_table(cases) + [""]
    lines += machine_section(max(cases, key=lambda case: case["when"])["machine"])
    for case in cases:
        lines += case_section(case, work)
    with open(f"{work}/RESULTS.md", "w") as file:
        file.write("\n".join(lines).rstrip() + "\n")
