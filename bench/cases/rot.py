"""Rot: with messages retained.

One database with many messages that were sent before, and one that was emptied,
on the same server: drains as in the case of that name, one publisher, and the
time from commit to a consumer at 1,000/s.
"""
import drain
import figures
import latencies
import waiting


def retain(bench, server, n):
    """Fills the log with messages that are SENT"""
    topic = bench.kafka.new_topic("retained")
    waiting.attach(server, "retained", topic)
    for first in range(1, n + 1, 500000):
        waiting.fill(server, "retained", "outbox", min(500000, n + 1 - first), first=first)
        waiting.wait_for_sent(server, "retained")
    server.sql("VACUUM ANALYZE outbox.log", "retained")
    bench.kafka.delete_topic(topic)


def latency(bench, server, database, seconds):
    topic = bench.kafka.new_topic("paced")
    server.sql("TRUNCATE orders", database)
    waiting.attach(server, database, topic)
    # its number is none of the clients'
    waiting.fill(server, database, "outbox", 1, first=2 * 10 ** 9)
    waiting.wait_for_sent(server, database)
    times = latencies.of_inserts(bench, server, database, "outbox", topic, 1000, seconds)
    waiting.wait_for_sent(server, database)
    server.sql("TRUNCATE orders", database)
    bench.kafka.delete_topic(topic)
    return latencies.percentiles(times)


def once(bench, server, database, n, seconds):
    keep = database == "retained"
    server.sql("TRUNCATE orders", database)
    measured = drain.outbox(bench, server, database, n, keep=keep)
    measured.update(latency(bench, server, database, seconds))
    if not keep:
        waiting.empty(server, database, "outbox")
    return measured


def run(bench):
    many = bench.size(10000000, 300000)
    n, seconds = bench.size(300000, 50000), bench.size(20, 4)
    server = bench.server()
    for database in ("empty", "retained"):
        waiting.tables(server, database)
        server.wait_for_workers("publisher", database)
    retain(bench, server, many)
    results = figures.interleave(bench.say, bench.runs, {
        "outbox, empty": lambda: once(bench, server, "empty", n, seconds),
        "outbox, retained": lambda: once(bench, server, "retained", n, seconds),
    })
    return {"results": results, "plots": ["cpu_us", "p50_ms"],
            "figures": [
                {"figure": "drain, time, retained to empty", "key": "rot_rate",
                 "values": figures.ratios(results, "rate", "outbox, empty", "outbox, retained")},
                {"figure": "drain, CPU a message, retained to empty",
                 "values": figures.ratios(results, "cpu_us", "outbox, retained", "outbox, empty")},
                {"figure": "latency, p50, retained to empty", "key": "rot_latency",
                 "values": figures.ratios(results, "p50_ms", "outbox, retained", "outbox, empty")}],
            "sizes": f"{many:,} messages retained, {n:,} a drain, {seconds} s at 1,000/s"}
