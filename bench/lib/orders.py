"""The table of orders, in the ways in which an INSERT can become a message."""

import waiting

WAYS = ("bare", "resting", "working", "trigger", "second INSERT")
DATABASES = {"bare": "bare", "resting": "resting", "working": "working",
             "trigger": "bare", "second INSERT": "bare"}
TABLES = {"bare": "orders", "resting": "orders", "working": "orders",
          "trigger": "orders_trigger", "second INSERT": "orders_second"}

TABLE = """CREATE TABLE {table} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL,
    product int NOT NULL, quantity int NOT NULL, price int NOT NULL,
    status text NOT NULL DEFAULT 'PLACED', note text)"""

PLAIN_OUTBOX = """CREATE TABLE {table}_outbox (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), topic text NOT NULL, key text,
    payload jsonb NOT NULL, status text NOT NULL DEFAULT 'NEW',
    created_at timestamptz NOT NULL DEFAULT now());
CREATE INDEX {table}_waiting ON {table}_outbox (created_at) WHERE status = 'NEW'"""

TRIGGER = """CREATE FUNCTION to_outbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO orders_trigger_outbox (topic, key, payload)
        VALUES ('orders', NEW.customer::text, to_jsonb(NEW));
    RETURN NULL;
END $$;
CREATE TRIGGER to_outbox AFTER INSERT ON orders_trigger
    FOR EACH ROW EXECUTE FUNCTION to_outbox()"""

INSERT = """\\set customer random(1, 1000)
\\set product random(1, 10000)
INSERT INTO {table} (customer, product, quantity, price, note)
    VALUES (:customer, :product, 3, 4999, 'leave it at the door')"""

# As an application does it: it knows what it inserts, but for the number.
SECOND = """\\set customer random(1, 1000)
\\set product random(1, 10000)
BEGIN;
INSERT INTO {table} (customer, product, quantity, price, note)
    VALUES (:customer, :product, 3, 4999, 'leave it at the door') RETURNING id \\gset
INSERT INTO {table}_outbox (topic, key, payload) VALUES ('orders', :customer::text,
    jsonb_build_object('id', :id::bigint, 'customer', :customer::int, 'product', :product::int, 'quantity', 3,
        'price', 4999, 'status', 'PLACED', 'note', 'leave it at the door'));
COMMIT"""

SCRIPTS = {"second INSERT": SECOND}


def prepare(bench, server):
    """Makes the databases; waits for the workers of the one that has them."""
    topic = bench.kafka.new_topic("orders")
    server.create_database(
        "bare", TABLE.format(table="orders"),
        TABLE.format(table="orders_trigger"), PLAIN_OUTBOX.format(table="orders_trigger"),
        TRIGGER,
        TABLE.format(table="orders_second"), PLAIN_OUTBOX.format(table="orders_second"))
    for database in ("resting", "working"):
        server.create_database(
            database, "CREATE EXTENSION outbox", TABLE.format(table="orders"),
            f"SELECT outbox.attach('orders', '{topic}', key => 'customer')")
    server.wait_for_workers("publisher", "working")


def clear(server, way):
    """Empties what a run has filled, once it is published."""
    database, table = DATABASES[way], TABLES[way]
    if way == "working":
        waiting.wait_for_sent(server, database)
    if database != "bare":
        server.sql(f"TRUNCATE {table}, outbox.log", database)
    elif way == "bare":
        server.sql(f"TRUNCATE {table}", database)
    else:
        server.sql(f"TRUNCATE {table}, {table}_outbox", database)
