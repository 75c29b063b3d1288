"""A private Apache Kafka of one node, and the bench's own client of it."""
import logging
import os
import signal
import time

import confluent_kafka

import ports
import process

TOOLS = os.path.join(os.environ["BENCH_WORK"], "tools")
CLUSTER = "AAAAAAAAAAAAAAAAAAAAAQ"
PARTITIONS = 4

# That the broker goes at the end is no news.
QUIET = logging.getLogger("kafka")
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.enable": "false",
    "log.segment.delete.delay.ms": "1000",
}


class Kafka:
    def __init__(self, lib):
        self.dir = os.path.join(os.environ["BENCH_WORK"], "kafka")
        self.lib = lib
        self.topics = 0
        self.client = None
        self.clients = []
        os.mkdir(self.dir)
        port, controller = ports.free(), ports.free()
        self.bootstrap = f"127.0.0.1:{port}"
        with open(f"{self.dir}/server.properties", "w") as file:
            for key, value in dict(SETTINGS, **{
                    "controller.quorum.voters": f"1@127.0.0.1:{controller}",
                    "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://127.0.0.1:{controller}",
                    "log.dirs": f"{self.dir}/data"}).items():
                file.write(f"{key}={value}\n")
        self.java("kafka.tools.StorageTool", "format", "-t", CLUSTER).wait()
        self.process = self.java("kafka.Kafka")
        process.wait_until("Apache Kafka", self.answers, timeout=90, pause=0.2)

    def java(self, *command):
        command = list(command)
        if len(command) > 1:
            command.append("-c")
        archive = os.path.join(os.path.dirname(self.lib), "kafka.jsa")
        shared = []
        if os.access(archive, os.R_OK):
            shared = [f"-XX:SharedArchiveFile={archive}", "-Xshare:auto", "-Xlog:disable"]
        return process.start(
            ["java", "-Xms1g", "-Xmx1g", "-XX:-UsePerfData", *shared,
             "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{self.lib}/*",
             *command, f"{self.dir}/server.properties"], log=f"{self.dir}/kafka.log")

    def answers(self):
        if self.process.poll() is not None:
            with open(f"{self.dir}/kafka.log") as file:
                raise RuntimeError("Kafka has ended: " + file.read()[-2000:])
        try:
            return self.ktool("wait-ready", 2).strip() == CLUSTER
        except RuntimeError:
            return False

    def stop(self):
        if self.client is not None:
            self.client.close()
        for client in self.clients:
            process.stop(client, signal.SIGKILL)
        process.stop(self.process, signal.SIGTERM, 30)

    def cpu(self):
        return process.cpu(self.process.pid)

    # ---------- topics ----------

    def ktool(self, *command):
        return process.run([f"{TOOLS}/ktool", "-b", self.bootstrap, *command])

    def new_topic(self, name="topic", partitions=PARTITIONS):
        """Makes one with a name of its own, and returns that."""
        self.topics += 1
        name = f"{name}-{self.topics}"
        self.ktool("create-topic", name, partitions)
        return name

    def delete_topic(self, name):
        self.ktool("delete-topic", name)

    def records(self, topic):
        """How many it has got so far"""
        if self.client is None:
            self.client = confluent_kafka.Consumer(
                {"bootstrap.servers": self.bootstrap, "group.id": "bench"}, logger=QUIET)
        return sum(self._end(topic, partition) for partition in range(PARTITIONS))

    def _end(self, topic, partition):
        # a topic made anew has other leaders than the client remembers
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.client.get_watermark_offsets(
                    confluent_kafka.TopicPartition(topic, partition), timeout=30)[1]
            except confluent_kafka.KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    # ---------- kbench ----------

    def kbench(self, command, *arguments, **options):
        return process.run([f"{TOOLS}/kbench", self.bootstrap, command, *arguments], **options)

    def start_kbench(self, command, *arguments, output):
        with open(output, "wb") as file:
            self.clients.append(process.start(
                [f"{TOOLS}/kbench", self.bootstrap, command, *arguments], stdout=file))
        return self.clients[-1]

    def watch(self, topic, output):
        """Starts to write down what arrives; returns the process."""
        watching = self.start_kbench("watch", topic, output=output)

        def ready():
            with open(output) as file:
                return "ready\n" in file.readlines()
        process.wait_until("the watching consumer", ready)
        return watching


def read_times(path):
    """{(client, number): time} of what kbench wrote"""
    times = {}
    with open(path) as file:
        for line in file:
            words = line.split()
            if len(words) == 3:
                times.setdefault((int(words[0]), int(words[1])), int(words[2]))
    return times
