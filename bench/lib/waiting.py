"""Messages of 200 bytes, the same for all: their tables, and how they get there."""
import debezium
import process
import relay

VALUE_BYTES = 200
FRAME = len('{"id":,"customer":,"client":,"n":,"note":""}')
CHUNK = 100000

TABLE = """CREATE TABLE orders (id bigint PRIMARY KEY, customer int NOT NULL,
    client int NOT NULL, n int NOT NULL, note text NOT NULL)"""

# Those of one transaction each, so that nothing big is decoded at once
ROWS = f"""SELECT i AS id, i % 1000 AS customer, 0 AS client, i AS n,
    repeat('x', {VALUE_BYTES - FRAME - 1} - 2 * length(i::text) - length((i % 1000)::text)) AS note
    FROM generate_series({{first}}, {{last}}) AS i"""

INSERTS = {
    "outbox": "INSERT INTO orders {rows}",
    "relay": "INSERT INTO relay_outbox (key, payload)"
             " SELECT customer::text, to_jsonb(r) FROM ({rows}) AS r",
    "debezium": "INSERT INTO debezium_outbox (aggregatetype, aggregateid, type, payload)"
                " SELECT '{topic}', customer::text, 'c', row_to_json(r)::text"
                " FROM ({rows}) AS r",
}


def tables(server, database):
    """The database of ours and of the relay"""
    server.create_database(database, "CREATE EXTENSION outbox", TABLE, relay.TABLE)


def debezium_tables(server, database):
    server.create_database(database, debezium.TABLE)


def fill(server, database, way, n, topic=None, first=1):
    """Commits n of them, in large transactions"""
    last = first + n - 1
    while first <= last:
        upto = min(first + CHUNK - 1, last)
        server.sql(INSERTS[way].format(rows=ROWS.format(first=first, last=upto), topic=topic),
                   database)
        first = upto + 1


def attach(server, database, topic):
    """Whatever was attached before isn't any more."""
    server.sql("SELECT outbox.detach('orders')", database)
    server.sql(f"SELECT outbox.attach('orders', '{topic}', key => 'customer')", database)


def published(server, database):
    return server.value("SELECT published FROM outbox.counters()", database)


def wait_for_sent(server, database, timeout=600):
    process.wait_until(
        "all to be sent",
        lambda: server.value("SELECT coalesce(sum(messages), 0) FROM outbox.backlog()",
                             database) == 0, timeout=timeout, pause=0.1)


def empty(server, database, way):
    server.sql({"outbox": "TRUNCATE orders, outbox.log",
                "relay": "TRUNCATE relay_outbox",
                "debezium": "TRUNCATE debezium_outbox"}[way], database)
