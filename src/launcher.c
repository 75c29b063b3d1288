/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  Finds the databases that have the extension, and keeps their workers
 *	  running.
 *
 * The launcher is connected to no database.  Whether one has the extension it
 * learns from CREATE EXTENSION itself (launcher_extension_made), and for the
 * databases it meets for the first time from a probe, a worker that connects,
 * looks and ends.
 *
 * Workers outlive the launcher.  A new one ends those it finds: what it hasn't
 * started it can't watch.  Until then their pids keep their places taken, and
 * what an earlier launcher had registered and comes up only now finds its place
 * taken, or is ended like the others (worker_enter).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "launcher_private.h"

/* What an earlier launcher left is looked at again this often until it is gone (ms) */
#define STRANGER_INTERVAL	50

static LaunchedWorker launched[OUTBOX_MAX_DATABASES][OUTBOX_WORKERS_PER_DATABASE];

void
launcher_register(void)
{
	BackgroundWorker worker = {0};

	strlcpy(worker.bgw_name, "outbox launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "outbox launcher", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "outbox", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "outbox_launcher_main", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

/*
 * Reads pg_database, and forgets the slots of databases that are gone.  Nobody
 * uses such a slot any more: its sessions are gone, too.  What has a slot now
 * and isn't in what is read afterwards was dropped, not made meanwhile.
 */
static void
look_at_databases(void)
{
	Oid			with_slot[OUTBOX_MAX_DATABASES];

	for (int i = 0; i < OUTBOX_MAX_DATABASES; i++)
		with_slot[i] = outbox_shared->databases[i].oid;
	databases_read();
	for (int i = 0; i < OUTBOX_MAX_DATABASES; i++)
	{
		bool		running = false;

		for (int j = 0; j < OUTBOX_WORKERS_PER_DATABASE; j++)
			running = running || launched[i][j].handle != NULL;
		if (OidIsValid(with_slot[i]) && !running &&
			!database_known(with_slot[i]))
			outbox_forget_database(with_slot[i]);
	}
}

/* How many workers of a kind the settings want a database to have */
static int
workers_wanted(WorkerKind kind)
{
	return kind == WORKER_CONSUMER ? outbox_consumers : outbox_publishers;
}

/*
 * Ends a worker that an earlier launcher left, and that this one has no handle
 * of; true while it is there.
 */
static bool
end_stranger(WorkerSlot *slot)
{
	bool		there;

	if (slot->pid == 0)
		return false;
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	there = slot->pid != 0 && kill(slot->pid, SIGTERM) == 0;
	if (!there)
	{
		slot->pid = 0;
		slot->proc = NULL;
	}
	LWLockRelease(outbox_shared->lock);
	return there;
}

/* None of a kind runs: from now on there are so many of them, and no row more */
static void
change_count(DatabaseSlot *slot, LaunchedWorker *workers, WorkerKind kind, int count)
{
	WorkerSlot *shown = &slot->workers[outbox_first_worker(kind)];

	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	slot->count[kind] = count;
	for (int i = count; i < outbox_max_workers(kind); i++)
		memset(&shown[i], 0, sizeof(WorkerSlot));
	LWLockRelease(outbox_shared->lock);
	for (int i = 0; i < count; i++)
		launched_forgive(&workers[i]);
}

/* Starts the workers of a kind that don't run and may */
static long
start_missing(DatabaseSlot *slot, LaunchedWorker *workers, WorkerKind kind, long timeout)
{
	WorkerSlot *shown = &slot->workers[outbox_first_worker(kind)];
	WorkerArgs	args = {.database = slot->oid, .kind = kind, .count = slot->count[kind]};

	for (int i = 0; i < args.count; i++)
	{
		if (workers[i].handle != NULL || shown[i].pid != 0)
			continue;
		LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
		shown[i].kind = kind;
		shown[i].number = args.number = i;
		LWLockRelease(outbox_shared->lock);
		if (workers[i].not_before <= GetCurrentTimestamp())
			launched_start(&workers[i], &shown[i], &args);
		if (workers[i].handle == NULL)
			timeout = launcher_sooner(timeout, workers[i].not_before);
	}
	return timeout;
}

/*
 * Brings the workers of one kind to where they should be.  They divide the work
 * by their number and count, so a change of the count is a barrier: all of them
 * end before the first new one starts.
 */
static long
tend_kind(DatabaseSlot *slot, LaunchedWorker *launches, WorkerKind kind, bool wanted,
		  long timeout)
{
	LaunchedWorker *workers = &launches[outbox_first_worker(kind)];
	WorkerSlot *shown = &slot->workers[outbox_first_worker(kind)];
	int			count = workers_wanted(kind);
	bool		changes = slot->count[kind] != count;
	bool		gone = true;

	for (int i = 0; i < outbox_max_workers(kind); i++)
	{
		LaunchedWorker *launch = &workers[i];

		if (launch->database != slot->oid && launch->handle == NULL)
			memset(launch, 0, sizeof(LaunchedWorker));
		launched_reap(launch, &shown[i]);
		if (!wanted)
			launched_forgive(launch);
		if (launch->handle != NULL)
		{
			if (!wanted || changes)
				TerminateBackgroundWorker(launch->handle);
			gone = false;
		}
		else if (end_stranger(&shown[i]))
		{
			timeout = Min(timeout, STRANGER_INTERVAL);
			gone = false;
		}
	}
	if (changes && !gone)
		return timeout;
	if (changes)
		change_count(slot, workers, kind, count);
	return wanted ? start_missing(slot, workers, kind, timeout) : timeout;
}

/*
 * Brings the workers of one slot to where they should be; returns in how many
 * milliseconds to look at them again, at most timeout.
 */
static long
tend_database(DatabaseSlot *slot, LaunchedWorker *workers, long timeout)
{
	bool		wanted = database_allowed(slot->oid);

	LWLockAcquire(outbox_shared->lock, LW_SHARED);
	wanted = wanted && slot->has_extension && slot->hold_off == 0;
	LWLockRelease(outbox_shared->lock);

	timeout = tend_kind(slot, workers, WORKER_PUBLISHER, wanted, timeout);
	return tend_kind(slot, workers, WORKER_CONSUMER, wanted, timeout);
}

/* After a reload: what failed for want of a setting is tried again at once */
static void
forget_failures(void)
{
	for (int i = 0; i < OUTBOX_MAX_DATABASES; i++)
	{
		for (int j = 0; j < OUTBOX_WORKERS_PER_DATABASE; j++)
			launched_forgive(&launched[i][j]);
	}
	databases_forgive_probe();
}

static void
launcher_exit(int code, Datum arg)
{
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	outbox_shared->launcher = NULL;
	outbox_shared->launcher_slot.pid = 0;
	LWLockRelease(outbox_shared->lock);
}

static void
launcher_start(void)
{
	WorkerSlot *slot = &outbox_shared->launcher_slot;

	before_shmem_exit(launcher_exit, (Datum) 0);
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	outbox_shared->launcher = MyProc;
	outbox_shared->launcher_look = true;
	slot->kind = WORKER_LAUNCHER;
	slot->pid = MyProcPid;
	slot->since = GetCurrentTimestamp();
	strlcpy(slot->state, "running", sizeof(slot->state));
	LWLockRelease(outbox_shared->lock);
}

void
outbox_launcher_main(Datum arg)
{
	TimestampTz looked_at = 0;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	ProcessConfigFile(PGC_SIGHUP);	/* an earlier reload went unheard */
	pgstat_report_appname("outbox launcher");
	launcher_start();

	for (;;)
	{
		long		timeout = LOOK_INTERVAL;

		ResetLatch(MyLatch);
		if (ProcDiePending)
			proc_exit(1);		/* after a 0 the postmaster starts no other */
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			forget_failures();
		}

		if (outbox_shared->launcher_look ||
			TimestampDifferenceExceeds(looked_at, GetCurrentTimestamp(), LOOK_INTERVAL))
		{
			outbox_shared->launcher_look = false;
			pg_memory_barrier();
			look_at_databases();
			looked_at = GetCurrentTimestamp();
		}
		timeout = databases_probe(timeout);
		for (int i = 0; i < OUTBOX_MAX_DATABASES; i++)
		{
			if (OidIsValid(outbox_shared->databases[i].oid))
				timeout = tend_database(&outbox_shared->databases[i], launched[i], timeout);
		}
		pgstat_report_stat(false);

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout, outbox_wait_event("OutboxLauncherMain"));
	}
}
