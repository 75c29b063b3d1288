/*-------------------------------------------------------------------------
 *
 * launcher_request.c
 *	  What other processes ask of the launcher.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/procarray.h"

#include "launcher.h"

/* How long a command waits for the workers to end (ms) */
#define HOLD_OFF_TIMEOUT	5000

static void
wake_launcher(void)
{
	PGPROC	   *launcher = outbox_shared->launcher;

	if (launcher != NULL)
		SetLatch(&launcher->procLatch);
}

void
launcher_look(void)
{
	outbox_shared->launcher_look = true;
	pg_memory_barrier();
	wake_launcher();
}

void
launcher_extension_made(Oid database)
{
	DatabaseSlot *slot = outbox_make_database(database);

	if (slot == NULL)
		return;					/* capture will say so */
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	slot->has_extension = true;
	slot->extension_epoch++;
	LWLockRelease(outbox_shared->lock);
	launcher_look();
}

/*
 * Sends SIGTERM to the workers of a slot; true while one of them is there.  One
 * that starts has its pid in the slot before it is a session, one that ends is
 * still a session for a moment when its pid is gone: so pids remembers them.
 */
static bool
end_workers(DatabaseSlot *slot, pid_t *pids)
{
	bool		there = false;

	for (int i = 0; i < OUTBOX_WORKERS_PER_DATABASE; i++)
	{
		pid_t		pid;

		LWLockAcquire(outbox_shared->lock, LW_SHARED);
		pid = slot->workers[i].pid;
		LWLockRelease(outbox_shared->lock);
		if (pid != 0)
		{
			there = kill(pid, SIGTERM) == 0 || there;
			pids[i] = pid;
		}
		else if (pids[i] != 0 && BackendPidGetProc(pids[i]) != NULL)
			there = true;
	}
	return there;
}

void
launcher_hold_off(Oid database)
{
	DatabaseSlot *slot = outbox_find_database(database);
	pid_t		pids[OUTBOX_WORKERS_PER_DATABASE] = {0};
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														   HOLD_OFF_TIMEOUT);

	if (slot == NULL)
		return;
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	slot->hold_off++;
	LWLockRelease(outbox_shared->lock);

	while (end_workers(slot, pids) && GetCurrentTimestamp() < deadline)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 10, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

void
launcher_release(Oid database)
{
	DatabaseSlot *slot = outbox_find_database(database);

	if (slot != NULL)
	{
		LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
		if (slot->hold_off > 0)
			slot->hold_off--;
		LWLockRelease(outbox_shared->lock);
	}
	launcher_look();
}
