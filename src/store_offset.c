/*-------------------------------------------------------------------------
 *
 * store_offset.c
 *	  outbox.consumer_offset: how far each partition was read.
 *
 * A row changes with every batch.  While some other session holds a snapshot
 * its old versions can't be pruned, and a search by key visits all of them; so
 * rows are found by the place they were last seen at.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"

#include "store.h"
#include "store_offset.h"

#define ROW_COLUMNS \
	"ctid, next_offset, anchor_offset, anchor_timestamp, anchor_checksum," \
	" paused, retry_attempts, retry_at, retry_error, end_offset"

#define KEY_CONDITION	"topic = $1 AND partition = $2 AND kind = $3"

/* Of a statement's first parameters, and of the next */
#define NKEYS	4
#define NSTATES 9

#define KEY_TYPES	TEXTOID, INT4OID, CHAROID, TIDOID
#define STATE_TYPES	INT8OID, INT8OID, INT8OID, INT8OID, TEXTOID, INT4OID, TIMESTAMPTZOID, TEXTOID, INT8OID

static Datum
get_column(int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column, isnull);
}

static int64
get_int64(int column, bool *isnull)
{
	Datum		value = get_column(column, isnull);

	return *isnull ? 0 : DatumGetInt64(value);
}

static void
get_text(int column, char *buffer)
{
	bool		isnull;
	Datum		value = get_column(column, &isnull);

	buffer[0] = '\0';
	if (!isnull)
		text_to_cstring_buffer(DatumGetTextPP(value), buffer, OFFSET_TEXT_LEN);
}

/* Takes over the row that ROW_COLUMNS of a query returned */
static void
take_row(OffsetRow *row)
{
	OffsetState *state = &row->state;
	bool		isnull;
	bool		no_offset;
	bool		no_record;
	bool		no_retry;

	row->exists = true;
	row->ctid = *(ItemPointer) DatumGetPointer(get_column(1, &isnull));
	state->next = get_int64(2, &isnull);
	state->anchor.offset = get_int64(3, &no_offset);
	state->anchor.timestamp = get_int64(4, &no_record);
	state->anchor.checksum = get_int64(5, &isnull);
	state->anchor.kind = no_offset ? ANCHOR_NONE :
		no_record ? ANCHOR_LOG_START : ANCHOR_RECORD;
	get_text(6, state->paused);
	state->retry_attempts = DatumGetInt32(get_column(7, &no_retry));
	if (no_retry)
		state->retry_attempts = 0;
	state->retry_at = get_int64(8, &isnull);
	get_text(9, state->retry_error);
	state->end = get_int64(10, &isnull);
	if (isnull)
		state->end = -1;
	SPI_freetuptable(SPI_tuptable);
}

static void
key_values(const OffsetRow *row, Datum *values)
{
	values[0] = CStringGetTextDatum(row->topic);
	values[1] = Int32GetDatum(row->partition);
	values[2] = CharGetDatum(row->kind);
	values[3] = PointerGetDatum(&row->ctid);
}

void
store_offset_read(OffsetRow *row)
{
	static const Oid types[] = {KEY_TYPES};
	Datum		values[NKEYS];

	key_values(row, values);
	row->exists = false;
	if (store_execute("SELECT " ROW_COLUMNS " FROM outbox.consumer_offset"
					  " WHERE " KEY_CONDITION, NKEYS - 1, types, values, NULL) > 0)
		take_row(row);
}

/* The columns that a state goes to */
static void
state_values(const OffsetState *state, Datum *values, char *nulls)
{
	const LogAnchor *anchor = &state->anchor;
	bool		retry = state->retry_attempts > 0;

	values[0] = Int64GetDatum(state->next);
	values[1] = Int64GetDatum(anchor->offset);
	values[2] = Int64GetDatum(anchor->timestamp);
	values[3] = Int64GetDatum(anchor->checksum);
	values[4] = CStringGetTextDatum(state->paused);
	values[5] = Int32GetDatum(state->retry_attempts);
	values[6] = TimestampTzGetDatum(state->retry_at);
	values[7] = CStringGetTextDatum(state->retry_error);
	values[8] = Int64GetDatum(state->end);
	nulls[0] = ' ';
	nulls[1] = anchor->kind == ANCHOR_NONE ? 'n' : ' ';
	nulls[2] = nulls[3] = anchor->kind == ANCHOR_RECORD ? ' ' : 'n';
	nulls[4] = state->paused[0] ? ' ' : 'n';
	nulls[5] = nulls[6] = nulls[7] = retry ? ' ' : 'n';
	nulls[8] = state->end >= 0 ? ' ' : 'n';
}

static bool
make_row(OffsetRow *row, const OffsetState *state)
{
	static const Oid types[] = {KEY_TYPES, STATE_TYPES};
	Datum		values[NKEYS + NSTATES];
	char		nulls[NKEYS + NSTATES];

	memset(nulls, ' ', sizeof(nulls));
	key_values(row, values);
	state_values(state, values + NKEYS, nulls + NKEYS);
	if (store_execute("INSERT INTO outbox.consumer_offset (topic, partition, kind, next_offset,"
					  "  anchor_offset, anchor_timestamp, anchor_checksum,"
					  "  paused, retry_attempts, retry_at, retry_error, end_offset,"
					  "  updated_at)"
					  " VALUES ($1, $2, $3, $5, $6, $7, $8, $9, $10, $11, $12, $13,"
					  "  pg_catalog.clock_timestamp())"
					  " ON CONFLICT DO NOTHING RETURNING " ROW_COLUMNS,
					  NKEYS + NSTATES, types, values, nulls) == 0)
		return false;
	take_row(row);
	return true;
}

OffsetLock
store_offset_lock(OffsetRow *row, const OffsetState *state)
{
	static const Oid types[] = {KEY_TYPES};
	OffsetRow	now = *row;
	Datum		values[NKEYS];

	if (!row->exists)
		return make_row(row, state) ? OFFSET_LOCKED : OFFSET_CHANGED;

	key_values(row, values);
	if (store_execute("SELECT " ROW_COLUMNS " FROM outbox.consumer_offset"
					  " WHERE " KEY_CONDITION " AND ctid = $4"
					  " FOR NO KEY UPDATE SKIP LOCKED",
					  NKEYS, types, values, NULL) == 0 &&
		store_execute("SELECT " ROW_COLUMNS " FROM outbox.consumer_offset"
					  " WHERE " KEY_CONDITION " FOR NO KEY UPDATE SKIP LOCKED",
					  NKEYS - 1, types, values, NULL) == 0)
		return store_execute("SELECT FROM outbox.consumer_offset WHERE " KEY_CONDITION,
							 NKEYS - 1, types, values, NULL) > 0 ?
			OFFSET_BUSY : OFFSET_CHANGED;
	take_row(&now);
	if (now.state.next != row->state.next ||
		strcmp(now.state.paused, row->state.paused) != 0)
		return OFFSET_CHANGED;
	row->ctid = now.ctid;
	return OFFSET_LOCKED;
}

void
store_offset_save(OffsetRow *row, const OffsetState *state, const RecordCounts *counts)
{
	static const Oid types[] = {KEY_TYPES, STATE_TYPES, INT8OID, INT8OID, INT8OID,
	INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, TEXTOID};
	Datum		values[NKEYS + NSTATES + 9];
	char		nulls[NKEYS + NSTATES + 9];
	Datum	   *count = values + NKEYS + NSTATES;

	memset(nulls, ' ', sizeof(nulls));
	key_values(row, values);
	state_values(state, values + NKEYS, nulls + NKEYS);
	count[0] = Int64GetDatum(counts->applied);
	count[1] = Int64GetDatum(counts->failed);
	count[2] = Int64GetDatum(counts->dead);
	count[3] = Int64GetDatum(counts->repeated);
	count[4] = Int64GetDatum(counts->contrary);
	count[5] = Int64GetDatum(counts->unknown);
	count[6] = Int64GetDatum(counts->bad);
	count[7] = Int64GetDatum(counts->lost);
	count[8] = CStringGetTextDatum(counts->last_error);
	nulls[NKEYS + NSTATES + 8] = counts->last_error[0] ? ' ' : 'n';
	if (store_execute("UPDATE outbox.consumer_offset SET next_offset = $5,"
					  " anchor_offset = $6, anchor_timestamp = $7, anchor_checksum = $8,"
					  " paused = $9, retry_attempts = $10, retry_at = $11, retry_error = $12,"
					  " end_offset = $13,"
					  " applied = applied + $14, failed = failed + $15, dead = dead + $16,"
					  " repeated = repeated + $17, contrary = contrary + $18,"
					  " unknown = unknown + $19, bad = bad + $20, lost = lost + $21,"
					  " last_error = coalesce($22, last_error),"
					  " last_error_at = CASE WHEN $22 IS NULL THEN last_error_at"
					  "  ELSE pg_catalog.clock_timestamp() END,"
					  " updated_at = pg_catalog.clock_timestamp()"
					  " WHERE " KEY_CONDITION " AND ctid = $4"
					  " RETURNING " ROW_COLUMNS,
					  lengthof(types), types, values, nulls) != 1)
		elog(ERROR, "the position of topic \"%s\" partition %d is gone",
			 row->topic, row->partition);
	take_row(row);
}
