/*-------------------------------------------------------------------------
 *
 * held_table.c
 *	  The marks of held topics in outbox.held, and those of outbox.paused.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/uuid.h"

#include "held_private.h"
#include "safe_text.h"
#include "store.h"

/* Whose marks they are: of which publisher, of how many */
static int	publisher = 0;
static int	publishers = 1;

/* ---------------------------------------------------------------------
 * Reading
 * --------------------------------------------------------------------- */

/*
 * The publishers were of another number when the marks were saved: each of the
 * new ones gets a copy that is right for any lane.  Whoever comes first does it
 * for all, under the lock of a row that every publisher has.  Where one held
 * other partitions than another, or all of the topic, all hold all of it.
 */
static void
share_out_anew(void)
{
	static const Oid types[] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(publishers)};

	store_execute("SELECT FROM outbox.lane WHERE lane = " CppAsString2(OUTBOX_LANE_LATE)
				  " FOR UPDATE", 0, NULL, NULL, NULL);
	store_execute("WITH old AS (DELETE FROM outbox.held WHERE publishers <> $1 RETURNING *),"
				  " alike AS (SELECT *, pg_catalog.min(partitions) OVER topics ="
				  "   pg_catalog.max(partitions) OVER topics AS alike"
				  "  FROM old WINDOW topics AS (PARTITION BY topic))"
				  " INSERT INTO outbox.held (topic, partition, partitions, publisher,"
				  "  publishers, cursor, reason, error, tries, since)"
				  " SELECT topic, CASE WHEN alike THEN partition ELSE -1 END,"
				  "  CASE WHEN alike THEN partitions ELSE -1 END, i, $1,"
				  "  (pg_catalog.array_agg(cursor ORDER BY cursor))[1],"
				  "  pg_catalog.min(reason), pg_catalog.min(error), pg_catalog.max(tries),"
				  "  pg_catalog.min(since)"
				  " FROM alike, pg_catalog.generate_series(0, $1 - 1) AS i"
				  " GROUP BY 1, 2, 3, i", 1, types, values, NULL);
}

static void
load_one(HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	bool		found;
	int32		partition = DatumGetInt32(SPI_getbinval(tuple, desc, 2, &isnull));
	int32		partitions = DatumGetInt32(SPI_getbinval(tuple, desc, 3, &isnull));
	char	   *error = SPI_getvalue(tuple, desc, 6);
	Held	   *held = held_enter(SPI_getvalue(tuple, desc, 1), partition, partitions, &found);

	held->cursor = Min(held->cursor,
					   message_id_clock(DatumGetUUIDP(SPI_getbinval(tuple, desc, 4, &isnull))));
	held->reason = held_reason(SPI_getvalue(tuple, desc, 5));
	safe_text_copy(held->error, error ? error : "", sizeof(held->error));
	held->tries = DatumGetInt32(SPI_getbinval(tuple, desc, 7, &isnull));
	held->dirty = held->partition != partition;
}

void
held_load(int number, int count)
{
	static const Oid types[] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(number)};
	uint64		rows;

	publisher = number;
	publishers = count;
	share_out_anew();
	held_forget_all();

	/* that of a whole topic first: it would take the place of the others */
	rows = store_execute("SELECT topic, partition, partitions, cursor, reason, error, tries"
						 " FROM outbox.held WHERE publisher = $1 ORDER BY topic, partition",
						 1, types, values, NULL);
	for (uint64 i = 0; i < rows; i++)
		load_one(SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
}

static void
pause_topic(const char *topic, MessageClock from)
{
	bool		found;
	Held	   *held = held_enter(topic, -1, -1, &found);

	if (!found)
	{
		held->cursor = Min(held->cursor, from);
		held->tries = 0;
	}
	held->state = HELD_WAITING;
	held->paused = held->dirty = true;
	held->reason = held_reason("paused");
	held->error[0] = '\0';
}

void
held_load_paused(MessageClock from)
{
	uint64		rows = store_execute("SELECT topic FROM outbox.paused", 0, NULL, NULL, NULL);
	HeldIterator iterator = {0};
	Held	   *held;

	while ((held = held_next(&iterator)) != NULL)
	{
		if (held->paused)
			held->next_try = 0;
		held->paused = false;
	}
	for (uint64 i = 0; i < rows; i++)
		pause_topic(SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1), from);
}

/* ---------------------------------------------------------------------
 * Writing
 * --------------------------------------------------------------------- */

bool
held_is_dirty(void)
{
	dlist_iter	iterator;

	dlist_foreach(iterator, &held_marks)
	{
		if (dlist_container(Held, node, iterator.cur)->dirty)
			return true;
	}
	return false;
}

bool
held_is_outdated(void)
{
	dlist_iter	iterator;

	dlist_foreach(iterator, &held_marks)
	{
		if (dlist_container(Held, node, iterator.cur)->outdated)
			return true;
	}
	return false;
}

static void
delete_one(const Held *held)
{
	static const Oid types[] = {TEXTOID, INT4OID, INT4OID};
	Datum		values[3];

	values[0] = CStringGetTextDatum(held->topic);
	values[1] = Int32GetDatum(held->partition);
	values[2] = Int32GetDatum(publisher);
	store_execute("DELETE FROM outbox.held"
				  " WHERE topic = $1 AND partition = $2 AND publisher = $3",
				  3, types, values, NULL);
}

static void
save_one(const Held *held)
{
	static const Oid types[] = {TEXTOID, INT4OID, INT4OID, INT4OID, INT4OID, UUIDOID, TEXTOID,
	TEXTOID, INT4OID};
	pg_uuid_t	cursor;
	Datum		values[9];

	message_id_lowest(held->cursor, &cursor);
	values[0] = CStringGetTextDatum(held->topic);
	values[1] = Int32GetDatum(held->partition);
	values[2] = Int32GetDatum(held->partitions);
	values[3] = Int32GetDatum(publisher);
	values[4] = Int32GetDatum(publishers);
	values[5] = UUIDPGetDatum(&cursor);
	values[6] = CStringGetTextDatum(held->reason);
	values[7] = CStringGetTextDatum(held->error);
	values[8] = Int32GetDatum(held->tries);
	store_execute("INSERT INTO outbox.held AS h (topic, partition, partitions, publisher,"
				  "  publishers, cursor, reason, error, tries)"
				  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
				  " ON CONFLICT ON CONSTRAINT held_pkey DO UPDATE"
				  " SET partitions = excluded.partitions, cursor = excluded.cursor,"
				  "  reason = excluded.reason, error = excluded.error, tries = excluded.tries",
				  9, types, values, NULL);
}

void
held_save(bool all)
{
	dlist_mutable_iter iterator;

	/* first: a new mark may have the place of a released one */
	dlist_foreach_modify(iterator, &held_marks)
	{
		Held	   *held = dlist_container(Held, node, iterator.cur);

		if (!held->released)
			continue;
		delete_one(held);
		held_forget(held);
	}
	dlist_foreach_modify(iterator, &held_marks)
	{
		Held	   *held = dlist_container(Held, node, iterator.cur);

		if (held->dirty || (all && held->outdated))
		{
			save_one(held);
			held->dirty = held->outdated = false;
		}
	}
}
