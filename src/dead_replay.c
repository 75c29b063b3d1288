/*-------------------------------------------------------------------------
 *
 * dead_replay.c
 *	  Handling dead records again, after outbox.replay.
 *
 * What was kept of the record is handled as if it were read again: with the
 * inbox, the reply and the retries of its subscription.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "dead_replay.h"
#include "handled.h"
#include "message_id.h"
#include "store.h"

/* A subscription that is gone, or can't be handled, is looked for again (ms) */
#define UNHANDLED_DELAY	10000

/* Between two looks at a record that somebody has locked (ms) */
#define LOCKED_DELAY	100

static TimestampTz next_due = DT_NOBEGIN;

void
dead_replays_distrust(void)
{
	next_due = DT_NOBEGIN;
}

TimestampTz
dead_replays_due(void)
{
	return next_due;
}

/* What is due and locked has somebody who is at it */
static void
find_next_due(void)
{
	TimestampTz soon = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOCKED_DELAY);

	next_due = Max(soon, store_fetch_time("SELECT replay_at FROM outbox.dead_record_data"
										" WHERE replay_at IS NOT NULL ORDER BY replay_at LIMIT 1"));
}

/* A dead record that is handled again */
typedef struct Replay
{
	int64		number;			/* its key */
	Handled		handled;
	BridgeRecord record;		/* as much of it as a reply needs */
	BridgeHeader correlation;
	int			attempts;
} Replay;

/* Takes over the columns of the query below */
static void
take_row(Replay *replay, HeapTuple tuple, TupleDesc desc)
{
	BridgeRecord *record = &replay->record;
	Handled    *handled = &replay->handled;
	bool		isnull;
	Datum		value;

	replay->number = DatumGetInt64(SPI_getbinval(tuple, desc, 1, &isnull));
	record->topic = SPI_getvalue(tuple, desc, 2);
	replay->attempts = DatumGetInt32(SPI_getbinval(tuple, desc, 3, &isnull));
	value = SPI_getbinval(tuple, desc, 4, &isnull);
	handled->has_id = !isnull;
	if (!isnull)
		handled->id = *DatumGetUUIDP(value);
	value = SPI_getbinval(tuple, desc, 5, &isnull);
	if (!isnull)
	{
		bytea	   *bytes = DatumGetByteaPCopy(value);

		replay->correlation.name = HEADER_CORRELATION;
		replay->correlation.value = VARDATA(bytes);
		replay->correlation.len = VARSIZE(bytes) - VARHDRSZ;
		record->headers = &replay->correlation;
		record->nheaders = 1;
	}
	handled->argument = SPI_getbinval(tuple, desc, 6, &isnull);
	record->key = SPI_getvalue(tuple, desc, 7);
	record->key_len = record->key ? strlen(record->key) : 0;
	handled->record = record;
	handled->context = CurrentMemoryContext;
	handled->alone = true;
}

/* Locks the first one that is due; false if there is none */
static bool
take_due(Replay *replay)
{
	memset(replay, 0, sizeof(Replay));
	if (store_execute("SELECT number, topic, attempts, message_id, correlation_id, record,"
					  " (record).key FROM outbox.dead_record_data"
					  " WHERE replay_at <= pg_catalog.clock_timestamp()"
					  " ORDER BY replay_at LIMIT 1 FOR UPDATE SKIP LOCKED",
					  0, NULL, NULL, NULL) == 0)
		return false;
	take_row(replay, SPI_tuptable->vals[0], SPI_tuptable->tupdesc);
	return true;
}

static void
forget(const Replay *replay)
{
	static const Oid types[] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(replay->number)};

	store_execute("DELETE FROM outbox.dead_record_data WHERE number = $1",
				  1, types, values, NULL);
}

/* Tries again at that time; DT_NOEND: when outbox.replay is called */
static void
put_back(const Replay *replay, TimestampTz due, const char *sqlstate, const char *error)
{
	static const Oid types[] = {INT8OID, INT4OID, TIMESTAMPTZOID, TEXTOID, TEXTOID};
	char		nulls[5] = {' ', ' ', due == DT_NOEND ? 'n' : ' ', ' ', ' '};
	Datum		values[5];

	values[0] = Int64GetDatum(replay->number);
	values[1] = Int32GetDatum(replay->attempts);
	values[2] = TimestampTzGetDatum(due);
	values[3] = CStringGetTextDatum(sqlstate);
	values[4] = CStringGetTextDatum(error);
	store_execute("UPDATE outbox.dead_record_data SET attempts = $2, replay_at = $3,"
				  " sqlstate = $4, error = $5 WHERE number = $1", 5, types, values, nulls);
}

/* Handled now, or known to the inbox: it is dead no more */
static void
handle(Replay *replay)
{
	Handled    *handled = &replay->handled;

	inbox_find(handled, 1);
	message_floor_ensure();
	handler_scope_begin(&handled->subscription->handler);
	if (handled->fate == HANDLED_BEFORE)
		handled_repeat(handled);
	else
		handled_call(handled);
	handler_scope_end();

	switch (handled->fate)
	{
		case HANDLED_NOW:
			inbox_add(handled, 1);
			forget(replay);
			break;
		case HANDLED_BEFORE:
			forget(replay);
			break;
		case HANDLED_NOT:
		case HANDLED_DEAD:
			replay->attempts++;
			put_back(replay, handled->fate == HANDLED_DEAD ? DT_NOEND :
					 handler_retry_at(handled->attempts),
					 handled->outcome.sqlstate, handled->outcome.error);
			break;
	}
}

static void
replay_one(Replay *replay)
{
	Subscription *subscription;

	subscriptions_check();
	subscription = subscription_find(replay->record.topic);
	if (subscription == NULL || subscription->trouble != NULL)
	{
		put_back(replay, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), UNHANDLED_DELAY),
				 unpack_sql_state(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 subscription ? subscription->trouble : "the topic is not subscribed to");
		return;
	}
	replay->handled.subscription = subscription;

	/* what it has failed of before is over: as often as a record just read */
	replay->handled.attempts = replay->attempts % subscription->max_attempts;
	handle(replay);
}

void
dead_replays_step(Worker *worker)
{
	Replay		replay;

	if (!worker_begin(worker))
		return;
	if (take_due(&replay))
		replay_one(&replay);
	else
		find_next_due();
	worker_commit(worker);
	handler_tidy_session();
}
