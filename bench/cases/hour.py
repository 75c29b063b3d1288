"""Size of the log: an hour at 1,000/s.

Orders come at 1,000/s and are published as they come; autovacuum is on, with
its defaults. The size of the log's tables (fillfactor 50, with the room that a
change of status needs) and of their indexes, a message, at each quarter of that
time, and beside it that of as many as in the first one, inserted at once and
published.
"""
import threading
import time

import latencies
import waiting

RATE = 1000

SIZES = """SELECT count(*), sum(pg_table_size(c.oid)), sum(pg_indexes_size(c.oid)),
    (SELECT count(*) FROM outbox.log)
    FROM pg_partition_tree('outbox.log') AS p JOIN pg_class AS c ON c.oid = p.relid
    WHERE c.relkind = 'r' AND pg_relation_size(c.oid) > 0"""


def sizes(server):
    segments, tables, indexes, n = map(int, server.sql(SIZES, "ours")[0])
    return {"messages": n, "segments": segments, "table_bytes": tables / n,
            "index_bytes": indexes / n}


def at_once(server, n):
    waiting.fill(server, "ours", "outbox", n)
    waiting.wait_for_sent(server, "ours")
    server.sql("VACUUM outbox.log", "ours")
    measured = sizes(server)
    waiting.empty(server, "ours", "outbox")
    return measured


def run(bench):
    seconds = bench.size(3600, 40)
    server = bench.server(autovacuum="on")
    waiting.tables(server, "ours")
    waiting.attach(server, "ours", bench.kafka.new_topic("hour"))
    server.wait_for_workers("publisher", "ours")
    results = {"as many as in a quarter, at once": at_once(server, RATE * seconds // 4)}
    orders = threading.Thread(target=server.pgbench, args=(
        "\\set n :n + 1\n" + latencies.INSERTS["outbox"], "ours"), kwargs={
            "seconds": seconds, "options": ["-R", RATE, "-D", "n=0", "-D", "note=" + "x" * 130]})
    began = time.monotonic()
    orders.start()
    for quarter in range(1, 5):
        time.sleep(max(0, began + seconds * quarter / 4 - time.monotonic()))
        if quarter == 4:
            orders.join()
            waiting.wait_for_sent(server, "ours")
        name = f"after {quarter * seconds // 4} s"
        results[name] = sizes(server)
        bench.say(f"{name}: " + ", ".join(
            f"{metric} {value:,.0f}" for metric, value in results[name].items()))
    last = results[f"after {seconds} s"]
    return {"results": {way: {metric: [value] for metric, value in measured.items()}
                        for way, measured in results.items()},
            "plots": [],
            "figures": [{"figure": f"{what}, bytes a message, to those of messages at once",
                         "values": [last[metric]
                                    / results["as many as in a quarter, at once"][metric]]}
                        for what, metric in (("tables", "table_bytes"),
                                             ("indexes", "index_bytes"))],
            "sizes": f"{RATE:,}/s for {seconds} s", "runs": 1}
