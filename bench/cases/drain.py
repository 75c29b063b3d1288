"""Drain: waiting messages to acknowledged and SENT.

Messages of 200 bytes, with a key and two headers, wait in a table; the clock
runs until the broker has acknowledged all of them, and the table says so (not
with Debezium, which marks nothing). Each way is warm and halted while its
messages are written. CPU is that of the whole server and of the client (worker
and bridge; relay; Debezium's Java), the broker's apart. "librdkafka alone" sends
the same records from memory. The relay is Python's, 1,000 rows a transaction.
"""
import os
import signal

import figures
import postgres
import process
import waiting


def measured(n, meter, **more):
    result = {"rate": n / meter.seconds,
              "cpu_us": sum(seconds for name, seconds in meter.cpu.items()
                            if name != "broker") / n * 1e6}
    for name, seconds in meter.cpu.items():
        result[f"{name}_us"] = seconds / n * 1e6
    return dict(result, **more)


def server_without(server, *others):
    """CPU of the server but for our own sessions, and for what is told apart"""
    sessions = [connection.info.backend_pid for connection in server.connections.values()]
    return lambda: (server.cpu() - sum(map(process.cpu, sessions))
                    - sum(other() for other in others))


def outbox(bench, server, database, n, publishers=1, keep=False):
    """keep: the messages stay in the log"""
    topic = bench.kafka.new_topic("drain")
    server.set(outbox__publishers=publishers)
    server.wait_for_workers("publisher", database, publishers)
    waiting.attach(server, database, topic)
    base = waiting.published(server, database)
    first = server.value("SELECT coalesce(max(id), 0) + 1 FROM orders", database)
    waiting.fill(server, database, "outbox", 1000, first=first)
    process.wait_until("the first of them",
                       lambda: waiting.published(server, database) == base + 1000)
    pids = server.workers("publisher", database)
    postgres.halt(pids)
    waiting.fill(server, database, "outbox", n, first=first + 1000)
    server.sql("CHECKPOINT")
    worker, bridge = server.cpu_of("outbox publisher"), server.cpu_of("outbox_bridge")
    wal = server.wal()
    with process.Meter(server=server_without(server, worker, bridge), worker=worker,
                       bridge=bridge, broker=bench.kafka.cpu) as meter:
        postgres.go_on(pids)
        process.wait_until(
            "all to be sent", lambda: waiting.published(server, database) == base + 1000 + n,
            timeout=600, pause=0.01)
    wal = server.wal() - wal
    if server.workers("publisher", database) != pids:
        raise RuntimeError("a worker has ended meanwhile")
    if not keep:
        waiting.empty(server, database, "outbox")
    bench.kafka.delete_topic(topic)
    return measured(n, meter, wal_bytes=wal / n)


def relay(bench, server, n):
    topic = bench.kafka.new_topic("drain")
    relay = bench.relay(server, "ours", topic)
    waiting.fill(server, "ours", "relay", 1000)
    process.wait_until("the first of them", lambda: bench.kafka.records(topic) == 1000)
    os.kill(relay.pids()[0], signal.SIGSTOP)
    waiting.fill(server, "ours", "relay", n, first=1001)
    server.sql("VACUUM ANALYZE relay_outbox", "ours")
    server.sql("CHECKPOINT")
    with process.Meter(server=server_without(server), relay=relay.cpu,
                       broker=bench.kafka.cpu) as meter:
        postgres.go_on(relay.pids())
        process.wait_until("all to be sent", lambda: bench.kafka.records(topic) == n + 1000,
                           timeout=600)
        process.wait_until("all to be marked", lambda: server.value(
            "SELECT NOT EXISTS (SELECT FROM relay_outbox WHERE status = 'NEW')", "ours"))
    relay.stop()
    waiting.empty(server, "ours", "relay")
    bench.kafka.delete_topic(topic)
    return measured(n, meter)


def debezium(bench, server, connector, n):
    topic = bench.kafka.new_topic("drain")
    waiting.fill(server, "theirs", "debezium", 1000, topic)
    process.wait_until("the first of them", lambda: bench.kafka.records(topic) == 1000)
    senders = server.pids("walsender")
    os.kill(connector.pids()[0], signal.SIGSTOP)
    postgres.halt(senders)
    waiting.fill(server, "theirs", "debezium", n, topic, first=1001)
    server.sql("CHECKPOINT")
    with process.Meter(server=server_without(server), java=connector.cpu,
                       broker=bench.kafka.cpu) as meter:
        postgres.go_on(senders + connector.pids())
        process.wait_until("all to be sent", lambda: bench.kafka.records(topic) >= n + 1000,
                           timeout=600)
    waiting.empty(server, "theirs", "debezium")
    bench.kafka.delete_topic(topic)
    return measured(n, meter)


def alone(bench, n):
    topic = bench.kafka.new_topic("drain")
    before = bench.kafka.cpu()
    seconds, cpu = map(float, bench.kafka.kbench("produce", topic, n).split())
    broker = bench.kafka.cpu() - before
    bench.kafka.delete_topic(topic)
    return {"rate": n / seconds, "cpu_us": cpu / n * 1e6, "broker_us": broker / n * 1e6}


def start_debezium(bench, n):
    """With its compiler warmed up; None without Debezium"""
    server = bench.server("theirs", outbox=False, wal_level="logical", wal_sender_timeout="0")
    waiting.debezium_tables(server, "theirs")
    connector = bench.debezium(server, "theirs", None)
    if connector is None:
        return None
    debezium(bench, server, connector, n)
    return lambda n: debezium(bench, server, connector, n)


def ratios(results):
    found = []
    names = {"outbox, 1 publisher": "", "outbox, 2 publishers": "_two"}
    for name, suffix in names.items():
        found += [
            {"figure": f"rate to librdkafka alone: {name}", "key": f"drain_rate{suffix}",
             "values": figures.ratios(results, "rate", name, "librdkafka alone")},
            {"figure": f"CPU above librdkafka alone, µs: {name}", "key": f"drain_cpu{suffix}",
             "values": figures.differences(results, "cpu_us", name, "librdkafka alone")}]
    for other in ("relay", "Debezium"):
        if other in results:
            found += [
                {"figure": f"rate to {other}", "key": f"drain_{other.lower()}",
                 "values": figures.ratios(results, "rate", "outbox, 1 publisher", other)},
                {"figure": f"CPU to {other}", "key": f"drain_{other.lower()}_cpu",
                 "values": figures.ratios(results, "cpu_us", "outbox, 1 publisher", other)}]
    return found


def run(bench):
    n = bench.size(1000000, 100000)
    server = bench.server()
    waiting.tables(server, "ours")
    variants = {
        "librdkafka alone": lambda: alone(bench, n),
        "outbox, 1 publisher": lambda: outbox(bench, server, "ours", n),
        "outbox, 2 publishers": lambda: outbox(bench, server, "ours", n, 2),
        "relay": lambda: relay(bench, server, n),
    }
    connector = start_debezium(bench, bench.size(300000, 50000))
    if connector is not None:
        variants["Debezium"] = lambda: connector(n)
    results = figures.interleave(bench.say, bench.runs, variants)
    return {"results": results, "figures": ratios(results), "plots": ["rate", "cpu_us"],
            "sizes": f"{n:,} messages, a topic of 4 partitions, without compression"}
