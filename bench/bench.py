"""Runs the cases, and writes what they measured; started by run.sh."""
import importlib
import json
import os
import signal
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [f"{HERE}/lib", f"{HERE}/cases"]

import debezium
import kafka
import machine
import postgres
import relay
import report

CASES = ("capture", "bulk", "drain", "latency", "acknowledge", "loop", "results",
         "subscription", "rot", "snapshot", "hour", "idle", "wal")


class Bench:
    """What a case gets: sizes, and servers that end when it ends."""

    def __init__(self, case):
        self.case = case
        self.quick = os.environ["QUICK"] not in ("", "0")
        self.runs = int(os.environ["RUNS"] or (2 if self.quick else 5))
        self.work = os.environ["BENCH_WORK"]
        self.fetched = dict(line.split(" ", 1)
                            for line in os.environ["BENCH_FETCHED"].splitlines())
        self.servers = []
        self.started_kafka = None

    def size(self, full, quick):
        return quick if self.quick else full

    def say(self, text):
        print(f"{time.strftime('%H:%M:%S')} {self.case}: {text}", flush=True)

    @property
    def kafka(self):
        if self.started_kafka is None:
            self.started_kafka = kafka.Kafka(self.fetched["kafka"])
        return self.started_kafka

    def server(self, name="ours", outbox=True, **settings):
        """Starts a PostgreSQL, with outbox in it or without"""
        server = postgres.Server(f"{name}-{self.case}",
                                 self.kafka.bootstrap if outbox else None, **settings)
        self.servers.append(server)
        return server.start()

    def relay(self, server, database, topic, **options):
        self.servers.append(relay.Relay(server, database, self.kafka, topic, **options))
        return self.servers[-1].start()

    def debezium(self, server, database, topic):
        """None where Debezium couldn't be fetched"""
        if "debezium" not in self.fetched:
            return None
        self.servers.append(debezium.Debezium(
            server, database, self.kafka, topic, self.fetched["debezium"]))
        return self.servers[-1].start()

    def end(self):
        for server in reversed(self.servers):
            server.stop()
        self.servers = []

    def stop_kafka(self):
        if self.started_kafka is not None:
            self.started_kafka.stop()


def run_case(bench, name):
    module = importlib.import_module(name)
    began, load = time.time(), os.getloadavg()[0]
    bench.case = name
    if load > 1 and not bench.quick:
        bench.say(f"the machine isn't quiet: its load is {load:.1f}")
    try:
        result = module.run(bench)
    finally:
        bench.end()
    result.update(
        case=name, title=module.__doc__.strip().splitlines()[0].rstrip("."),
        what="\n".join(module.__doc__.strip().splitlines()[1:]).strip(),
        when=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began)),
        runs=result.get("runs", bench.runs),
        quick=bench.quick, seconds=time.time() - began, load=f"{load:.1f}",
        machine=machine.describe(bench))
    with open(f"{bench.work}/results/{name}.json", "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = os.environ["CASES"].split() or CASES
    unknown = [name for name in names if name not in CASES]
    if unknown:
        sys.exit(f"no such case: {' '.join(unknown)}; there are {' '.join(CASES)}")
    bench = Bench(names[0])
    failed = []
    try:
        for name in names:
            try:
                run_case(bench, name)
            except Exception:
                traceback.print_exc()
                failed.append(name)
            report.write(bench.work, CASES)
    finally:
        bench.end()
        bench.stop_kafka()
    if failed:
        sys.exit(f"failed: {' '.join(failed)}")


main()
