/*-------------------------------------------------------------------------
 *
 * housekeeping.c
 *	  What the first publisher does besides publishing: retention.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "housekeeping.h"
#include "inbox_ring.h"
#include "retention.h"
#include "ring.h"

/* What failed is tried again after so long, and what can't be done now (ms) */
#define FAILED_DELAY	60000
#define REST_DELAY		10000

/*
 * A task.  step does a bounded piece, in a transaction that worker_begin
 * began, and returns when the next one is due: now, if there is more at once.
 * Then committed is called, or after an ERROR failed.  Either may be NULL.
 */
typedef struct HousekeepingTask
{
	const char *name;
	TimestampTz (*step) (TimestampTz now);
	void		(*committed) (void);
	void		(*failed) (void);
} HousekeepingTask;

static const HousekeepingTask tasks[] = {
	{"retention of the log", retention_step, retention_committed, retention_failed},
	{"retention of segment -1", retention_kept_step, NULL, retention_kept_failed},
	{"retention of the inbox", inbox_ring_step, inbox_ring_committed, inbox_ring_failed},
};

/* When each is due */
static TimestampTz next[lengthof(tasks)];

/* The settings, as they were */
static int	retention = 0;
static int	inbox_retention = 0;

static bool
settings_changed(void)
{
	return retention != outbox_retention || inbox_retention != outbox_inbox_retention;
}

TimestampTz
housekeeping_next(const Worker *worker)
{
	TimestampTz first = DT_NOEND;

	if (worker->number != 0 || !worker_is_enabled())
		return DT_NOEND;
	if (settings_changed())
		return 0;
	for (int i = 0; i < lengthof(tasks); i++)
		first = Min(first, next[i]);
	return first;
}

/* After an ERROR in a step: as a session does between two commands */
static void
after_error(Worker *worker, const HousekeepingTask *task, MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	HOLD_INTERRUPTS();
	EmitErrorReport();
	AbortCurrentTransaction();
	FlushErrorState();
	RESUME_INTERRUPTS();
	MemoryContextSwitchTo(context);

	worker_set_error(worker, psprintf("%s: %s", task->name, error->message));
	if (task->failed)
		task->failed();
}

static TimestampTz
try_step(Worker *worker, const HousekeepingTask *task)
{
	MemoryContext context = CurrentMemoryContext;
	TimestampTz now = GetCurrentTimestamp();
	volatile TimestampTz again = TimestampTzPlusMilliseconds(now, FAILED_DELAY);

	PG_TRY();
	{
		if (!worker_begin(worker))
			again = TimestampTzPlusMilliseconds(now, REST_DELAY);
		else
		{
			message_floor_ensure();
			again = task->step(now);
			worker_commit(worker);
			if (task->committed)
				task->committed();
		}
	}
	PG_CATCH();
	{
		after_error(worker, task, context);
		again = TimestampTzPlusMilliseconds(now, FAILED_DELAY);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return again;
}

void
housekeeping_turn(Worker *worker)
{
	static MemoryContext context = NULL;
	MemoryContext old;

	if (housekeeping_next(worker) > GetCurrentTimestamp())
		return;
	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "outbox housekeeping",
										ALLOCSET_DEFAULT_SIZES);
	if (settings_changed())
	{
		retention = outbox_retention;
		inbox_retention = outbox_inbox_retention;
		ring_retime(worker->db);
		memset(next, 0, sizeof(next));
	}
	old = MemoryContextSwitchTo(context);
	for (int i = 0; i < lengthof(tasks); i++)
	{
		if (next[i] <= GetCurrentTimestamp())
			next[i] = try_step(worker, &tasks[i]);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(context);
}

void
housekeeping_wait(Worker *worker, long timeout)
{
	long		left;

	housekeeping_turn(worker);
	left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), housekeeping_next(worker));
	worker_wait(worker, Min(timeout, left), false);
}
