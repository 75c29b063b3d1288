"""Capture, one row.

pgbench inserts one order a transaction over 4 connections, prepared. The four
ways share a server and take turns. "resting" is a database whose workers don't
run, "working" one whose messages are published meanwhile. The outbox table of
the trigger and of the application's second INSERT is a plain one (uuid, topic,
key, jsonb) that nobody reads. CPU is that of the whole server.
"""
import figures
import orders
import process

CLIENTS = 4


def once(server, way, seconds, sync):
    script, database = orders.SCRIPTS.get(way, orders.INSERT), orders.DATABASES[way]
    table = orders.TABLES[way]
    server.sql("CHECKPOINT")
    wal = server.wal()
    with process.Meter(server=server.cpu) as meter:
        tps = server.pgbench(script.format(table=table), database, CLIENTS, seconds=seconds,
                             sync=sync)
        meter.stop()
    n = server.value(f"SELECT count(*) FROM {table}", database)
    measured = {
        "tps": tps,
        "cpu_us": meter.cpu["server"] / n * 1e6,
        "wal_bytes": (server.wal() - wal) / n,
    }
    orders.clear(server, way)
    return measured


def run(bench):
    server = bench.server(**{"outbox.databases": "working"})
    orders.prepare(bench, server)
    seconds = bench.size(8, 3)
    variants = {}
    for sync in ("on", "off"):
        for way in orders.WAYS:
            variants[f"{way}, {'sync' if sync == 'on' else 'async'}"] = \
                lambda way=way, sync=sync: once(server, way, seconds, sync)
    results = figures.interleave(bench.say, bench.runs, variants)

    found = []
    for sync, key in (("sync", "on"), ("async", "off")):
        for way in orders.WAYS[1:]:
            found.append({
                "figure": f"INSERT rate to bare, {sync}: {way}",
                "key": f"capture_{key}" if way == "resting" else None,
                "values": figures.ratios(results, "tps", f"{way}, {sync}", f"bare, {sync}")})
    return {"results": results, "figures": found, "plots": ["tps", "cpu_us"],
            "sizes": f"{CLIENTS} clients, {seconds} s a run"}
