"""From the commit, as its client saw it, to where a consumer sees the record."""
import glob
import os

import figures
import kafka
import process

INSERTS = {
    "outbox": "INSERT INTO orders VALUES (:client_id * 100000000 + :n, :n % 1000,"
              " :client_id, :n, :note);",
    "relay": "INSERT INTO relay_outbox (key, payload) VALUES ((:n % 1000)::text,"
             " jsonb_build_object('client', :client_id::int, 'n', :n::int, 'note', :note::text));",
    "debezium": "INSERT INTO debezium_outbox (aggregatetype, aggregateid, type, payload)"
                " VALUES ('{topic}', (:n % 1000)::text, 'c',"
                " format('{{\"client\":%s,\"n\":%s,\"note\":\"%s\"}}', :client_id::text, :n::text, :note::text));",
}


def percentiles(times, prefix=""):
    return {f"{prefix}p50_ms": figures.percentile(times, .5),
            f"{prefix}p99_ms": figures.percentile(times, .99),
            f"{prefix}p99.9_ms": figures.percentile(times, .999)}


def commits(prefix):
    """{(client, number): time} of pgbench's log"""
    times = {}
    for path in glob.glob(f"{prefix}.*"):
        with open(path) as file:
            for line in file:
                words = line.split()
                # failed or skipped ones have no time
                if words[2].isdigit():
                    times[int(words[0]), int(words[1])] = int(words[4]) * 1000000 + int(words[5])
        os.unlink(path)
    return times


def join(sent, watching, path):
    """Milliseconds of each that was sent, once all have arrived"""
    def arrived():
        with open(path, "rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    try:
        # the first line is another
        process.wait_until("records to arrive", lambda: arrived() > len(sent),
                           timeout=60, pause=0.2)
    finally:
        process.stop(watching)
    seen = kafka.read_times(path)
    missing = len(sent) - len(seen.keys() & sent.keys())
    if missing:
        raise RuntimeError(f"{missing} of {len(sent)} records haven't arrived")
    return [(seen[which] - at) / 1000 for which, at in sent.items()]


def of_inserts(bench, server, database, way, topic, rate, seconds, clients=4):
    """Milliseconds, of INSERTs at so many a second"""
    path = f"{server.dir}/watched"
    watching = bench.kafka.watch(topic, path)
    # A client's transactions count from 1 in the log.
    script = "\\set n :n + 1\n" + INSERTS[way].format(topic=topic)
    server.pgbench(script, database, clients=clients, seconds=seconds, options=[
        "-D", "n=0", "-D", "note=" + "x" * 130, "-R", rate, "-l",
        f"--log-prefix={server.dir}/log"])
    return join(commits(f"{server.dir}/log"), watching, path)


def of_producer(bench, topic, rate, seconds):
    """The same of a client's own produce, from the call on"""
    path, sent = f"{bench.work}/watched", f"{bench.work}/sent"
    watching = bench.kafka.watch(topic, path)
    bench.kafka.start_kbench("pace", topic, rate, seconds, output=sent).wait()
    return join(kafka.read_times(sent), watching, path)
