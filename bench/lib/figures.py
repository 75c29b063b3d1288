"""Numbers: rounds in turns, medians, ratios."""


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    if len(values) % 2:
        return values[middle]
    return (values[middle - 1] + values[middle]) / 2


def percentile(values, share):
    values = sorted(values)
    return values[min(int(share * len(values)), len(values) - 1)]


def interleave(say, runs, variants):
    """Runs each variant in turn, so many times, so that neighbours and time
    touch all alike.  variants: {name: function that returns {metric: value}}.
    Returns {name: {metric: [value of each run]}}."""
    results = {name: {} for name in variants}
    for number in range(runs):
        # there and back, so that none always follows the same one
        names = list(variants)
        if number % 2:
            names.reverse()
        for name in names:
            measured = variants[name]()
            say(f"{number + 1}/{runs} {name}: " + ", ".join(
                f"{metric} {value:.4g}" for metric, value in measured.items()))
            for metric, value in measured.items():
                results[name].setdefault(metric, []).append(value)
    return results


def ratios(results, metric, one, other):
    """Of each round, since only what ran side by side compares"""
    return [a / b for a, b in zip(results[one][metric], results[other][metric])]


def differences(results, metric, one, other):
    return [a - b for a, b in zip(results[one][metric], results[other][metric])]
