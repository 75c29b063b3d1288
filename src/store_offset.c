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
	"ctid, next_offset, anchor_offset, anchor_timestamp, anchor_checksum"

static const Oid key_types[] = {TEXTOID, INT4OID, TIDOID};

static int64
get_int64(int column, bool *isnull)
{
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
									  column, isnull);

	return *isnull ? 0 : DatumGetInt64(value);
}

/* Takes over the row that ROW_COLUMNS of a query returned */
static void
take_row(OffsetRow *row)
{
	bool		isnull;
	bool		no_offset;
	bool		no_record;

	row->exists = true;
	row->ctid = *(ItemPointer) DatumGetPointer(SPI_getbinval(SPI_tuptable->vals[0],
															 SPI_tuptable->tupdesc,
															 1, &isnull));
	row->next_offset = get_int64(2, &isnull);
	row->anchor.offset = get_int64(3, &no_offset);
	row->anchor.timestamp = get_int64(4, &no_record);
	row->anchor.checksum = get_int64(5, &isnull);
	row->anchor.kind = no_offset ? ANCHOR_NONE :
		no_record ? ANCHOR_LOG_START : ANCHOR_RECORD;
	SPI_freetuptable(SPI_tuptable);
}

static void
key_values(const OffsetRow *row, Datum *values)
{
	values[0] = CStringGetTextDatum(row->topic);
	values[1] = Int32GetDatum(row->partition);
	values[2] = PointerGetDatum(&row->ctid);
}

void
store_offset_read(OffsetRow *row)
{
	Datum		values[3];

	key_values(row, values);
	row->exists = false;
	if (store_execute("SELECT " ROW_COLUMNS " FROM outbox.consumer_offset"
					  " WHERE topic = $1 AND partition = $2",
					  2, key_types, values, NULL) > 0)
		take_row(row);
}

/* The columns that next_offset and anchor go to */
static void
position_values(int64 next_offset, const LogAnchor *anchor, Datum *values, char *nulls)
{
	values[0] = Int64GetDatum(next_offset);
	values[1] = Int64GetDatum(anchor->offset);
	values[2] = Int64GetDatum(anchor->timestamp);
	values[3] = Int64GetDatum(anchor->checksum);
	nulls[0] = ' ';
	nulls[1] = anchor->kind == ANCHOR_NONE ? 'n' : ' ';
	nulls[2] = nulls[3] = anchor->kind == ANCHOR_RECORD ? ' ' : 'n';
}

static bool
make_row(OffsetRow *row, int64 next_offset, const LogAnchor *anchor)
{
	static const Oid types[] = {TEXTOID, INT4OID, INT8OID, INT8OID, INT8OID, INT8OID};
	Datum		values[6];
	char		nulls[6] = {' ', ' '};

	values[0] = CStringGetTextDatum(row->topic);
	values[1] = Int32GetDatum(row->partition);
	position_values(next_offset, anchor, values + 2, nulls + 2);
	if (store_execute("INSERT INTO outbox.consumer_offset (topic, partition, next_offset,"
					  "  anchor_offset, anchor_timestamp, anchor_checksum, updated_at)"
					  " VALUES ($1, $2, $3, $4, $5, $6, pg_catalog.clock_timestamp())"
					  " ON CONFLICT DO NOTHING RETURNING " ROW_COLUMNS,
					  6, types, values, nulls) == 0)
		return false;
	take_row(row);
	return true;
}

bool
store_offset_lock(OffsetRow *row, int64 next_offset, const LogAnchor *anchor)
{
	OffsetRow	now = *row;
	Datum		values[3];

	if (!row->exists)
		return make_row(row, next_offset, anchor);

	key_values(row, values);
	if (store_execute("SELECT " ROW_COLUMNS " FROM outbox.consumer_offset"
					  " WHERE topic = $1 AND partition = $2 AND ctid = $3"
					  " FOR NO KEY UPDATE",
					  3, key_types, values, NULL) == 0 &&
		store_execute("SELECT " ROW_COLUMNS " FROM outbox.consumer_offset"
					  " WHERE topic = $1 AND partition = $2 FOR NO KEY UPDATE",
					  2, key_types, values, NULL) == 0)
		return false;
	take_row(&now);
	if (now.next_offset != row->next_offset)
		return false;
	row->ctid = now.ctid;
	return true;
}

void
store_offset_save(OffsetRow *row, int64 next_offset, const LogAnchor *anchor,
				  const ResultCounts *counts)
{
	static const Oid types[] = {TEXTOID, INT4OID, TIDOID, INT8OID, INT8OID, INT8OID,
	INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID};
	Datum		values[13];
	char		nulls[13];

	memset(nulls, ' ', sizeof(nulls));
	key_values(row, values);
	position_values(next_offset, anchor, values + 3, nulls + 3);
	values[7] = Int64GetDatum(counts->applied);
	values[8] = Int64GetDatum(counts->repeated);
	values[9] = Int64GetDatum(counts->contrary);
	values[10] = Int64GetDatum(counts->unknown);
	values[11] = Int64GetDatum(counts->bad);
	values[12] = Int64GetDatum(counts->lost);
	if (store_execute("UPDATE outbox.consumer_offset SET next_offset = $4,"
					  " anchor_offset = $5, anchor_timestamp = $6, anchor_checksum = $7,"
					  " applied = applied + $8, repeated = repeated + $9,"
					  " contrary = contrary + $10, unknown = unknown + $11,"
					  " bad = bad + $12, lost = lost + $13,"
					  " updated_at = pg_catalog.clock_timestamp()"
					  " WHERE topic = $1 AND partition = $2 AND ctid = $3"
					  " RETURNING " ROW_COLUMNS, 13, types, values, nulls) != 1)
		elog(ERROR, "the position of topic \"%s\" partition %d is gone",
			 row->topic, row->partition);
	take_row(row);
}
