"""Commit to acknowledged, idle.

One order every 20 ms, nothing else. The clock runs from the commit as its
client saw it to the SENT mark, made when the worker had the acknowledgement;
beside it librdkafka's produce alone, from the call to the acknowledgement, as
far apart.
"""
import figures
import latencies
import process
import waiting

APART = 20


def outbox(bench, server, n):
    script = f"\\sleep {APART} ms\n\\set n :n + 1\n" + latencies.INSERTS["outbox"]
    server.pgbench(script, "ours", clients=1, transactions=n, options=[
        "-D", "n=0", "-D", "note=" + "x" * 130, "-l", f"--log-prefix={server.dir}/log"])
    waiting.wait_for_sent(server, "ours")
    sent = {(0, number): int(at) for number, at in server.sql(
        """SELECT (payload::json ->> 'n')::int, extract(epoch FROM updated_at) * 1000000
           FROM outbox.message""", "ours")}
    commits = latencies.commits(f"{server.dir}/log")
    waiting.empty(server, "ours", "outbox")
    times = [(sent[which] - at) / 1000 for which, at in commits.items()]
    return {"p50_ms": figures.percentile(times, .5), "p99_ms": figures.percentile(times, .99)}


def produce(bench, topic, n):
    words = bench.kafka.ktool("rtt", topic, n, APART).split()
    values = dict(zip(words[::2], map(float, words[1::2])))
    return {"p50_ms": values["p50"] / 1000, "p99_ms": values["p99"] / 1000}


def run(bench):
    n = bench.size(500, 100)
    server = bench.server()
    waiting.tables(server, "ours")
    topic, raw = bench.kafka.new_topic("idle"), bench.kafka.new_topic("raw")
    waiting.attach(server, "ours", topic)
    server.wait_for_workers("publisher", "ours")
    outbox(bench, server, 20)
    results = figures.interleave(bench.say, bench.runs, {
        "a client's produce": lambda: produce(bench, raw, n),
        "outbox": lambda: outbox(bench, server, n),
    })
    return {"results": results, "plots": ["p50_ms"],
            "figures": [{"figure": "p50 above a client's produce, ms", "key": "acknowledge",
                         "values": figures.differences(results, "p50_ms", "outbox",
                                                       "a client's produce")}],
            "sizes": f"{n} orders a run"}
