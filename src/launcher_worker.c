/*-------------------------------------------------------------------------
 *
 * launcher_worker.c
 *	  Start and end of a single worker, as the launcher sees them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "launcher_private.h"

/* A worker that fails is started again after 1, 2, 4 ... seconds */
#define RESTART_DELAY_MIN	1000
#define RESTART_DELAY_MAX	60000
/* One that ran this long had not failed at its start */
#define HEALTHY_AFTER		60000
/* One that found no slot is tried again after so long */
#define NO_SLOT_DELAY		10000

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

long
launcher_sooner(long timeout, TimestampTz moment)
{
	long		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), moment);

	return Min(timeout, Max(ms, 1));
}

/* A probe has no slot: the launcher shows its trouble */
static void
note_no_slot(WorkerSlot *slot)
{
	static TimestampTz warned_at = 0;
	WorkerSlot *shown = slot ? slot : &outbox_shared->launcher_slot;
	TimestampTz now = GetCurrentTimestamp();

	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	strlcpy(shown->last_error, "could not start the worker: increase max_worker_processes",
			sizeof(shown->last_error));
	shown->last_error_at = now;
	if (slot != NULL)
	{
		strlcpy(slot->state, "not running: no free background worker slot",
				sizeof(slot->state));
		slot->since = now;
	}
	LWLockRelease(outbox_shared->lock);

	/* once for all that want one now */
	if (!TimestampDifferenceExceeds(warned_at, now, NO_SLOT_DELAY / 2))
		return;
	warned_at = now;
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("could not start a worker of outbox: no free background worker slot"),
			 errhint("Increase \"max_worker_processes\" and restart the server.")));
}

void
launched_start(LaunchedWorker *launch, WorkerSlot *slot, const WorkerArgs *args)
{
	BackgroundWorker worker = {0};
	MemoryContext old;
	bool		ok;

	strlcpy(worker.bgw_type, worker_kind_name(args->kind), BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, "%s %d for database %u",
			 worker.bgw_type, args->number, args->database);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "outbox", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "outbox_worker_main", BGW_MAXLEN);
	memcpy(worker.bgw_extra, args, sizeof(*args));
	worker.bgw_notify_pid = MyProcPid;

	old = MemoryContextSwitchTo(TopMemoryContext);
	ok = RegisterDynamicBackgroundWorker(&worker, &launch->handle);
	MemoryContextSwitchTo(old);

	launch->database = args->database;
	launch->started_at = GetCurrentTimestamp();
	if (!ok)
	{
		launch->handle = NULL;
		launch->failures++;
		launch->not_before = TimestampTzPlusMilliseconds(launch->started_at, NO_SLOT_DELAY);
		note_no_slot(slot);
	}
}

void
launched_reap(LaunchedWorker *launch, WorkerSlot *slot)
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
		slot->restarts++;
		/* unless it gave way to one that an earlier launcher left there */
		if (slot->pid == 0 || kill(slot->pid, 0) != 0)
		{
			slot->pid = 0;
			slot->proc = NULL;
			slot->bridge_pid = 0;
			slot->since = now;
			strlcpy(slot->state, "not running", sizeof(slot->state));
		}
		LWLockRelease(outbox_shared->lock);
	}
}

void
launched_forgive(LaunchedWorker *launch)
{
	launch->failures = 0;
	launch->not_before = 0;
}
