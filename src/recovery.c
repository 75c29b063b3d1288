/*-------------------------------------------------------------------------
 *
 * recovery.c
 *	  Messages with a time of their own: no result yet, sent again by hand.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "announce.h"
#include "log_scan.h"
#include "owed_call.h"
#include "recovery.h"
#include "recovery_verdict.h"
#include "store.h"

/* Rows of outbox.delayed, and of the log, that one step looks at */
#define DELAYED_STEP	1000
#define SWEEP_STEP		10000

typedef struct RecoveryCursor
{
	int64		timeout;		/* microseconds */
	MessageClock position;
} RecoveryCursor;

static RecoveryCursor *cursors = NULL;
static int	ncursors = 0;

/* Everything in outbox.delayed below it was dealt with */
static TimestampTz delayed_mark = DT_NOBEGIN;

/* Long ago: at once.  Not DT_NOBEGIN, which differences overflow with. */
#define AT_ONCE			((TimestampTz) 0)

/* The first of what this transaction scheduled */
static TimestampTz scheduled = DT_NOEND;

static Delayed *ready = NULL;
static int	nready = 0;

/* ---------------------------------------------------------------------
 * The next step
 * --------------------------------------------------------------------- */

/* A step is due at that time, at the latest: any publisher may say so */
static void
recovery_by(TimestampTz due)
{
	DatabaseSlot *db = outbox_my_database();
	uint64		old = pg_atomic_read_u64(&db->recovery_due);
	bool		sooner;

	while ((sooner = (TimestampTz) old > due) &&
		   !pg_atomic_compare_exchange_u64(&db->recovery_due, &old, (uint64) due))
		;
	if (sooner)
		announce_wake_first_publisher(db);
}

/* ---------------------------------------------------------------------
 * The side table
 * --------------------------------------------------------------------- */

static void
delayed_arrays(const Delayed *rows, int n, Datum *values)
{
	Datum	   *times = palloc(n * sizeof(Datum));
	Datum	   *ids = palloc(n * sizeof(Datum));

	for (int i = 0; i < n; i++)
	{
		times[i] = TimestampTzGetDatum(rows[i].due_at);
		ids[i] = UUIDPGetDatum(&rows[i].id);
	}
	values[0] = PointerGetDatum(construct_array(times, n, TIMESTAMPTZOID, 8,
												FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[1] = PointerGetDatum(construct_array(ids, n, UUIDOID, UUID_LEN, false,
												TYPALIGN_CHAR));
}

static const Oid delayed_types[] = {TIMESTAMPTZARRAYOID, UUIDARRAYOID};

void
recovery_forget(const Delayed *rows, int n)
{
	Datum		values[2];

	if (n == 0)
		return;
	delayed_arrays(rows, n, values);
	store_execute("DELETE FROM outbox.delayed AS d USING unnest($1, $2) AS n(due_at, id)"
				  " WHERE d.due_at = n.due_at AND d.id = n.id",
				  2, delayed_types, values, NULL);
}

void
recovery_schedule(const Delayed *rows, int n)
{
	Datum		values[2];

	if (n == 0)
		return;
	delayed_arrays(rows, n, values);
	store_execute("INSERT INTO outbox.delayed SELECT * FROM unnest($1, $2)"
				  " ON CONFLICT DO NOTHING", 2, delayed_types, values, NULL);
	for (int i = 0; i < n; i++)
		scheduled = Min(scheduled, rows[i].due_at);
	recovery_by(scheduled);
}

/*
 * A step of the first publisher's that began meanwhile has read what was
 * committed by then, and forgotten that another one was asked for.
 */
void
recovery_committed(void)
{
	if (scheduled != DT_NOEND)
		recovery_by(scheduled);
	scheduled = DT_NOEND;
}

void
recovery_give_lane(const LogRow *row)
{
	static const Oid types[] = {UUIDOID, INT2OID};
	const int	segments[] = {message_id_segment(&row->id), OUTBOX_SEGMENT_KEPT};
	Datum		values[2];

	values[0] = UUIDPGetDatum(&row->id);
	values[1] = Int16GetDatum(OUTBOX_LANE_LATE);
	for (int i = 0; i < lengthof(segments); i++)
	{
		if (store_execute(psprintf("UPDATE %s SET lane = $2 WHERE id = $1",
								   store_segment_name(segments[i])),
						  2, types, values, NULL) > 0)
			break;
	}
}

/* ---------------------------------------------------------------------
 * What is due
 * --------------------------------------------------------------------- */

static int
compare_delayed(const void *a, const void *b)
{
	const Delayed *left = a;
	const Delayed *right = b;
	int			order = memcmp(&left->id, &right->id, UUID_LEN);

	if (order == 0)
		order = left->due_at < right->due_at ? -1 : left->due_at > right->due_at;
	return order;
}

/* Reads the due rows of outbox.delayed, in the order of ids */
static Delayed *
read_due(TimestampTz now, int *n, TimestampTz *last)
{
	static const Oid types[] = {TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID};
	Datum		values[3];
	Delayed    *rows;

	values[0] = TimestampTzGetDatum(delayed_mark);
	values[1] = TimestampTzGetDatum(now);
	values[2] = Int32GetDatum(DELAYED_STEP);
	*n = (int) store_execute("SELECT due_at, id FROM outbox.delayed"
							 " WHERE due_at >= $1 AND due_at <= $2"
							 " ORDER BY due_at, id LIMIT $3", 3, types, values, NULL);
	rows = palloc(Max(*n, 1) * sizeof(Delayed));
	for (int i = 0; i < *n; i++)
	{
		bool		isnull;

		rows[i].due_at = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[i],
														   SPI_tuptable->tupdesc, 1, &isnull));
		rows[i].id = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i],
												  SPI_tuptable->tupdesc, 2, &isnull));
		*last = rows[i].due_at;
	}
	qsort(rows, *n, sizeof(Delayed), compare_delayed);
	return rows;
}

/* Judges one due row; true if its message is NEW and has to go out */
static bool
judge_due(Verdicts *verdicts, const Delayed *row, const MessageState *state, TimestampTz now)
{
	if (state->found && state->status == STATUS_NEW)
		return true;
	if (state->found && state->status == STATUS_SENT)
	{
		const TopicConfig *config = topic_config_find(state->topic);

		if (config != NULL &&
			verdict_sent(verdicts, &row->id, config, state->attempts, state->updated_at, now))
			return true;
	}
	verdicts->done[verdicts->ndone++] = *row;
	return false;
}

/*
 * Deals with the due rows of outbox.delayed; true if there are more.
 *
 * The mark keeps the scan off the dead rows below it.  A transaction that
 * announced itself may yet commit a row that was due when it began, so the
 * mark stays below it.
 */
static bool
step_delayed(const Sweep *sweep, TimestampTz now)
{
	TimestampTz last = now;
	int			n;
	int			unique = 0;
	Delayed    *rows = read_due(now, &n, &last);
	Verdicts   *verdicts = verdicts_make(Max(n, 1));
	MessageState *states = palloc(Max(n, 1) * sizeof(MessageState));
	pg_uuid_t  *ids = palloc(Max(n, 1) * sizeof(pg_uuid_t));
	char	   *owed;

	for (int i = 0; i < n; i++)
	{
		if (i > 0 && memcmp(&rows[i].id, &rows[i - 1].id, UUID_LEN) == 0)
			verdicts->done[verdicts->ndone++] = rows[i];
		else
		{
			rows[unique] = rows[i];
			ids[unique++] = rows[i].id;
		}
	}
	store_read_states(ids, unique, states);
	owed = palloc(Max(unique, 1));
	if (unique > 0)
		owed_calls_find(ids, unique, owed);
	nready = 0;
	for (int i = 0; i < unique; i++)
	{
		if (owed[i] != 0)
			verdict_later(verdicts, &rows[i]);
		else if (judge_due(verdicts, &rows[i], &states[i], now))
			ready[nready++] = rows[i];
	}
	verdicts_write(verdicts);

	delayed_mark = Min(n == DELAYED_STEP ? last : now, sweep->started_at);
	for (int i = 0; i < nready; i++)
		delayed_mark = Min(delayed_mark, ready[i].due_at);
	for (int i = 0; i < sweep->nopen; i++)
		delayed_mark = Min(delayed_mark, message_clock_timestamp(sweep->open[i].clock));
	return n == DELAYED_STEP && nready < n;
}

/* ---------------------------------------------------------------------
 * The recovery sweep
 * --------------------------------------------------------------------- */

/* One cursor a distinct timeout; a new one begins at the beginning */
static void
load_cursors(void)
{
	static const Oid types[] = {INT8OID};
	int			n;
	int64	   *timeouts = topic_config_timeouts(&n);

	if (cursors != NULL)
		pfree(cursors);
	cursors = MemoryContextAllocZero(TopMemoryContext, Max(n, 1) * sizeof(RecoveryCursor));
	ncursors = n;
	for (int i = 0; i < n; i++)
	{
		Datum		values[1] = {Int64GetDatum(timeouts[i])};
		Datum		cursor;
		bool		isnull;

		cursors[i].timeout = timeouts[i];
		if (store_fetch_one("SELECT cursor FROM outbox.recovery WHERE result_timeout = $1",
							1, types, values, NULL, &isnull, &cursor))
			cursors[i].position = message_id_clock(DatumGetUUIDP(cursor));
		else
			store_execute("INSERT INTO outbox.recovery VALUES"
						  " ($1, '00000000-0000-0000-0000-000000000000')",
						  1, types, values, NULL);
	}
}

/*
 * A set_topic that isn't committed yet may have locked the row, for as long as
 * its transaction takes.  Then the old cursor stays, which is right, too.
 */
static void
save_cursor(const RecoveryCursor *cursor)
{
	static const Oid types[] = {INT8OID, UUIDOID};
	pg_uuid_t	id;
	Datum		values[2];

	message_id_lowest(cursor->position, &id);
	values[0] = Int64GetDatum(cursor->timeout);
	values[1] = UUIDPGetDatum(&id);
	store_execute("UPDATE outbox.recovery SET cursor = $2 WHERE result_timeout ="
				  " (SELECT result_timeout FROM outbox.recovery WHERE result_timeout = $1"
				  "  FOR UPDATE SKIP LOCKED)", 2, types, values, NULL);
}

/*
 * Moves one cursor on, up to where the publish sweep has been and the timeout
 * is over.  Returns when to come again, now if there is more at once.
 */
static TimestampTz
step_cursor(RecoveryCursor *cursor, MessageClock safe, TimestampTz now)
{
	MessageClock limit = Min(message_clock_at(now - cursor->timeout), safe);
	MessageClock position = cursor->position;
	TimestampTz again = DT_NOEND;
	Verdicts   *verdicts = verdicts_make(SWEEP_STEP);
	LogScan    *scan;
	LogRow		row;
	int			n = 0;

	PushActiveSnapshot(GetTransactionSnapshot());
	scan = log_scan_begin(cursor->position, GetActiveSnapshot());
	while (again == DT_NOEND && log_scan_next(scan, &row))
	{
		const TopicConfig *config;

		if (row.clock >= limit)
			again = Max(message_clock_timestamp(row.clock) + cursor->timeout,
						now + USECS_PER_SEC);
		else if (n++ == SWEEP_STEP)
			again = now;
		else
		{
			position = row.clock + 1;
			config = row.status == STATUS_SENT ? topic_config_find(row.topic) : NULL;
			if (config != NULL && config->result_timeout == cursor->timeout &&
				verdict_sent(verdicts, &row.id, config, row.attempts, row.updated_at, now))
			{
				verdicts->later[verdicts->nlater].due_at = now;
				verdicts->later[verdicts->nlater++].id = row.id;
			}
		}
	}
	log_scan_end(scan);
	PopActiveSnapshot();

	verdicts_write(verdicts);
	if (position != cursor->position)
	{
		cursor->position = position;
		save_cursor(cursor);
	}
	return again;
}

/* When the first row of outbox.delayed that isn't dealt with is due */
static TimestampTz
first_delayed(TimestampTz after)
{
	static const Oid types[] = {TIMESTAMPTZOID};
	Datum		values[1] = {TimestampTzGetDatum(after)};
	Datum		due;
	bool		isnull;

	if (!store_fetch_one("SELECT due_at FROM outbox.delayed WHERE due_at > $1"
						 " ORDER BY due_at LIMIT 1", 1, types, values, NULL, &isnull, &due))
		return DT_NOEND;
	return DatumGetTimestampTz(due);
}

void
recovery_topics_changed(void)
{
	load_cursors();
	recovery_wake();
}

void
recovery_wake(void)
{
	recovery_by(AT_ONCE);
}

void
recovery_go_back(TimestampTz due_at)
{
	delayed_mark = Min(delayed_mark, due_at);
}

void
recovery_expect(const TopicConfig *config)
{
	recovery_by(GetCurrentTimestamp() + config->result_timeout);
}

TimestampTz
recovery_next(void)
{
	return (TimestampTz) pg_atomic_read_u64(&outbox_my_database()->recovery_due);
}

const Delayed *
recovery_ready(int *n)
{
	*n = nready;
	return ready;
}

bool
recovery_step(Sweep *sweep)
{
	DatabaseSlot *db = outbox_my_database();
	MessageClock limit;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next = DT_NOEND;
	bool		more;

	if (ready == NULL)
		ready = MemoryContextAlloc(TopMemoryContext, DELAYED_STEP * sizeof(Delayed));

	/* what another publisher asks for from now on is for the next step */
	pg_atomic_write_u64(&db->recovery_due, (uint64) DT_NOEND);
	sweep_read_others(sweep);
	limit = sweep_safe(sweep);
	sweep->passed = Max(sweep->passed, limit);
	pg_atomic_write_u64(&db->recovery_limit,
						Max(limit, pg_atomic_read_u64(&db->recovery_limit)));
	pg_memory_barrier();
	for (int i = 0; i < ncursors; i++)
		next = Min(next, step_cursor(&cursors[i], limit, now));
	more = step_delayed(sweep, now);
	recovery_by(Min(next, first_delayed(now)));
	return more || next <= now;
}
