"""WAL a message, capture to SENT and vacuumed.

Orders inserted one a transaction, with capture and without; what the captured
ones' INSERTs, the publisher and a VACUUM of the log write, above the bare
INSERTs', less the payloads' own size. No full-page images. "waiting" are
published when all are there, in large batches; "as they come" at 1,000/s.
"""
import figures
import latencies
import postgres
import process
import waiting

OPTIONS = ["-D", "n=0", "-D", "note=" + "x" * 130]
SCRIPT = "\\set n :n + 1\n" + latencies.INSERTS["outbox"]


def insert(server, database, n, rate=None):
    """Bytes of WAL; n is a multiple of 4"""
    before = server.wal()
    server.pgbench(SCRIPT, database, clients=4, transactions=n // 4,
                   options=OPTIONS + (["-R", rate] if rate else []))
    return server.wal() - before


def outbox(bench, server, n, bare, rate=None):
    pids = server.workers("publisher", "ours")
    base = waiting.published(server, "ours")
    server.sql("CHECKPOINT")
    before = server.wal()
    if rate is None:
        postgres.halt(pids)
    inserted = insert(server, "ours", n, rate)
    postgres.go_on(pids)
    process.wait_until("all to be sent", lambda: waiting.published(server, "ours") == base + n)
    # its cursors are saved a little later
    process.wait_until("the worker to rest", lambda: all(map(postgres.rests, pids)))
    sent = server.wal() - before
    before = server.wal()
    server.sql("VACUUM outbox.log", "ours")
    vacuumed = server.wal() - before
    payload = float(server.value("SELECT avg(length(payload)) FROM outbox.log", "ours"))
    waiting.empty(server, "ours", "outbox")
    return {"insert_bytes": inserted / n, "publish_bytes": (sent - inserted) / n,
            "vacuum_bytes": vacuumed / n, "payload_bytes": payload,
            "above_payload_bytes": (sent + vacuumed) / n - bare / n - payload}


def run(bench):
    n = bench.size(100000, 8000)
    server = bench.server()
    server.create_database("bare", waiting.TABLE)
    waiting.tables(server, "ours")
    waiting.attach(server, "ours", bench.kafka.new_topic("wal"))
    server.wait_for_workers("publisher", "ours")
    insert(server, "ours", 400)
    waiting.wait_for_sent(server, "ours")
    waiting.empty(server, "ours", "outbox")

    def bare():
        written = insert(server, "bare", n)
        server.sql("TRUNCATE orders", "bare")
        return written

    bytes_of_bare = bare()
    results = figures.interleave(bench.say, bench.runs, {
        "bare": lambda: {"insert_bytes": bare() / n},
        "outbox, waiting": lambda: outbox(bench, server, n, bytes_of_bare),
        "outbox, as they come": lambda: outbox(bench, server, n, bytes_of_bare, 1000),
    })
    return {"results": results, "plots": ["above_payload_bytes"],
            "figures": [{"figure": f"bytes a message above its payload: {way}",
                         "key": "wal" if way == "waiting" else None,
                         "values": results[f"outbox, {way}"]["above_payload_bytes"]}
                        for way in ("waiting", "as they come")],
            "sizes": f"{n:,} messages a run"}
