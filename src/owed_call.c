/*-------------------------------------------------------------------------
 *
 * owed_call.c
 *	  outbox.handler_call: calls of on_confirmed, on_failed and on_dead that
 *	  are owed, because they failed, or because only a consumer makes them.
 *
 * A result whose handler failed waits here, and not in its topic, so that the
 * results behind it pass.  The status of its message changes with the call.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "announce.h"
#include "owed_call.h"
#include "relation.h"
#include "store.h"

/* A handler that can't be called at all is looked for again after so long (ms) */
#define UNCALLABLE_DELAY	10000

/* Between two looks at a call that somebody has locked (ms) */
#define LOCKED_DELAY	100

static TimestampTz next_due = DT_NOBEGIN;

typedef struct OwedCall
{
	int64		call;			/* its key */
	char	   *topic;
	MessageStatus outcome;
	int			attempts;
	pg_uuid_t	message_id;
	char	   *result;
	char	   *result_error;
} OwedCall;

static void
warn_parked(const Handler *handler, const char *topic, const pg_uuid_t *id, const char *error)
{
	ereport(WARNING,
			(errmsg("function %s keeps failing: %s", handler->function, error),
			 errdetail("Its call for a message of topic \"%s\" waits in outbox.handler_call.",
					   topic),
			 errhint("SELECT outbox.replay('%s'::uuid) tries again.",
					 DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id))))));
}

static void
owe(const OutcomeCall *call, const char *topic, int attempts, TimestampTz due,
	const char *sqlstate, const char *error)
{
	static const Oid types[] = {UUIDOID, TEXTOID, CHAROID, TEXTOID, TEXTOID, INT4OID,
	TIMESTAMPTZOID, TEXTOID, TEXTOID};
	char		nulls[9];
	Datum		values[9];

	memset(nulls, ' ', sizeof(nulls));
	values[0] = UUIDPGetDatum(&call->id);
	values[1] = CStringGetTextDatum(topic);
	values[2] = CharGetDatum(call->handler->outcome);
	values[3] = CStringGetTextDatum(call->result ? call->result : "");
	nulls[3] = call->result ? ' ' : 'n';
	values[4] = CStringGetTextDatum(call->error ? call->error : "");
	nulls[4] = call->error ? ' ' : 'n';
	values[5] = Int32GetDatum(attempts);
	values[6] = TimestampTzGetDatum(due);
	nulls[6] = due == DT_NOEND ? 'n' : ' ';
	values[7] = CStringGetTextDatum(sqlstate ? sqlstate : "");
	nulls[7] = sqlstate ? ' ' : 'n';
	values[8] = CStringGetTextDatum(error);
	store_execute("INSERT INTO outbox.handler_call (message_id, topic, outcome, result,"
				  "  result_error, attempts, due_at, sqlstate, error, since)"
				  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9,"
				  "  pg_catalog.clock_timestamp())", 9, types, values, nulls);
	next_due = Min(next_due, due);

	/* another consumer may be the one that makes it */
	announce_wake_at_commit();
}

void
owed_call_add(const OutcomeCall *call, const char *topic, const HandlerOutcome *outcome)
{
	bool		parked = call->handler->max_attempts <= 1;

	owe(call, topic, 1, parked ? DT_NOEND : handler_retry_at(1), outcome->sqlstate,
		outcome->error);
	if (parked)
		warn_parked(&call->handler->handler, topic, &call->id, outcome->error);
}

void
owed_call_postpone(const OutcomeCall *call, const char *topic, const char *why)
{
	owe(call, topic, 0, GetCurrentTimestamp(), NULL, why);
}

void
owed_calls_for_dead(const pg_uuid_t *ids, const bool *changed, int n)
{
	static const Oid types[] = {UUIDARRAYOID};
	pg_uuid_t  *dead = palloc(n * sizeof(pg_uuid_t));
	Datum		values[1];
	int			ndead = 0;

	if (store_execute("SELECT FROM outbox.topic_config WHERE on_dead IS NOT NULL LIMIT 1",
					  0, NULL, NULL, NULL) == 0)
		return;
	for (int i = 0; i < n; i++)
	{
		if (changed[i])
			dead[ndead++] = ids[i];
	}
	values[0] = store_id_array(dead, ndead);

	/* through the parent, but messages die rarely */
	store_execute("INSERT INTO outbox.handler_call (message_id, topic, outcome, attempts,"
				  "  due_at, since)"
				  " SELECT l.id, l.topic, 'D', 0, pg_catalog.clock_timestamp(),"
				  "  pg_catalog.clock_timestamp()"
				  " FROM outbox.log AS l JOIN outbox.topic_config AS c ON c.topic = l.topic"
				  " WHERE l.id = ANY ($1) AND c.on_dead IS NOT NULL", 1, types, values, NULL);
	announce_wake_at_commit();
}

void
owed_calls_find(const pg_uuid_t *ids, int n, char *outcomes)
{
	static const Oid types[] = {UUIDARRAYOID};
	Datum		values[1] = {store_id_array(ids, n)};
	uint64		found;

	found = store_execute("SELECT n.place::int, c.outcome"
						  " FROM unnest($1) WITH ORDINALITY AS n(id, place)"
						  "  JOIN outbox.handler_call AS c ON c.message_id = n.id"
						  " WHERE c.outcome IN ('C', 'F')", 1, types, values, NULL);
	memset(outcomes, 0, n);
	for (uint64 i = 0; i < found; i++)
	{
		bool		isnull;
		int			place = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i],
														SPI_tuptable->tupdesc, 1, &isnull));

		outcomes[place - 1] = DatumGetChar(SPI_getbinval(SPI_tuptable->vals[i],
														 SPI_tuptable->tupdesc, 2, &isnull));
	}
}

void
owed_calls_distrust(void)
{
	next_due = DT_NOBEGIN;
}

TimestampTz
owed_calls_due(void)
{
	return next_due;
}

/* ---------------------------------------------------------------------
 * A call that is due
 * --------------------------------------------------------------------- */

/* Locks the first one that is due; false if there is none */
static bool
take_due(OwedCall *owed)
{
	HeapTuple	tuple;
	TupleDesc	desc;
	bool		isnull;

	if (store_execute("SELECT call, topic, outcome, attempts, message_id, result, result_error"
					  " FROM outbox.handler_call"
					  " WHERE due_at <= pg_catalog.clock_timestamp()"
					  " ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED",
					  0, NULL, NULL, NULL) == 0)
		return false;
	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	owed->call = DatumGetInt64(SPI_getbinval(tuple, desc, 1, &isnull));
	owed->topic = SPI_getvalue(tuple, desc, 2);
	owed->outcome = DatumGetChar(SPI_getbinval(tuple, desc, 3, &isnull));
	owed->attempts = DatumGetInt32(SPI_getbinval(tuple, desc, 4, &isnull));
	owed->message_id = *DatumGetUUIDP(SPI_getbinval(tuple, desc, 5, &isnull));
	owed->result = SPI_getvalue(tuple, desc, 6);
	owed->result_error = SPI_getvalue(tuple, desc, 7);
	return true;
}

/* What is due and locked has somebody who is at it */
static void
find_next_due(void)
{
	TimestampTz soon = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOCKED_DELAY);

	next_due = Max(soon, store_fetch_time("SELECT due_at FROM outbox.handler_call"
										" WHERE due_at IS NOT NULL ORDER BY due_at LIMIT 1"));
}

/* Tries again at that time; DT_NOEND: when outbox.replay is called */
static void
put_back(const OwedCall *owed, TimestampTz due, const char *sqlstate, const char *error)
{
	static const Oid types[] = {INT8OID, INT4OID, TIMESTAMPTZOID, TEXTOID, TEXTOID};
	char		nulls[5] = {' ', ' ', due == DT_NOEND ? 'n' : ' ', sqlstate ? ' ' : 'n', ' '};
	Datum		values[5];

	values[0] = Int64GetDatum(owed->call);
	values[1] = Int32GetDatum(owed->attempts);
	values[2] = TimestampTzGetDatum(due);
	values[3] = CStringGetTextDatum(sqlstate ? sqlstate : "");
	values[4] = CStringGetTextDatum(error);
	store_execute("UPDATE outbox.handler_call SET attempts = $2, due_at = $3,"
				  " sqlstate = $4, error = $5 WHERE call = $1", 5, types, values, nulls);
}

static void
forget(const OwedCall *owed)
{
	static const Oid types[] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(owed->call)};

	store_execute("DELETE FROM outbox.handler_call WHERE call = $1", 1, types, values, NULL);
}

/* With no handler any more a result takes effect by itself */
static void
without_handler(const OwedCall *owed)
{
	StatusChange change = {.to = owed->outcome,.from = "NSD"};
	const char *result = owed->result;
	const char *error = owed->result_error;

	change.results = &result;
	change.errors = &error;
	if (owed->outcome != STATUS_DEAD)
		(void) store_change_status(&owed->message_id, 1, &change, NULL);
	forget(owed);
}

static void
failed(OwedCall *owed, const OutcomeHandler *handler, const HandlerOutcome *outcome)
{
	bool		parked = ++owed->attempts >= handler->max_attempts;

	put_back(owed, parked ? DT_NOEND : handler_retry_at(owed->attempts),
			 outcome->sqlstate, outcome->error);
	if (parked)
		warn_parked(&handler->handler, owed->topic, &owed->message_id, outcome->error);
}

/* Makes the call with its effects, and says what became of it */
static void
make_call(Worker *worker, OwedCall *owed)
{
	OutcomeHandler *handler = outcome_handler_find(owed->topic, owed->outcome);
	OutcomeCall call = {.handler = handler,.id = owed->message_id,.alone = true,
		.change = owed->outcome != STATUS_DEAD,
		.result = owed->result,.error = owed->result_error};
	HandlerOutcome outcome;
	const char *trouble;

	if (handler == NULL)
	{
		without_handler(owed);
		return;
	}
	trouble = handler_ready(&handler->handler, outbox_type_oid("message"));
	if (trouble != NULL)
	{
		put_back(owed, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), UNCALLABLE_DELAY),
				 NULL, trouble);
		return;
	}
	handler_scope_begin(&handler->handler);
	outcome_call(&call, &outcome);
	handler_scope_end();
	if (outcome.verdict == HANDLER_DONE)
		forget(owed);
	else
		failed(owed, handler, &outcome);
	if (outcome.verdict == HANDLER_DONE && call.change && !call.was_final)
		pg_atomic_fetch_add_u64(owed->outcome == STATUS_CONFIRMED ? &worker->db->confirmed :
								&worker->db->failed, 1);
}

void
owed_calls_step(Worker *worker)
{
	OwedCall	owed;

	if (!worker_begin(worker))
		return;
	if (take_due(&owed))
		make_call(worker, &owed);
	else
		find_next_due();
	worker_commit(worker);
	handler_tidy_session();
}
