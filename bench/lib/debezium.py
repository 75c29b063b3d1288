"""Debezium with its outbox event router, in a stand-alone Kafka Connect.

Tuned as its documentation says: larger batches and queue, a short poll
interval, no statistics; no compression, as for the others.  The row's payload is sent as it is."""
import os

import ports
import process

TABLE = """CREATE TABLE debezium_outbox (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL,
    aggregateid text NOT NULL, type text NOT NULL, payload text NOT NULL)"""

WORKER = """bootstrap.servers={bootstrap}
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=org.apache.kafka.connect.storage.StringConverter
offset.storage.file.filename={dir}/offsets
offset.flush.interval.ms=1000
listeners=http://127.0.0.1:{rest}
producer.acks=all
producer.enable.idempotence=true
producer.linger.ms=5
producer.batch.size=100000
producer.buffer.memory=67108864
"""

CONNECTOR = """name=outbox
connector.class=io.debezium.connector.postgresql.PostgresConnector
tasks.max=1
plugin.name=pgoutput
database.hostname=127.0.0.1
database.port={port}
database.user=bench
database.password=none
database.dbname={database}
topic.prefix=bench
table.include.list=public.debezium_outbox
publication.autocreate.mode=filtered
snapshot.mode=no_data
slot.name=debezium
poll.interval.ms=10
max.batch.size=8192
max.queue.size=32768
tombstones.on.delete=false
advanced.metrics.enable=false
statistics.metrics.enabled=false
transforms=outbox
transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
transforms.outbox.route.topic.replacement=${{routedByValue}}
transforms.outbox.table.fields.additional.placement=type:header:op
"""


class Debezium:
    def __init__(self, server, database, kafka, topic, lib):
        self.server, self.kafka, self.topic = server, kafka, topic
        self.dir = f"{server.dir}/debezium"
        self.process = None
        os.mkdir(self.dir)
        with open(f"{self.dir}/worker.properties", "w") as file:
            file.write(WORKER.format(bootstrap=kafka.bootstrap, dir=self.dir, rest=ports.free()))
        with open(f"{self.dir}/connector.properties", "w") as file:
            file.write(CONNECTOR.format(port=server.port, database=database))
        logger = next(name for name in os.listdir(kafka.lib) if name.startswith("slf4j-simple"))
        self.command = [
            "java", "-Xms1g", "-Xmx1g", "-XX:-UsePerfData",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-cp", f"{lib}/*:{kafka.lib}/{logger}",
            "org.apache.kafka.connect.cli.ConnectStandalone",
            f"{self.dir}/worker.properties", f"{self.dir}/connector.properties"]

    def start(self):
        self.process = process.start(self.command, log=f"{self.dir}/connect.log")
        process.wait_until("Debezium's slot to be read", self.streams, timeout=120, pause=0.2)
        return self

    def streams(self):
        if self.process.poll() is not None:
            with open(f"{self.dir}/connect.log") as file:
                raise RuntimeError("Debezium has ended: " + file.read()[-3000:])
        return self.server.value("SELECT count(*) FROM pg_replication_slots WHERE active") == 1

    def pids(self):
        return [self.process.pid]

    def cpu(self):
        return process.cpu(self.process.pid)

    def stop(self):
        self.process.kill()
        self.process.wait()
