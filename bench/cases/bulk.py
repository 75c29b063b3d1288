"""Capture, bulk.

INSERT ... SELECT of many orders in one statement, into tables that were
emptied before. CPU is that of the session alone, so that it tells what capture
costs the one who inserts; "added" is what it is above the bare one's of the
same round. The second INSERT is one of all messages, in the same transaction.
"""
import figures
import orders
import process

ROWS = """INSERT INTO {table} (customer, product, quantity, price, note)
    SELECT i % 1000, i % 10000, 3, 4999, 'leave it at the door'
    FROM generate_series(1, {n}) AS i"""

SECOND = """INSERT INTO orders_second_outbox (topic, key, payload)
    SELECT 'orders', customer::text, to_jsonb(o) FROM orders_second AS o"""


def once(server, way, n):
    database, table = orders.DATABASES[way], orders.TABLES[way]
    with server.connect(database) as session:
        pid = session.info.backend_pid
        session.execute("SELECT count(*) FROM pg_class")
        server.sql("CHECKPOINT")
        wal = server.wal()
        with process.Meter(session=lambda: process.cpu(pid)) as meter, session.transaction():
            session.execute(ROWS.format(table=table, n=n))
            if way == "second INSERT":
                session.execute(SECOND)
        # a worker writes WAL, too, but only when it has sent them
        wal = server.wal() - wal
    orders.clear(server, way)
    return {"cpu_us": meter.cpu["session"] / n * 1e6, "wal_bytes": wal / n,
            "wall_us": meter.seconds / n * 1e6}


def run(bench):
    server = bench.server(**{"outbox.databases": "working"})
    orders.prepare(bench, server)
    n = bench.size(100000, 100000)
    results = figures.interleave(bench.say, bench.runs * 2, {
        way: lambda way=way: once(server, way, n) for way in orders.WAYS})

    bare = results["bare"]["cpu_us"]
    found = []
    for way in orders.WAYS[1:]:
        added = figures.differences(results, "cpu_us", way, "bare")
        found.append({"figure": f"CPU added to that of a bare row: {way}",
                      "key": "bulk" if way == "resting" else None,
                      "values": [a / b for a, b in zip(added, bare)]})
        found.append({"figure": f"CPU to that of a bare row: {way}",
                      "values": figures.ratios(results, "cpu_us", way, "bare")})
        found.append({"figure": f"WAL added, bytes a row: {way}",
                      "values": figures.differences(results, "wal_bytes", way, "bare")})
    return {"results": results, "figures": found, "plots": ["cpu_us"],
            "sizes": f"{n:,} rows a statement, twice as often as other cases"}
