"""A polling relay as people write it: takes what waits with SKIP LOCKED,
produces it, waits for the broker, and marks it, all in one transaction.

    relay.py DSN BOOTSTRAP TOPIC BATCH PAUSE

Pauses so many seconds when there is nothing.  Ends with SIGTERM.
"""
import signal
import sys
import time

import confluent_kafka
import psycopg

TAKE = """SELECT id, key, payload::text FROM relay_outbox WHERE status = 'NEW'
    ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED"""
MARK = "UPDATE relay_outbox SET status = 'SENT', sent_at = now() WHERE id = ANY (%s)"


def failed(error, _):
    if error is not None:
        sys.exit(f"not delivered: {error}")


def relay_batch(connection, producer, topic, batch):
    """How many it was"""
    with connection.transaction():
        rows = connection.execute(TAKE, (batch,)).fetchall()
        for identifier, key, payload in rows:
            producer.produce(topic, payload, key, on_delivery=failed,
                             headers=[("id", str(identifier)), ("op", "c")])
        if rows:
            producer.flush()
            connection.execute(MARK, ([row[0] for row in rows],))
    return len(rows)


def main():
    dsn, bootstrap, topic, batch, pause = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    producer = confluent_kafka.Producer({
        "bootstrap.servers": bootstrap, "enable.idempotence": True, "acks": "all",
        "linger.ms": 0 if int(batch) <= 100 else 5})
    with psycopg.connect(dsn, autocommit=True) as connection:
        while True:
            if relay_batch(connection, producer, topic, int(batch)) == 0:
                time.sleep(float(pause))


main()
