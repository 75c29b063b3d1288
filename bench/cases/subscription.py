"""Subscription.

Records of 200 bytes wait in a topic; each is handled by an INSERT of two of its
fields, in SQL or in PL/pgSQL, and remembered by its id. Against a Python
consumer that does the same with one transaction of 500 records, its offsets in
Kafka. All are warm and halted while the records are written. CPU is that of
server, worker and bridge, or of server and consumer.
"""
import os
import signal
import sys

import drain
import figures
import postgres
import process

TABLES = """CREATE TABLE received (id bigint NOT NULL, customer int NOT NULL);
CREATE TABLE inbox (id uuid, topic text, PRIMARY KEY (id, topic))"""

INSERT = """INSERT INTO public.received VALUES
    ((record.payload::json ->> 'id')::bigint, (record.payload::json ->> 'customer')::int);"""

HANDLERS = f"""CREATE FUNCTION handle_sql(record outbox.record) RETURNS void LANGUAGE sql
    AS $$ {INSERT} $$;
CREATE FUNCTION handle_plpgsql(record outbox.record) RETURNS void LANGUAGE plpgsql
    AS $$ BEGIN {INSERT} END $$"""

FEW = 1000


class Subscriber:
    """The Python consumer"""

    def __init__(self, bench, server, topic):
        here = os.path.dirname(os.path.abspath(__file__))
        self.process = process.start(
            [sys.executable, f"{here}/../against/subscriber.py", server.dsn("theirs"),
             bench.kafka.bootstrap, topic, 500], log=f"{server.dir}/subscriber.log")

    def cpu(self):
        return process.cpu(self.process.pid)

    def stop(self):
        self.process.kill()
        self.process.wait()


def received(server, database):
    return server.value("SELECT count(*) FROM received", database)


def wait_for(server, database, n):
    # counting takes longer than waiting: not too often
    process.wait_until(f"{n} records", lambda: received(server, database) >= n, timeout=600,
                       pause=0.2)


def handled(server):
    return server.value("SELECT coalesce(sum(applied), 0) FROM outbox.consumer_offset"
                        " WHERE kind = 's'", "ours")


def outbox(bench, server, language, n):
    topic = bench.kafka.new_topic("handled")
    server.sql(f"SELECT outbox.subscribe('{topic}', 'handle_{language}(outbox.record)')", "ours")
    bench.kafka.kbench("produce", topic, FEW)
    wait_for(server, "ours", FEW)
    pids = server.workers("consumer", "ours")
    bridges = postgres.bridges(pids)
    postgres.halt(pids, bridges)
    # ids go on where those of the few ended
    bench.kafka.kbench("produce", topic, n, FEW)
    server.sql("CHECKPOINT")
    with process.Meter(all=drain.server_without(server), broker=bench.kafka.cpu) as meter:
        postgres.go_on(bridges + pids)
        process.wait_until("all to be handled", lambda: handled(server) == n + FEW,
                           timeout=600, pause=0.02)
    if postgres.bridges(pids) != bridges:
        raise RuntimeError("a bridge has ended meanwhile")
    if received(server, "ours") != n + FEW:
        raise RuntimeError("handled isn't received")
    server.sql(f"SELECT outbox.unsubscribe('{topic}')", "ours")
    server.sql("TRUNCATE received, outbox.inbox", "ours")
    bench.kafka.delete_topic(topic)
    return drain.measured(n, meter)


def python(bench, server, n):
    topic = bench.kafka.new_topic("handled")
    bench.kafka.kbench("produce", topic, FEW)
    subscriber = Subscriber(bench, server, topic)
    bench.servers.append(subscriber)
    wait_for(server, "theirs", FEW)
    os.kill(subscriber.process.pid, signal.SIGSTOP)
    bench.kafka.kbench("produce", topic, n, FEW)
    server.sql("CHECKPOINT")
    with process.Meter(server=drain.server_without(server), client=subscriber.cpu,
                       broker=bench.kafka.cpu) as meter:
        os.kill(subscriber.process.pid, signal.SIGCONT)
        wait_for(server, "theirs", n + FEW)
    subscriber.stop()
    server.sql("TRUNCATE received, inbox", "theirs")
    bench.kafka.delete_topic(topic)
    return drain.measured(n, meter)


def run(bench):
    n = bench.size(200000, 20000)
    server = bench.server()
    server.create_database("ours", "CREATE EXTENSION outbox", TABLES, HANDLERS)
    server.create_database("theirs", TABLES)
    results = figures.interleave(bench.say, bench.runs, {
        "outbox, SQL": lambda: outbox(bench, server, "sql", n),
        "outbox, PL/pgSQL": lambda: outbox(bench, server, "plpgsql", n),
        "a Python consumer": lambda: python(bench, server, n),
    })
    return {"results": results, "plots": ["rate", "cpu_us"],
            "figures": [{"figure": f"{text} to the Python consumer's: {way}", "key": key,
                         "values": figures.ratios(results, metric, way, "a Python consumer")}
                        for way, metric, text, key in (
                            ("outbox, SQL", "rate", "records/s", "subscription"),
                            ("outbox, SQL", "cpu_us", "CPU", None),
                            ("outbox, PL/pgSQL", "rate", "records/s", None),
                            ("outbox, PL/pgSQL", "cpu_us", "CPU", None))],
            "sizes": f"{n:,} records"}
