"""Idle: workers and bridges with nothing to do.

One database with a publisher and a consumer, after some traffic. Wake-ups are
voluntary context switches of all threads; "private" memory is what goes if the
process goes, "pss" counts what is shared in proportion, shared buffers too.
"""
import time

import process
import waiting


def measure(pids, seconds):
    before = {name: (process.cpu(pid), process.voluntary_switches(pid))
              for name, pid in pids.items()}
    time.sleep(seconds)
    measured = {}
    for name, pid in pids.items():
        pss, private = process.memory(pid)
        measured[name] = {
            "cpu_ms_per_s": (process.cpu(pid) - before[name][0]) / seconds * 1000,
            "wakeups_per_s": (process.voluntary_switches(pid) - before[name][1]) / seconds,
            "private_mb": private, "pss_mb": pss}
    return measured


def run(bench):
    seconds = bench.size(60, 15)
    server = bench.server()
    waiting.tables(server, "ours")
    topic, answers = bench.kafka.new_topic("idle"), bench.kafka.new_topic("answers")
    server.sql(f"SELECT outbox.set_topic('{topic}', result_topic => '{answers}')", "ours")
    waiting.attach(server, "ours", topic)
    pids = {"launcher": server.pids("outbox launcher")[0]}
    for kind in ("publisher", "consumer"):
        pids[kind], = server.wait_for_workers(kind, "ours")
        pids[f"{kind}'s bridge"] = next(pid for pid in process.children(pids[kind])
                                        if pid != pids[kind])
    waiting.fill(server, "ours", "outbox", 20000)
    waiting.wait_for_sent(server, "ours")
    bench.kafka.kbench("results", answers, input="\n".join(
        str(row[0]) for row in server.sql("SELECT id FROM outbox.log", "ours")) + "\n")
    process.wait_until("results", lambda: server.value(
        "SELECT confirmed FROM outbox.counters()", "ours") == 20000)
    time.sleep(5)

    results = {name: {} for name in pids}
    for number in range(bench.runs):
        for name, measured in measure(pids, seconds).items():
            for metric, value in measured.items():
                results[name].setdefault(metric, []).append(value)
            bench.say(f"{number + 1}/{bench.runs} {name}: " + ", ".join(
                f"{metric} {value:.3g}" for metric, value in measured.items()))
    workers = ("launcher", "publisher", "consumer")
    bridges = tuple(name for name in pids if name not in workers)

    def total(metric, names):
        return [sum(values) for values in zip(*(results[name][metric] for name in names))]
    return {"results": results, "plots": [],
            "figures": [
                {"figure": "wake-ups a second, launcher and workers", "key": "idle_wakeups",
                 "values": total("wakeups_per_s", workers)},
                {"figure": "wake-ups a second, bridges",
                 "values": total("wakeups_per_s", bridges)},
                {"figure": "private memory of the publisher, MB", "key": "idle_memory",
                 "values": results["publisher"]["private_mb"]},
                {"figure": "private memory of the publisher and its bridge, MB",
                 "values": total("private_mb", ("publisher", "publisher's bridge"))}],
            "sizes": f"{seconds} s a run"}
