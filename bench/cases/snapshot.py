"""Rot: with a snapshot held.

Orders come at 1,000/s for a while, without a snapshot or with one that is as old
as that (a repeatable-read transaction in each database, as pg_dump has it). At
the end of that while: the time from commit to a consumer, and then a drain as
in the case of that name. Beside it PgQ, an insert-only queue: its events come
at the same rate, and at the end as many as in the drain are read in batches
(and sent nowhere). Autovacuum is on, with naptime 10 s. log_bytes is the size of
the log and its indexes after that while, a message.
"""
import contextlib
import threading
import time

import drain
import figures
import latencies
import process
import rot
import waiting

RATE = 1000

# Of the log and its indexes, a message
SIZE = """SELECT sum(pg_total_relation_size(relid)) /
    (SELECT count(*) FROM outbox.log) FROM pg_partition_tree('outbox.log')"""


class PgQ:
    def __init__(self, server):
        self.server = server
        server.create_database("pgq", "CREATE EXTENSION pgq",
                               "SELECT pgq.create_queue('q')",
                               "SELECT pgq.register_consumer('q', 'c')")

    def sql(self, statement):
        return self.server.sql(statement, "pgq")

    def tick(self):
        self.sql("SELECT pgq.force_tick('q')")
        self.sql("SELECT pgq.ticker('q')")

    def read(self):
        """Reads all that was ticked; how many events it was"""
        total = 0
        while (batch := self.sql("SELECT pgq.next_batch('q', 'c')")[0][0]) is not None:
            total += len(self.sql(f"SELECT ev_id, ev_data FROM pgq.get_batch_events({batch})"))
            self.sql(f"SELECT pgq.finish_batch({batch})")
        return total

    def flow(self, seconds):
        """Events at the rate, read as they come"""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            self.sql(f"SELECT pgq.insert_event('q', 'c', repeat('x', 200))"
                     f" FROM generate_series(1, {RATE // 10})")
            self.tick()
            self.read()
            self.sql("SELECT pgq.maint_rotate_tables_step1('q')")
            self.sql("SELECT pgq.maint_rotate_tables_step2()")
            time.sleep(max(0, began + 0.1 - time.monotonic()))

    def drain(self, n):
        for _ in range(n // 1000):
            self.sql("SELECT pgq.insert_event('q', 'c', repeat('x', 200))"
                     " FROM generate_series(1, 1000)")
            self.tick()
        session = self.server.connections["pgq"].info.backend_pid
        with process.Meter(server=lambda: process.cpu(session)) as meter:
            if self.read() != n:
                raise RuntimeError("PgQ: events are missing")
        return {"rate": n / meter.seconds, "cpu_us": meter.cpu["server"] / n * 1e6}


@contextlib.contextmanager
def snapshot(server, databases):
    """Holds one in each"""
    with contextlib.ExitStack() as stack:
        for database in databases:
            session = stack.enter_context(server.connect(database))
            session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            session.execute("SELECT count(*) FROM pg_class")
        yield


def flow(bench, server, pgq, seconds):
    """Both at the rate, for so long"""
    topic = bench.kafka.new_topic("flow")
    waiting.attach(server, "ours", topic)
    orders = threading.Thread(target=server.pgbench, args=(
        "\\set n :n + 1\n" + latencies.INSERTS["outbox"], "ours"), kwargs={
            "seconds": seconds, "options": ["-R", RATE, "-D", "n=0", "-D", "note=" + "x" * 130]})
    orders.start()
    if pgq is not None:
        pgq.flow(seconds)
    orders.join()
    waiting.wait_for_sent(server, "ours")
    # the numbers begin anew; a snapshot of before doesn't mind
    server.sql("TRUNCATE orders", "ours")
    bench.kafka.delete_topic(topic)


def phase(bench, server, pgq, held, seconds, n, latency_seconds):
    measured = {}
    with snapshot(server, ["ours", "pgq"] if pgq and held else ["ours"] if held else []):
        flow(bench, server, pgq, seconds)
        size = server.value(SIZE, "ours")
        measured["outbox"] = rot.latency(bench, server, "ours", latency_seconds)
        measured["outbox"].update(drain.outbox(bench, server, "ours", n, keep=True))
        measured["outbox"]["log_bytes"] = float(size)
        if pgq is not None:
            measured["PgQ"] = pgq.drain(n)
    waiting.empty(server, "ours", "outbox")
    return measured


def start_pgq(bench, server):
    """None where it isn't installed"""
    if not server.value("SELECT count(*) FROM pg_available_extensions WHERE name = 'pgq'"):
        bench.say("PgQ isn't installed for this PostgreSQL")
        return None
    return PgQ(server)


def run(bench):
    seconds, n = bench.size(600, 10), bench.size(300000, 20000)
    server = bench.server(autovacuum="on", autovacuum_naptime="10s")
    waiting.tables(server, "ours")
    server.wait_for_workers("publisher", "ours")
    pgq = start_pgq(bench, server)
    results = {}
    runs = max(1, bench.runs // 2)
    for number in range(runs):
        for held in (False, True):
            for way, measured in phase(bench, server, pgq, held, seconds, n,
                                       bench.size(20, 4)).items():
                name = f"{way}, {'held' if held else 'none'}"
                bench.say(f"{number + 1}/{runs} {name}: " + ", ".join(
                    f"{metric} {value:.4g}" for metric, value in measured.items()))
                for metric, value in measured.items():
                    results.setdefault(name, {}).setdefault(metric, []).append(value)

    found = [{"figure": "outbox: latency, p50, held to none", "key": "snapshot_latency",
              "values": figures.ratios(results, "p50_ms", "outbox, held", "outbox, none")}]
    for way, key in (("outbox", "snapshot_rate"),) + ((("PgQ", None),) if pgq else ()):
        held, none = f"{way}, held", f"{way}, none"
        found += [{"figure": f"{way}: drain, time, held to none", "key": key,
                   "values": figures.ratios(results, "rate", none, held)},
                  {"figure": f"{way}: drain, CPU a message, held to none",
                   "values": figures.ratios(results, "cpu_us", held, none)}]
    return {"results": results, "plots": ["cpu_us"], "figures": found,
            "sizes": f"{seconds} s at {RATE:,}/s, then {n:,} at once", "runs": runs}
