"""A private PostgreSQL server."""
import contextlib
import os
import signal
import time

import psycopg

import ports
import process

BINDIR = os.environ["BENCH_BINDIR"]

# What each server has; a case adds its own.
SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "max_connections": "50",
    "max_worker_processes": "16",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "off",
    "autovacuum": "off",
    "jit": "off",
    "log_min_messages": "warning",
}


class Server:
    """outbox: where its broker is, or None for a server without it."""

    def __init__(self, name, outbox=None, **settings):
        self.dir = os.path.join(os.environ["BENCH_WORK"], name)
        self.data = os.path.join(self.dir, "data")
        self.log = os.path.join(self.dir, "server.log")
        self.port = ports.free()
        self.process = None
        self.connections = {}
        os.mkdir(self.dir)
        process.run([f"{BINDIR}/initdb", "-D", self.data, "-A", "trust", "-E", "UTF8",
                     "--no-locale", "-U", "bench"])
        self.settings = dict(SETTINGS, **{
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.dir,
        })
        if outbox is not None:
            self.settings["shared_preload_libraries"] = "outbox"
            self.settings["outbox.bootstrap_servers"] = outbox
        self.settings.update(settings)
        self.write_settings()

    def write_settings(self):
        with open(f"{self.data}/postgresql.conf", "w") as file:
            for key, value in self.settings.items():
                file.write(f"{key} = '{value}'\n")

    def start(self):
        self.process = process.start([f"{BINDIR}/postgres", "-D", self.data], log=self.log)
        process.wait_until("the server", self.answers, timeout=60)
        return self

    def answers(self):
        if self.process.poll() is not None:
            with open(self.log) as file:
                raise RuntimeError("the server has ended: " + file.read()[-2000:])
        try:
            self.sql("SELECT 1")
            return True
        except psycopg.OperationalError:
            return False

    def stop(self):
        if self.process is None:
            return
        for connection in self.connections.values():
            connection.close()
        self.connections = {}
        # What is halted would neither end nor let the server end.
        go_on(process.children(self.process.pid))
        process.stop(self.process, signal.SIGINT, 60)
        self.process = None

    def set(self, **settings):
        """Changes settings of the running server; a dot is written as __."""
        self.settings.update({key.replace("__", "."): value
                              for key, value in settings.items()})
        self.write_settings()
        self.sql("SELECT pg_reload_conf()")

    # ---------- statements ----------

    def dsn(self, database="postgres"):
        return f"host={self.dir} port={self.port} user=bench dbname={database}"

    def connect(self, database="postgres"):
        return psycopg.connect(self.dsn(database), autocommit=True)

    def sql(self, statement, database="postgres"):
        """Runs it in a session that stays; the rows, or None."""
        connection = self.connections.get(database)
        if connection is None or connection.closed:
            connection = self.connections[database] = self.connect(database)
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else None

    def value(self, statement, database="postgres"):
        return self.sql(statement, database)[0][0]

    def create_database(self, database, *statements):
        self.sql(f"CREATE DATABASE {database}")
        for statement in statements:
            self.sql(statement, database)

    def wal(self):
        """Bytes of WAL so far"""
        return int(self.value("SELECT pg_current_wal_insert_lsn() - '0/0'"))

    def pgbench(self, script, database, clients=4, seconds=None, transactions=None,
                options=(), sync="on"):
        """Runs it; returns transactions a second."""
        path = f"{self.dir}/pgbench.sql"
        with open(path, "w") as file:
            file.write(script)
        bound = ["-T", seconds] if seconds else ["-t", transactions]
        environment = dict(os.environ, PGOPTIONS=f"-c synchronous_commit={sync}")
        output = process.run(
            [f"{BINDIR}/pgbench", "-n", "-M", "prepared", "-h", self.dir, "-p", self.port,
             "-U", "bench", "-c", clients, "-j", 1, *bound, "-f", path, *options, database],
            env=environment, cwd=self.dir)
        for line in output.splitlines():
            if line.startswith("tps = ") and "including" not in line:
                return float(line.split()[2])
        raise RuntimeError(f"pgbench: {output}")

    # ---------- its processes ----------

    def cpu(self):
        return process.cpu_tree(self.process.pid)

    def pids(self, part):
        """Those whose name has that in it"""
        return [pid for pid in process.children(self.process.pid) if part in process.name(pid)]

    def cpu_of(self, part):
        """A function for Meter: of the processes that run now and are so named"""
        pids = self.pids(part)
        return lambda: sum(map(process.cpu, pids))

    def workers(self, kind, database):
        """The pids of the workers that are at work: publisher or consumer"""
        return [pid for pid, in self.sql(
            f"""SELECT pid FROM outbox.worker
                WHERE kind = '{kind}' AND bridge_pid IS NOT NULL""", database)]

    def wait_for_workers(self, kind, database, n=1):
        return process.wait_until(
            f"{n} workers ({kind})",
            lambda: (pids := self.workers(kind, database)) and len(pids) == n and pids)


def halt(pids, others=()):
    """Lets nothing of them run.  The former have to have nothing to do: what
    is halted at work may hold a lock."""
    process.wait_until("processes to rest", lambda: all(map(rests, pids)), pause=0)
    for pid in [*pids, *others]:
        os.kill(pid, signal.SIGSTOP)
    process.wait_until("processes to halt", lambda: all(
        (process.stat(pid) or ["T"])[0] == "T" for pid in [*pids, *others]))


def bridges(pids):
    """Those of the workers"""
    return [child for pid in pids for child in process.children(pid) if child != pid]


def rests(pid):
    before = process.cpu(pid)
    time.sleep(0.3)
    return process.cpu(pid) == before


def go_on(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
