"""Processes: started so that they end with us, and what they use."""
import os
import signal
import subprocess
import time

TICK = os.sysconf("SC_CLK_TCK")
GUARD = os.path.join(os.environ["BENCH_WORK"], "tools", "guard")


def start(command, log=None, **options):
    """A child that is killed when we are gone.  log: a path for its output."""
    if log is not None:
        with open(log, "ab") as file:
            options.setdefault("stdout", file)
            options.setdefault("stderr", file)
            return subprocess.Popen([GUARD, *map(str, command)], **options)
    return subprocess.Popen([GUARD, *map(str, command)], **options)


def run(command, **options):
    """Runs it to its end; returns its output.  Raises if it fails."""
    done = subprocess.run([GUARD, *map(str, command)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed ({done.returncode}): {done.stderr[-2000:]}")
    return done.stdout


def stop(process, signo=signal.SIGTERM, timeout=30):
    if process is None or process.poll() is not None:
        return
    process.send_signal(signo)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(what, condition, timeout=120, pause=0.02):
    """Polls until the condition is true, and returns that."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s for {what}")
        time.sleep(pause)


# ---------- what they use ----------

def stat(pid):
    """The fields of /proc/PID/stat from the state on, or None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def name(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().replace("\0", " ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(pid):
    """Its descendants, and itself."""
    of = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = stat(entry)
            if fields is not None:
                of.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += of.get(one, [])
    return found


def cpu(pid):
    """Seconds of CPU of all its threads, to the nanosecond; 0 if it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def cpu_of_ended_children(pid):
    fields = stat(pid)
    return 0.0 if fields is None else (int(fields[13]) + int(fields[14])) / TICK


def cpu_tree(pid):
    """Of it and its descendants, those that have ended included."""
    return sum(cpu(one) + cpu_of_ended_children(one) for one in children(pid))


def voluntary_switches(pid):
    """How often its threads went to sleep by themselves."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/status") as file:
            total += sum(int(line.split()[1]) for line in file
                         if line.startswith("voluntary_ctxt_switches"))
    return total


def memory(pid):
    """MB: (proportional, private)"""
    fields = {}
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            words = line.split()
            if words[-1] == "kB":
                fields[words[0].rstrip(":")] = int(words[1]) / 1024
    return fields["Pss"], fields["Private_Clean"] + fields["Private_Dirty"]


class Meter:
    """What was used between two moments.

    groups: {name: function that returns seconds of CPU so far}
    """

    def __init__(self, **groups):
        self.groups = groups

    def __enter__(self):
        self.before = {name: read() for name, read in self.groups.items()}
        self.begin = time.monotonic()
        return self

    def stop(self):
        self.seconds = time.monotonic() - self.begin
        self.cpu = {name: read() - self.before[name] for name, read in self.groups.items()}

    def __exit__(self, *failure):
        if not hasattr(self, "seconds"):
            self.stop()
