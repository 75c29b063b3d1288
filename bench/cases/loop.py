"""The whole loop: order INSERT to CONFIRMED.

A shop and a warehouse, two databases of one server: each order is a message,
the warehouse's subscription handles it with an INSERT and answers, the answer
confirms the message. The rate is raised by half until the backlog (inserted,
not yet CONFIRMED) doesn't stay flat; then the last rate that held is kept up.
CPU is that of the whole server with all workers and bridges; pgbench's and the
broker's aside.
"""
import threading
import time

import drain
import figures
import process

START = 500
CLIENTS = 8
SHOP = """CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer int NOT NULL, product int NOT NULL, quantity int NOT NULL)"""
INSERT = """\\set n random(1, 1000)
INSERT INTO orders (customer, product, quantity) VALUES (:n, 7, 3)"""
RESERVATION = "CREATE TABLE reservation (order_id bigint PRIMARY KEY, quantity int NOT NULL)"
RESERVE = """CREATE FUNCTION reserve(record outbox.record) RETURNS void LANGUAGE sql AS $$
    INSERT INTO public.reservation VALUES
        ((record.payload::json ->> 'id')::bigint, (record.payload::json ->> 'quantity')::int)
$$"""


def prepare(bench, server):
    orders, answers = bench.kafka.new_topic("orders"), bench.kafka.new_topic("answers")
    server.create_database(
        "shop", "CREATE EXTENSION outbox", SHOP,
        f"SELECT outbox.set_topic('{orders}', result_topic => '{answers}')",
        f"SELECT outbox.attach('orders', '{orders}')")
    server.create_database(
        "warehouse", "CREATE EXTENSION outbox", RESERVATION, RESERVE,
        f"SELECT outbox.subscribe('{orders}', 'reserve(outbox.record)',"
        f" reply_topic => '{answers}')")
    server.wait_for_workers("publisher", "shop")
    server.wait_for_workers("consumer", "shop")
    server.wait_for_workers("consumer", "warehouse")


def inserted(server):
    return server.value("SELECT CASE WHEN is_called THEN last_value ELSE 0 END"
                        " FROM orders_id_seq", "shop")


def confirmed(server):
    return server.value("SELECT confirmed FROM outbox.counters()", "shop")


def at_rate(bench, server, rate, seconds):
    """Inserts at the rate, and looks at the backlog each second"""
    begin, base = inserted(server), confirmed(server)
    backlog = []
    # Orders left from a trial that didn't hold are done by now.
    assert begin == base
    parts = {"publishers": server.cpu_of("outbox publisher"),
             "consumers": server.cpu_of("outbox consumer"),
             "bridges": server.cpu_of("outbox_bridge")}
    with process.Meter(server=drain.server_without(server, *parts.values()),
                       broker=bench.kafka.cpu, **parts) as meter:
        inserting = threading.Thread(target=server.pgbench, args=(INSERT, "shop"), kwargs={
            "clients": CLIENTS, "seconds": seconds, "options": ["-R", rate]})
        inserting.start()
        while inserting.is_alive():
            time.sleep(1)
            backlog.append(inserted(server) - confirmed(server))
        n = inserted(server) - begin
        meter.stop()
    process.wait_until("all to be confirmed",
                       lambda: confirmed(server) == inserted(server), timeout=600)
    result = drain.measured(n, meter)
    result["rate"] = n / seconds
    # the last one is after the end
    quarter = max(len(backlog) // 4, 1)
    result["backlog"] = figures.median(backlog[:-1] or backlog)
    result["backlog_first"] = figures.median(backlog[:quarter])
    result["backlog_last"] = figures.median(backlog[:-1][-quarter:] or backlog)
    result["backlog_max"] = max(backlog)
    return result


def too_much(rate, result):
    """What didn't keep up, or None: no more may wait at the end than half a
    second brings"""
    if result["backlog_last"] >= 0.5 * rate:
        return "the backlog grew"
    if result["rate"] <= 0.93 * rate:
        return "the INSERTs themselves came no faster"
    return None


def sustained(bench, server, seconds):
    """(the last rate that held, what didn't at the next)"""
    rate, good = START, None
    while True:
        result = at_rate(bench, server, rate, seconds)
        bench.say(f"{rate}/s: inserted {result['rate']:.0f}/s, backlog"
                  f" {result['backlog_first']:.0f} to {result['backlog_last']:.0f}")
        reason = too_much(rate, result)
        if reason is not None:
            return good or rate, f"At {rate}/s {reason}."
        good, rate = rate, int(rate * 1.5)


def run(bench):
    server = bench.server(autovacuum="on")
    prepare(bench, server)
    rate, limit = sustained(bench, server, bench.size(15, 4))
    seconds = bench.size(300, 20)
    results = figures.interleave(bench.say, 1, {
        f"outbox, {rate}/s": lambda: at_rate(bench, server, rate, seconds)})
    result = results[f"outbox, {rate}/s"]
    reason = too_much(rate, {metric: values[0] for metric, values in result.items()})
    return {"results": results, "plots": [],
            "figures": [{"figure": "orders confirmed a second", "values": result["rate"]},
                        {"figure": "CPU a message, µs", "values": result["cpu_us"]}],
            "notes": [f"{limit} Here " + (f"{reason}." if reason else "the backlog stayed flat.")],
            "sizes": f"{rate}/s for {seconds} s, {CLIENTS} clients; autovacuum on",
            "runs": 1}
