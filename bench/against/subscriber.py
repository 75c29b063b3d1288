"""A consumer as people write it: takes a batch, and for each record looks
whether it was handled before, and handles it; one transaction a batch, then
the offsets are committed in Kafka.

    subscriber.py DSN BOOTSTRAP TOPIC BATCH

Ends with SIGTERM.
"""
import json
import signal
import sys

import confluent_kafka
import psycopg

SEEN = "INSERT INTO inbox (id, topic) VALUES (%s, %s) ON CONFLICT DO NOTHING"
HANDLE = "INSERT INTO received (id, customer) VALUES (%s, %s)"


def handle_batch(connection, records):
    with connection.transaction(), connection.cursor() as cursor:
        for record in records:
            if record.error():
                sys.exit(str(record.error()))
            identifier = dict(record.headers())["id"].decode()
            cursor.execute(SEEN, (identifier, record.topic()))
            if cursor.rowcount == 1:
                order = json.loads(record.value())
                cursor.execute(HANDLE, (order["id"], order["customer"]))


def main():
    dsn, bootstrap, topic, batch = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    consumer = confluent_kafka.Consumer({
        "bootstrap.servers": bootstrap, "group.id": topic, "auto.offset.reset": "earliest",
        "enable.auto.commit": False, "isolation.level": "read_committed"})
    consumer.subscribe([topic])
    with psycopg.connect(dsn, autocommit=True) as connection:
        while True:
            records = consumer.consume(int(batch), 0.05)
            if records:
                handle_batch(connection, records)
                consumer.commit(asynchronous=False)


main()
