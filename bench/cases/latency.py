"""Latency: commit to visible to a consumer.

pgbench inserts one order a transaction, synchronously, at a given rate over 4
connections (with pauses as a random arrival has them). The clock runs from the
commit as its client saw it to the moment when a consumer that waits has the
record; it can be below zero, where the record is faster than the answer to the
COMMIT. "a client's produce" is librdkafka's, with linger 0, from the call on.
The relay polls every 50 ms, 100 rows a transaction; Debezium every 10 ms. Half
the maximum is that of what outbox sustained in a short trial.
"""
import figures
import latencies
import process
import waiting


def outbox(bench, server, topics, rate, seconds):
    times = latencies.of_inserts(bench, server, "ours", "outbox", topics["outbox"], rate, seconds)
    waiting.empty(server, "ours", "outbox")
    return latencies.percentiles(times)


def relay(bench, server, topics, rate, seconds):
    relay = bench.relay(server, "ours", topics["relay"], batch=100)
    before = bench.kafka.records(topics["relay"])
    waiting.fill(server, "ours", "relay", 1)
    process.wait_until("the first one", lambda: bench.kafka.records(topics["relay"]) > before)
    times = latencies.of_inserts(bench, server, "ours", "relay", topics["relay"], rate, seconds)
    relay.stop()
    waiting.empty(server, "ours", "relay")
    return latencies.percentiles(times)


def debezium(bench, server, topics, rate, seconds):
    times = latencies.of_inserts(bench, server, "theirs", "debezium", topics["debezium"], rate,
                                 seconds)
    waiting.empty(server, "theirs", "debezium")
    return latencies.percentiles(times)


def produce(bench, topics, rate, seconds):
    return latencies.percentiles(latencies.of_producer(bench, topics["produce"], rate, seconds))


def maximum(bench, server, seconds):
    """INSERTs a second that are published as they come"""
    script = "\\set n :n + 1\n" + latencies.INSERTS["outbox"]
    base = waiting.published(server, "ours")
    rate = server.pgbench(script, "ours", clients=4, seconds=seconds,
                          options=["-D", "n=0", "-D", "note=" + "x" * 130])
    done = waiting.published(server, "ours") - base
    waiting.wait_for_sent(server, "ours")
    waiting.empty(server, "ours", "outbox")
    return min(rate, done / seconds)


def run(bench):
    seconds = bench.size(30, 4)
    server = bench.server()
    waiting.tables(server, "ours")
    topics = {way: bench.kafka.new_topic(way) for way in ("outbox", "relay", "debezium", "produce")}
    waiting.attach(server, "ours", topics["outbox"])
    server.wait_for_workers("publisher", "ours")
    theirs = bench.server("theirs", outbox=False, wal_level="logical")
    waiting.debezium_tables(theirs, "theirs")
    connector = bench.debezium(theirs, "theirs", None)
    if connector is not None:
        debezium(bench, theirs, topics, 1000, seconds)
    half = int(maximum(bench, server, bench.size(10, 3)) / 2)

    variants = {}
    for rate in (100, 1000, half):
        variants[f"a client's produce, {rate}/s"] = \
            lambda rate=rate: produce(bench, topics, rate, seconds)
        variants[f"outbox, {rate}/s"] = \
            lambda rate=rate: outbox(bench, server, topics, rate, seconds)
        variants[f"relay, {rate}/s"] = \
            lambda rate=rate: relay(bench, server, topics, rate, seconds)
        if connector is not None:
            variants[f"Debezium, {rate}/s"] = \
                lambda rate=rate: debezium(bench, theirs, topics, rate, seconds)
    results = figures.interleave(bench.say, bench.runs, variants)
    found = [{"figure": f"p99 to that of a client's produce, {rate}/s",
              "key": "latency" if rate == 1000 else None,
              "values": figures.ratios(results, "p99_ms", f"outbox, {rate}/s",
                                       f"a client's produce, {rate}/s")}
             for rate in (100, 1000, half)]
    found += [{"figure": f"p50 of {other} to that of outbox, {rate}/s",
               "values": figures.ratios(results, "p50_ms", f"{other}, {rate}/s",
                                        f"outbox, {rate}/s")}
              for other in ("relay", "Debezium") for rate in (100, 1000, half)
              if f"{other}, {rate}/s" in results]
    return {"results": results, "figures": found, "plots": ["p50_ms", "p99_ms"],
            "sizes": f"{seconds} s a run; half the maximum is {half}/s"}
