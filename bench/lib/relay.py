"""The polling relay and its table."""
import os
import sys

import process

TABLE = """CREATE TABLE relay_outbox (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), key text, payload jsonb NOT NULL,
    status text NOT NULL DEFAULT 'NEW', created_at timestamptz NOT NULL DEFAULT now(),
    sent_at timestamptz);
CREATE INDEX relay_waiting ON relay_outbox (created_at) WHERE status = 'NEW'"""


class Relay:
    def __init__(self, server, database, kafka, topic, batch=1000, pause=0.05):
        here = os.path.dirname(os.path.abspath(__file__))
        self.command = [sys.executable, f"{here}/../against/relay.py", server.dsn(database),
                        kafka.bootstrap, topic, batch, pause]
        self.log = f"{server.dir}/relay.log"
        self.process = None

    def start(self):
        self.process = process.start(self.command, log=self.log)
        return self

    def pids(self):
        return [self.process.pid]

    def cpu(self):
        return process.cpu(self.process.pid)

    def stop(self):
        # Halted, it wouldn't hear anything else.
        self.process.kill()
        self.process.wait()
