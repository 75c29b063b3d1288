/*-------------------------------------------------------------------------
 *
 * store.c
 *	  The workers' statements, and the one place that changes a status.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "log_lookup.h"
#include "log_update.h"
#include "owed_call.h"
#include "ring.h"
#include "store.h"
#include "wait_for.h"

PG_FUNCTION_INFO_V1(outbox_change_status);

/* Of every change of a status; $2 is the new one, $4 the attempts to add, $5 the time */
#define CHANGED_COLUMNS \
	"status = $2, updated_at = $5," \
	" attempts = least(l.attempts + $4, " CppAsString2(OUTBOX_ATTEMPTS_MAX) ")"

typedef struct SavedPlan
{
	uint64		hash;			/* of the statement; must be first */
	char	   *sql;
	SPIPlanPtr	plan;
} SavedPlan;

static HTAB *saved_plans = NULL;

/* ---------------------------------------------------------------------
 * Statements
 * --------------------------------------------------------------------- */

static SPIPlanPtr
saved_plan(const char *sql, int nargs, const Oid *types)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) sql, strlen(sql), 0);
	SavedPlan  *saved;
	SPIPlanPtr	plan;
	char	   *copy;

	if (saved_plans == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(uint64);
		ctl.entrysize = sizeof(SavedPlan);
		saved_plans = hash_create("outbox plans", 128, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	saved = hash_search(saved_plans, &hash, HASH_FIND, NULL);
	if (saved != NULL)
	{
		Assert(strcmp(saved->sql, sql) == 0);
		return saved->plan;
	}

	plan = SPI_prepare(sql, nargs, (Oid *) types);
	if (plan == NULL)
		elog(ERROR, "could not prepare \"%s\": %s", sql, SPI_result_code_string(SPI_result));
	SPI_keepplan(plan);
	copy = MemoryContextStrdup(TopMemoryContext, sql);
	saved = hash_search(saved_plans, &hash, HASH_ENTER, NULL);
	saved->sql = copy;
	saved->plan = plan;
	return plan;
}

static uint64
execute(const char *sql, int nargs, const Oid *types, const Datum *values,
		const char *nulls, bool read_only)
{
	SPIPlanPtr	plan = saved_plan(sql, nargs, types);
	bool		no_snapshot = !ActiveSnapshotSet();
	int			result;

	/* SPI takes a snapshot for what may write, but wants one around it */
	if (no_snapshot)
		PushActiveSnapshot(GetTransactionSnapshot());
	result = SPI_execute_plan(plan, (Datum *) values, nulls, read_only, 0);
	if (no_snapshot)
		PopActiveSnapshot();
	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", sql, SPI_result_code_string(result));
	return SPI_processed;
}

uint64
store_execute(const char *sql, int nargs, const Oid *types,
			  const Datum *values, const char *nulls)
{
	return execute(sql, nargs, types, values, nulls, false);
}

uint64
store_query(const char *sql, int nargs, const Oid *types, const Datum *values)
{
	return execute(sql, nargs, types, values, NULL, true);
}

bool
store_fetch_one(const char *sql, int nargs, const Oid *types,
				const Datum *values, const char *nulls,
				bool *isnull, Datum *result)
{
	TupleDesc	desc;
	Datum		value;

	if (store_execute(sql, nargs, types, values, nulls) == 0)
		return false;
	desc = SPI_tuptable->tupdesc;
	value = SPI_getbinval(SPI_tuptable->vals[0], desc, 1, isnull);
	if (!*isnull)
		*result = datumCopy(value, TupleDescAttr(desc, 0)->attbyval,
							TupleDescAttr(desc, 0)->attlen);
	return true;
}

TimestampTz
store_fetch_time(const char *sql)
{
	Datum		time;
	bool		isnull;

	return store_fetch_one(sql, 0, NULL, NULL, NULL, &isnull, &time) && !isnull ?
		DatumGetTimestampTz(time) : DT_NOEND;
}

char *
store_segment_name(int segment)
{
	return segment == OUTBOX_SEGMENT_KEPT ? pstrdup("outbox.log_kept") :
		psprintf("outbox.log_%d", segment);
}

/* ---------------------------------------------------------------------
 * Status
 * --------------------------------------------------------------------- */

bool
status_may_become(MessageStatus from, MessageStatus to)
{
	switch (to)
	{
		case STATUS_SENT:
			return from == STATUS_NEW;
		case STATUS_CONFIRMED:
		case STATUS_FAILED:
			return from == STATUS_SENT || from == STATUS_NEW || from == STATUS_DEAD;
		case STATUS_DEAD:
			return from == STATUS_NEW || from == STATUS_SENT;
		case STATUS_NEW:
			return from == STATUS_SENT || from == STATUS_DEAD;
	}
	return false;
}

Datum
store_id_array(const pg_uuid_t *ids, int n)
{
	Datum	   *datums = palloc(n * sizeof(Datum));
	ArrayType  *array;

	for (int i = 0; i < n; i++)
		datums[i] = UUIDPGetDatum(&ids[i]);
	array = construct_array(datums, n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR);
	pfree(datums);
	return PointerGetDatum(array);
}

/* NULL is an empty one */
static Datum
text_array(const char *const *texts, int n)
{
	Datum	   *datums = palloc(n * sizeof(Datum));

	for (int i = 0; i < n; i++)
		datums[i] = CStringGetTextDatum(texts != NULL && texts[i] != NULL ? texts[i] : "");
	return PointerGetDatum(construct_array(datums, n, TEXTOID, -1, false, TYPALIGN_INT));
}

static Datum
status_array(const char *statuses)
{
	int			n = strlen(statuses);
	Datum	   *datums = palloc(n * sizeof(Datum));

	for (int i = 0; i < n; i++)
		datums[i] = CharGetDatum(statuses[i]);
	return PointerGetDatum(construct_array(datums, n, CHAROID, 1, true, TYPALIGN_CHAR));
}

static int
compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, UUID_LEN);
}

/* Where an id is among sorted ones */
static int
find_id(const pg_uuid_t *id, const pg_uuid_t *ids, int n)
{
	const pg_uuid_t *found = bsearch(id, ids, n, sizeof(pg_uuid_t), compare_ids);

	if (found == NULL)
		elog(ERROR, "read a message that was not asked for");
	return (int) (found - ids);
}

/*
 * The change in one partition of the log.  hit tells which of the ids it
 * changed.  What is NEW again has lost its turn, and goes to the last lane.
 * Sorted ids are visited in order, by the index as by the nested
 * loop, so that two of these never deadlock.
 */
static int
change_in_segment(int segment, const pg_uuid_t *ids, int n,
				  const StatusChange *change, bool *hit)
{
	static const Oid types[] = {UUIDARRAYOID, CHAROID, CHARARRAYOID, INT4OID,
	TIMESTAMPTZOID, TEXTARRAYOID, TEXTARRAYOID};
	bool		texts = change->results != NULL || change->errors != NULL;
	char	   *name = store_segment_name(segment);
	const char *lane = change->to == STATUS_NEW ? ", lane = " CppAsString2(OUTBOX_LANE_LATE) : "";
	Datum		values[7];
	char	   *sql;
	int			changed;

	values[0] = store_id_array(ids, n);
	values[1] = CharGetDatum(change->to);
	values[2] = status_array(change->from);
	values[3] = Int32GetDatum(change->count_attempt ? 1 : 0);
	values[4] = TimestampTzGetDatum(GetCurrentTimestamp());
	if (texts)
	{
		values[5] = text_array(change->results, n);
		values[6] = text_array(change->errors, n);
		sql = psprintf("UPDATE %s AS l SET " CHANGED_COLUMNS ", result = n.result,"
					   " error = n.error%s FROM unnest($1, $6, $7) AS n(id, result, error)"
					   " WHERE l.id = n.id AND l.status = ANY ($3) RETURNING l.id", name, lane);
	}
	else
		sql = psprintf("UPDATE %s AS l SET " CHANGED_COLUMNS "%s"
					   " WHERE l.id = ANY ($1) AND l.status = ANY ($3) RETURNING l.id",
					   name, lane);
	changed = store_execute(sql, texts ? 7 : 5, types, values, NULL);
	if (change->to == STATUS_NEW)
		ring_reopen(outbox_my_database(), segment);

	for (int i = 0; i < changed; i++)
	{
		bool		isnull;
		pg_uuid_t  *id = DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i],
													 SPI_tuptable->tupdesc, 1, &isnull));

		hit[find_id(id, ids, n)] = true;
	}
	SPI_freetuptable(SPI_tuptable);
	return changed;
}

/* The change in one partition of the log of those that weren't hit elsewhere */
static int
change_rest(int segment, const pg_uuid_t *ids, int n, const StatusChange *change, bool *hit)
{
	StatusChange part = *change;
	pg_uuid_t  *left = palloc(n * sizeof(pg_uuid_t));
	const char **results = palloc0(n * sizeof(char *));
	const char **errors = palloc0(n * sizeof(char *));
	int		   *places = palloc(n * sizeof(int));
	bool	   *left_hit = palloc0(n * sizeof(bool));
	int			nleft = 0;
	int			changed;

	for (int i = 0; i < n; i++)
	{
		if (hit[i])
			continue;
		left[nleft] = ids[i];
		places[nleft] = i;
		if (change->results)
			results[nleft] = change->results[i];
		if (change->errors)
			errors[nleft] = change->errors[i];
		nleft++;
	}
	part.results = change->results ? results : NULL;
	part.errors = change->errors ? errors : NULL;
	changed = change_in_segment(segment, left, nleft, &part, left_hit);
	for (int i = 0; i < nleft; i++)
		hit[places[i]] = left_hit[i];
	return changed;
}

/* In the segment that their ids name: where a row was read, or else anywhere in it */
static int
change_at_home(int segment, const pg_uuid_t *ids, int n, const StatusChange *change, bool *hit)
{
	int			done = 0;

	if (change->places != NULL)
		done = log_update_status(segment, ids, change->places, n, change,
								 GetCurrentTimestamp(), hit);
	if (done == 0)
		done = change_in_segment(segment, ids, n, change, hit);
	else if (done < n)
		done += change_rest(segment, ids, n, change, hit);
	return done;
}

int
store_change_status(const pg_uuid_t *ids, int n, const StatusChange *change, bool *changed)
{
	bool	   *hit = palloc0(Max(n, 1) * sizeof(bool));
	int			total = 0;
	int			end;

	for (const char *from = change->from; *from; from++)
		Assert(status_may_become(*from, change->to));

	for (int start = 0; start < n; start = end)
	{
		StatusChange part = *change;
		int			segment = message_id_segment(&ids[start]);

		for (end = start + 1; end < n; end++)
		{
			Assert(memcmp(&ids[end - 1], &ids[end], UUID_LEN) < 0);
			if (message_id_segment(&ids[end]) != segment)
				break;
		}
		if (change->results)
			part.results = change->results + start;
		if (change->errors)
			part.errors = change->errors + start;
		if (change->places)
			part.places = change->places + start;
		total += change_at_home(segment, ids + start, end - start, &part, hit + start);
	}

	/* segment -1 comes last, for all of them: the order of locks */
	if (total < n)
		total += change_rest(OUTBOX_SEGMENT_KEPT, ids, n, change, hit);
	if (change->to == STATUS_DEAD && total > 0)
		owed_calls_for_dead(ids, hit, n);
	for (int i = 0; i < n; i++)
	{
		if (hit[i])
			wait_for_changed(&ids[i]);
	}
	if (changed != NULL)
		memcpy(changed, hit, n * sizeof(bool));
	pfree(hit);
	return total;
}

void
store_read_states(const pg_uuid_t *ids, int n, MessageState *states)
{
	int			end;

	memset(states, 0, n * sizeof(MessageState));
	for (int start = 0; start < n; start = end)
	{
		int			segment = message_id_segment(&ids[start]);

		for (end = start + 1; end < n && message_id_segment(&ids[end]) == segment;)
			end++;
		if (log_lookup(segment, ids + start, end - start, states + start) < end - start)
			(void) log_lookup(OUTBOX_SEGMENT_KEPT, ids + start, end - start, states + start);
	}
}

/* ---------------------------------------------------------------------
 * For SQL
 * --------------------------------------------------------------------- */

/* The letter of a label of outbox.message_status */
static MessageStatus
status_argument(FunctionCallInfo fcinfo, int argument)
{
	Oid			output;
	bool		varlena;

	getTypeOutputInfo(get_fn_expr_argtype(fcinfo->flinfo, argument), &output, &varlena);
	return (MessageStatus) OidOutputFunctionCall(output, PG_GETARG_DATUM(argument))[0];
}

/* outbox.change_status(id, from_status, to_status, error): see the script */
Datum
outbox_change_status(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id;
	StatusChange change = {0};
	char		from[2] = {0};
	const char *error = NULL;
	int			changed;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("message id and statuses must not be null")));
	id = PG_GETARG_UUID_P(0);
	from[0] = (char) status_argument(fcinfo, 1);
	change.from = from;
	change.to = status_argument(fcinfo, 2);
	if (!status_may_become(from[0], change.to))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a message can't go from status \"%c\" to \"%c\"",
						from[0], change.to)));
	if (!PG_ARGISNULL(3))
		error = text_to_cstring(PG_GETARG_TEXT_PP(3));

	/* what it died of is over for a message that is sent again */
	if (error != NULL || change.to == STATUS_NEW)
		change.errors = &error;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	changed = store_change_status(id, 1, &change, NULL);
	SPI_finish();
	PG_RETURN_BOOL(changed > 0);
}
