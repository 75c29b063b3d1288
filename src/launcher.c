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
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/varlena.h"

#include "compat.h"
#include "launcher.h"

/* A worker that fails is started again after 1, 2, 4 ... seconds */
#define RESTART_DELAY_MIN	1000
#define RESTART_DELAY_MAX	60000
/* One that ran this long had not failed at its start */
#define HEALTHY_AFTER		60000
/* pg_database is read again this often, whoever says so or not */
#define LOOK_INTERVAL		60000

typedef struct LaunchedWorker
{
	Oid			database;
	BackgroundWorkerHandle *handle; /* NULL: not running */
	int			failures;		/* in a row */
	TimestampTz started_at;
	TimestampTz not_before;
} LaunchedWorker;

/* A row of pg_database */
typedef struct KnownDatabase
{
	Oid			oid;
	NameData	name;
	bool		connectable;	/* and no template */
	bool		probed;
	TimestampTz not_before;		/* when a probe that failed may be repeated */
} KnownDatabase;

static const WorkerKind worker_kinds[OUTBOX_WORKERS_PER_DATABASE] = {
	WORKER_PUBLISHER, WORKER_CONSUMER
};

static LaunchedWorker launched[OUTBOX_MAX_DATABASES][OUTBOX_WORKERS_PER_DATABASE];
static LaunchedWorker probe;
static KnownDatabase *known = NULL;
static int	nknown = 0;

static const char *
worker_kind_name(WorkerKind kind)
{
	switch (kind)
	{
		case WORKER_LAUNCHER:
			return "outbox launcher";
		case WORKER_PROBE:
			return "outbox probe";
		case WORKER_PUBLISHER:
			return "outbox publisher";
		case WORKER_CONSUMER:
			return "outbox consumer";
		case WORKER_NONE:
			break;
	}
	return "";
}

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

static KnownDatabase *
find_known(KnownDatabase *list, int n, Oid oid)
{
	for (int i = 0; i < n; i++)
	{
		if (list[i].oid == oid)
			return &list[i];
	}
	return NULL;
}

/* Reads pg_database into "known", remembering which were probed */
static void
read_databases(void)
{
	KnownDatabase *list = NULL;
	int			n = 0;
	int			allocated = 0;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);
		KnownDatabase *before;

		if (n == allocated)
		{
			allocated = Max(16, allocated * 2);
			list = list == NULL ?
				MemoryContextAlloc(TopMemoryContext, allocated * sizeof(KnownDatabase)) :
				repalloc(list, allocated * sizeof(KnownDatabase));
		}
		before = find_known(known, nknown, database->oid);
		list[n].oid = database->oid;
		list[n].name = database->datname;
		list[n].connectable = !database->datistemplate && database->datallowconn &&
			database->datconnlimit != OUTBOX_DATCONNLIMIT_INVALID;
		list[n].probed = before != NULL && before->probed;
		list[n].not_before = before != NULL ? before->not_before : 0;
		n++;
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();

	if (known != NULL)
		pfree(known);
	known = list;
	nknown = n;
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
	read_databases();
	for (int i = 0; i < OUTBOX_MAX_DATABASES; i++)
	{
		bool		running = false;

		for (int j = 0; j < OUTBOX_WORKERS_PER_DATABASE; j++)
			running = running || launched[i][j].handle != NULL;
		if (OidIsValid(with_slot[i]) && !running &&
			find_known(known, nknown, with_slot[i]) == NULL)
			outbox_forget_database(with_slot[i]);
	}
}

/* May this database's messages be carried, as outbox.databases says? */
static bool
database_allowed(const char *name)
{
	char	   *copy;
	List	   *names;
	ListCell   *cell;
	bool		allowed = false;

	if (outbox_databases == NULL || outbox_databases[0] == '\0')
		return true;
	copy = pstrdup(outbox_databases);
	if (SplitIdentifierString(copy, ',', &names))
	{
		foreach(cell, names)
			allowed = allowed || strcmp((char *) lfirst(cell), name) == 0;
	}
	list_free(names);
	pfree(copy);
	return allowed;
}

/* A probe has no slot: the launcher shows its trouble */
static void
note_no_slot(WorkerSlot *slot)
{
	WorkerSlot *shown = slot ? slot : &outbox_shared->launcher_slot;

	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	strlcpy(shown->last_error, "could not start the worker: increase max_worker_processes",
			sizeof(shown->last_error));
	shown->last_error_at = GetCurrentTimestamp();
	if (slot != NULL)
	{
		strlcpy(slot->state, "not running: no free background worker slot",
				sizeof(slot->state));
		slot->since = slot->last_error_at;
	}
	LWLockRelease(outbox_shared->lock);
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("could not start a worker of outbox: no free background worker slot"),
			 errhint("Increase \"max_worker_processes\" and restart the server.")));
}

static void
start_worker(LaunchedWorker *launch, WorkerSlot *slot, Oid database,
			 WorkerKind kind, int number)
{
	BackgroundWorker worker = {0};
	WorkerArgs	args = {0};
	MemoryContext old;
	bool		ok;

	args.database = database;
	args.kind = kind;
	args.number = number;

	strlcpy(worker.bgw_type, worker_kind_name(kind), BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, "%s for database %u", worker.bgw_type, database);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "outbox", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "outbox_worker_main", BGW_MAXLEN);
	memcpy(worker.bgw_extra, &args, sizeof(args));
	worker.bgw_notify_pid = MyProcPid;

	old = MemoryContextSwitchTo(TopMemoryContext);
	ok = RegisterDynamicBackgroundWorker(&worker, &launch->handle);
	MemoryContextSwitchTo(old);

	launch->database = database;
	launch->started_at = GetCurrentTimestamp();
	if (!ok)
	{
		launch->handle = NULL;
		launch->failures++;
		launch->not_before = TimestampTzPlusMilliseconds(launch->started_at, RESTART_DELAY_MAX / 6);
		note_no_slot(slot);
	}
}

/* Notices that a worker has ended, and decides when it may start again */
static void
reap_worker(LaunchedWorker *launch, WorkerSlot *slot)
{
	pid_t		pid;
	TimestampTz now;
	int			delay = RESTART_DELAY_MIN;

	if (launch->handle == NULL ||
		GetBackgroundWorkerPid(launch->handle, &pid) != BGWH_STOPPED)
		return;
	pfree(launch->handle);
	launch->handle = NULL;

	now = GetCurrentTimestamp();
	if (TimestampDifferenceExceeds(launch->started_at, now, HEALTHY_AFTER))
		launch->failures = 0;
	for (int i = 0; i < launch->failures && delay < RESTART_DELAY_MAX; i++)
		delay *= 2;
	launch->failures++;
	launch->not_before = TimestampTzPlusMilliseconds(now, Min(delay, RESTART_DELAY_MAX));

	if (slot != NULL)
	{
		LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
		slot->pid = 0;
		slot->bridge_pid = 0;
		slot->restarts++;
		slot->since = now;
		strlcpy(slot->state, "not running", sizeof(slot->state));
		LWLockRelease(outbox_shared->lock);
	}
}

/* Milliseconds until a moment, at least 1, at most the given ones */
static long
sooner(long timeout, TimestampTz moment)
{
	long		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), moment);

	return Min(timeout, Max(ms, 1));
}

/*
 * Brings the workers of one slot to where they should be; returns in how many
 * milliseconds to look at them again, at most timeout.
 */
static long
tend_database(DatabaseSlot *slot, LaunchedWorker *workers, long timeout)
{
	KnownDatabase *database = find_known(known, nknown, slot->oid);
	bool		wanted;

	LWLockAcquire(outbox_shared->lock, LW_SHARED);
	wanted = slot->has_extension && slot->hold_off == 0 && database != NULL &&
		database->connectable && database_allowed(NameStr(database->name));
	LWLockRelease(outbox_shared->lock);

	for (int i = 0; i < OUTBOX_WORKERS_PER_DATABASE; i++)
	{
		LaunchedWorker *launch = &workers[i];

		if (launch->database != slot->oid && launch->handle == NULL)
			memset(launch, 0, sizeof(LaunchedWorker));
		reap_worker(launch, &slot->workers[i]);
		if (!wanted)
		{
			if (launch->handle != NULL)
				TerminateBackgroundWorker(launch->handle);
			launch->failures = 0;
			launch->not_before = 0;
		}
		else if (launch->handle == NULL)
		{
			slot->workers[i].kind = worker_kinds[i];
			if (launch->not_before <= GetCurrentTimestamp())
				start_worker(launch, &slot->workers[i], slot->oid, worker_kinds[i], 0);
			if (launch->handle == NULL)
				timeout = sooner(timeout, launch->not_before);
		}
	}
	return timeout;
}

/* Lets one probe at a time look into the databases not looked into yet */
static long
tend_probe(long timeout)
{
	TimestampTz now = GetCurrentTimestamp();

	if (probe.handle != NULL)
	{
		KnownDatabase *database = find_known(known, nknown, probe.database);

		reap_worker(&probe, NULL);
		if (probe.handle != NULL)
			return timeout;
		probe.failures = 0;
		probe.not_before = 0;
		if (database != NULL)
		{
			database->probed = outbox_shared->probed == probe.database;
			database->not_before = TimestampTzPlusMilliseconds(now, LOOK_INTERVAL);
		}
	}
	if (probe.not_before > now)
		return sooner(timeout, probe.not_before);
	for (int i = 0; i < nknown; i++)
	{
		DatabaseSlot *slot = outbox_find_database(known[i].oid);

		if (known[i].probed || !known[i].connectable || known[i].not_before > now ||
			!database_allowed(NameStr(known[i].name)))
			continue;
		if (slot != NULL && slot->has_extension)
		{
			known[i].probed = true;
			continue;
		}
		outbox_shared->probed = InvalidOid;
		start_worker(&probe, NULL, known[i].oid, WORKER_PROBE, 0);
		if (probe.handle == NULL)
			return sooner(timeout, probe.not_before);
		break;
	}
	return timeout;
}

/* After a reload: what failed for want of a setting is tried again at once */
static void
forget_failures(void)
{
	for (int i = 0; i < OUTBOX_MAX_DATABASES; i++)
	{
		for (int j = 0; j < OUTBOX_WORKERS_PER_DATABASE; j++)
		{
			launched[i][j].failures = 0;
			launched[i][j].not_before = 0;
		}
	}
	probe.failures = 0;
	probe.not_before = 0;
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

	/*
	 * Workers that an earlier launcher left are unknown to this one: they are
	 * ended, and started again as its own.
	 */
	for (int i = 0; i < OUTBOX_MAX_DATABASES; i++)
	{
		if (OidIsValid(outbox_shared->databases[i].oid))
		{
			launcher_hold_off(outbox_shared->databases[i].oid);
			launcher_release(outbox_shared->databases[i].oid);
		}
	}
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
		timeout = tend_probe(timeout);
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
