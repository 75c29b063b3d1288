"""Results to CONFIRMED.

A result SUCCESS for each of many SENT messages waits in the result topic; the
clock runs until all are CONFIRMED. CPU is that of the server, the consumer and
its bridge. "shuffled": in no order, as from many services.
"""
import random

import figures
import postgres
import process
import waiting


def confirmed(server):
    return server.value("SELECT confirmed FROM outbox.counters()", "ours")


def once(bench, server, n, shuffled):
    topic, answers = bench.kafka.new_topic("asked"), bench.kafka.new_topic("answers")
    server.sql(f"SELECT outbox.set_topic('{topic}', result_topic => '{answers}')", "ours")
    waiting.attach(server, "ours", topic)
    waiting.fill(server, "ours", "outbox", n)
    waiting.wait_for_sent(server, "ours")
    ids = [str(row[0]) for row in server.sql("SELECT id FROM outbox.log ORDER BY id", "ours")]
    if shuffled:
        random.Random(n).shuffle(ids)

    # The first few tell that the topic is read.
    base, few = confirmed(server), 100
    bench.kafka.kbench("results", answers, input="\n".join(ids[:few]) + "\n")
    process.wait_until("the first of them", lambda: confirmed(server) == base + few)
    pids = server.workers("consumer", "ours")
    bridges = postgres.bridges(pids)
    postgres.halt(pids, bridges)
    bench.kafka.kbench("results", answers, input="\n".join(ids[few:]) + "\n")
    server.sql("CHECKPOINT")
    parts = {"worker": server.cpu_of("outbox consumer"),
             "bridge": lambda: sum(map(process.cpu, bridges))}
    wal = server.wal()
    with process.Meter(broker=bench.kafka.cpu, **parts) as meter:
        postgres.go_on(bridges + pids)
        process.wait_until("all to be confirmed", lambda: confirmed(server) == base + n,
                           timeout=600, pause=0.01)
    wal = server.wal() - wal
    if postgres.bridges(pids) != bridges:
        raise RuntimeError("a bridge has ended meanwhile")
    n -= few
    used = meter.cpu["worker"] + meter.cpu["bridge"]
    server.sql(f"SELECT outbox.set_topic('{topic}')", "ours")
    waiting.empty(server, "ours", "outbox")
    for name in (topic, answers):
        bench.kafka.delete_topic(name)
    return {"rate": n / meter.seconds, "rows_per_cpu_s": n / used,
            "worker_us": meter.cpu["worker"] / n * 1e6,
            "bridge_us": meter.cpu["bridge"] / n * 1e6,
            "broker_us": meter.cpu["broker"] / n * 1e6, "wal_bytes": wal / n}


def run(bench):
    n = bench.size(1000000, 50000)
    server = bench.server()
    waiting.tables(server, "ours")
    server.wait_for_workers("publisher", "ours")
    results = figures.interleave(bench.say, bench.runs, {
        "outbox, in order": lambda: once(bench, server, n, False),
        "outbox, shuffled": lambda: once(bench, server, n, True),
    })
    return {"results": results, "plots": ["rows_per_cpu_s"],
            "figures": [{"figure": "rows a CPU second", "key": "results",
                         "values": results["outbox, in order"]["rows_per_cpu_s"]}],
            "sizes": f"{n:,} results"}
