"""What it was measured on."""
import os
import platform
import re
import subprocess

import postgres


def first_line(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return next((line for line in done.stdout.splitlines() if not line.startswith("Picked up")), "")


def cpu_model():
    with open("/proc/cpuinfo") as file:
        found = re.search(r"^model name\s*: (.*)$", file.read(), re.MULTILINE)
    return found.group(1) if found else platform.machine()


def memory():
    with open("/proc/meminfo") as file:
        return f"{int(file.readline().split()[1]) / 1024 / 1024:.0f} GB"


def version(lib, jar):
    for entry in os.listdir(lib):
        found = re.fullmatch(re.escape(jar) + r"-(\d.*)\.jar", entry)
        if found:
            return found.group(1)
    return "unknown"


def describe(bench):
    import confluent_kafka
    import psycopg

    versions = {
        "outbox": os.environ["BENCH_COMMIT"] or "unknown",
        "PostgreSQL": first_line(f"{postgres.BINDIR}/postgres", "--version").split(") ")[-1],
        "librdkafka": os.environ["BENCH_RDKAFKA"],
        "Apache Kafka": version(bench.fetched["kafka"], "kafka_2.13"),
        "Java": first_line("java", "-version"),
        "Python": platform.python_version(),
        "psycopg": psycopg.__version__,
        "confluent-kafka": f"{confluent_kafka.version()} (librdkafka {confluent_kafka.libversion()[0]})",
    }
    if "debezium" in bench.fetched:
        versions["Debezium"] = version(bench.fetched["debezium"], "debezium-connector-postgres")
        versions["Kafka Connect"] = version(bench.fetched["debezium"], "connect-runtime")
    return {
        "cpu": f"{os.cpu_count()} x {cpu_model()}",
        "memory": memory(),
        "kernel": platform.release().split("-")[0],
        "versions": versions,
        "settings": postgres.SETTINGS,
    }
