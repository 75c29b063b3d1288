/*-------------------------------------------------------------------------
 *
 * sweep.c
 *	  How far the publish sweep has come, and where it must go back to.
 *
 * Ids are taken before commit, so a message with a lower id can appear below
 * the position.  Each pass reads the clock C, then the announcements A, then
 * takes its snapshot S (announce.c proves that this order misses nobody):
 * a message below C that S doesn't show belongs to a transaction in A, or was
 * rolled back.  So after a pass the position is C, and for each transaction
 * of A the sweep goes back to where that began, once, when a later pass finds
 * its announcement gone: its end was visible before that, so it is visible to
 * the later pass's snapshot.
 *
 * For the order it must not go back later than in the first pass whose
 * snapshot shows the transaction, since that shows what was captured after its
 * end as well, and the transaction's own messages above the position: these
 * would go out before those below it.  So what S shows of A is gone back for
 * at once (sweep_see), and S is also what tells which prepared transactions
 * have committed.
 *
 * What is saved never is above a position, an open transaction, or a message
 * that is being delivered: too low is always right, only slower.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "store.h"
#include "sweep.h"

/*
 * A lane belongs to who holds this lock, for the life of the session.  It is
 * taken on the extension under a sub-id of its own, which no SQL command can
 * do, and unlike a row lock it writes nothing.  The method is that of advisory
 * locks: those of a session survive its aborts and end with the process.
 */
static bool
lock_lane(Oid extension, int lane)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, ExtensionRelationId, extension, lane + 1);
	tag.locktag_lockmethodid = USER_LOCKMETHOD;
	return LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
}

/* Reads the cursors: all of them, or those of the lanes that others have */
static void
read_cursors(Sweep *sweep, bool all)
{
	uint64		rows = store_execute("SELECT lane, cursor FROM outbox.lane", 0, NULL, NULL, NULL);

	for (uint64 i = 0; i < rows; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		int			lane = DatumGetInt16(SPI_getbinval(tuple, desc, 1, &isnull));
		pg_uuid_t  *cursor = DatumGetUUIDP(SPI_getbinval(tuple, desc, 2, &isnull));

		if (lane < 0 || lane >= OUTBOX_SWEPT_LANES)
			elog(ERROR, "unexpected lane %d in outbox.lane", lane);
		if (all || !sweep->mine[lane])
			sweep->position[lane] = sweep->saved[lane] = message_id_clock(cursor);
	}
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Recovery may have come so far while an earlier publisher had these lanes: by
 * what that had saved.  The table tells it after a restart, shared memory since.
 */
static void
load_passed(Sweep *sweep)
{
	Datum		cursor;
	bool		isnull;

	sweep->passed = pg_atomic_read_u64(&outbox_my_database()->recovery_limit);
	if (store_fetch_one("SELECT cursor FROM outbox.recovery ORDER BY cursor DESC LIMIT 1",
						0, NULL, NULL, NULL, &isnull, &cursor))
		sweep->passed = Max(sweep->passed, message_id_clock(DatumGetUUIDP(cursor)));
	for (int lane = 0; lane < OUTBOX_SWEPT_LANES; lane++)
	{
		if (sweep->mine[lane])
			sweep->passed = Max(sweep->passed, sweep->saved[lane]);
	}
}

bool
sweep_load(Sweep *sweep, Oid extension, int publisher, int publishers)
{
	bool		all = true;

	if (sweep->open == NULL)
	{
		Size		size = outbox_shared->nannouncements * sizeof(OpenTransaction);

		sweep->open = MemoryContextAlloc(TopMemoryContext, size);
		sweep->scratch = MemoryContextAlloc(TopMemoryContext, size);
	}
	sweep->nopen = 0;
	sweep->in_flight = PG_UINT64_MAX;
	for (int lane = 0; lane < OUTBOX_SWEPT_LANES; lane++)
	{
		bool		wanted = outbox_lane_publisher(lane, publishers) == publisher;

		sweep->mine[lane] = wanted && (sweep->mine[lane] || lock_lane(extension, lane));
		all = all && sweep->mine[lane] == wanted;
	}
	read_cursors(sweep, true);
	load_passed(sweep);
	return all;
}

void
sweep_read_others(Sweep *sweep)
{
	for (int lane = 0; lane < OUTBOX_SWEPT_LANES; lane++)
	{
		if (!sweep->mine[lane])
		{
			read_cursors(sweep, false);
			break;
		}
	}
}

bool
sweep_has_passed(const Sweep *sweep, MessageClock clock)
{
	return clock < sweep->passed;
}

bool
sweep_has_lane(const Sweep *sweep, int lane)
{
	return lane >= 0 && lane < OUTBOX_SWEPT_LANES && sweep->mine[lane];
}

static bool
is_open(const OpenTransaction *which, const OpenTransaction *open, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (open[i].slot == which->slot && open[i].clock == which->clock)
			return true;
	}
	return false;
}

void
sweep_go_back(Sweep *sweep, MessageClock clock)
{
	for (int lane = 0; lane < OUTBOX_SWEPT_LANES; lane++)
		sweep->position[lane] = Min(sweep->position[lane], clock);
}

MessageClock
sweep_lowest(const Sweep *sweep)
{
	MessageClock lowest = PG_UINT64_MAX;

	for (int lane = 0; lane < OUTBOX_SWEPT_LANES; lane++)
	{
		if (sweep->mine[lane])
			lowest = Min(lowest, sweep->position[lane]);
	}
	return lowest;
}

MessageClock
sweep_highest(const Sweep *sweep)
{
	MessageClock highest = 0;

	for (int lane = 0; lane < OUTBOX_SWEPT_LANES; lane++)
	{
		if (sweep->mine[lane])
			highest = Max(highest, sweep->position[lane]);
	}
	return highest;
}

void
sweep_begin_pass(Sweep *sweep)
{
	OpenTransaction *before = sweep->open;
	int			nbefore = sweep->nopen;

	sweep->started_at = GetCurrentTimestamp();
	sweep->clock = message_clock_read();
	sweep->nopen = announce_read(sweep->scratch);
	sweep->open = sweep->scratch;
	sweep->scratch = before;

	for (int i = 0; i < nbefore; i++)
	{
		if (!is_open(&before[i], sweep->open, sweep->nopen))
			sweep_go_back(sweep, before[i].clock);
	}
}

void
sweep_see(Sweep *sweep, Snapshot snapshot)
{
	int			n = 0;

	for (int i = 0; i < sweep->nopen; i++)
	{
		if (XidInMVCCSnapshot(sweep->open[i].xid, snapshot))
			sweep->open[n++] = sweep->open[i];
		else
			sweep_go_back(sweep, sweep->open[i].clock);
	}
	sweep->nopen = n;
}

bool
sweep_wants(const Sweep *sweep, int lane, MessageClock clock)
{
	return sweep_has_lane(sweep, lane) && clock >= sweep->position[lane];
}

void
sweep_end_pass(Sweep *sweep, MessageClock upto)
{
	for (int lane = 0; lane < OUTBOX_SWEPT_LANES; lane++)
	{
		if (sweep->mine[lane])
			sweep->position[lane] = Max(sweep->position[lane], upto);
	}
}

/* What may be saved for a lane now */
static MessageClock
safe_cursor(const Sweep *sweep, int lane)
{
	MessageClock cursor = Min(sweep->position[lane], sweep->in_flight);

	for (int i = 0; i < sweep->nopen; i++)
		cursor = Min(cursor, sweep->open[i].clock);
	return cursor;
}

MessageClock
sweep_safe(const Sweep *sweep)
{
	MessageClock lowest = PG_UINT64_MAX;

	for (int lane = 0; lane < OUTBOX_SWEPT_LANES; lane++)
		lowest = Min(lowest, sweep->mine[lane] ? safe_cursor(sweep, lane) :
					 sweep->saved[lane]);
	return lowest;
}

void
sweep_save(Sweep *sweep)
{
	static const Oid types[] = {INT2ARRAYOID, UUIDARRAYOID};
	Datum		lanes[OUTBOX_SWEPT_LANES];
	Datum		cursors[OUTBOX_SWEPT_LANES];
	pg_uuid_t	ids[OUTBOX_SWEPT_LANES];
	Datum		values[2];
	int			n = 0;

	for (int lane = 0; lane < OUTBOX_SWEPT_LANES; lane++)
	{
		if (!sweep->mine[lane])
			continue;
		sweep->saved[lane] = safe_cursor(sweep, lane);
		sweep->passed = Max(sweep->passed, sweep->saved[lane]);
		message_id_lowest(sweep->saved[lane], &ids[n]);
		lanes[n] = Int16GetDatum(lane);
		cursors[n] = UUIDPGetDatum(&ids[n]);
		n++;
	}
	if (n == 0)
		return;
	values[0] = PointerGetDatum(construct_array(lanes, n, INT2OID, 2, true, TYPALIGN_SHORT));
	values[1] = PointerGetDatum(construct_array(cursors, n, UUIDOID, UUID_LEN, false,
												TYPALIGN_CHAR));
	store_execute("UPDATE outbox.lane AS l SET cursor = n.cursor"
				  " FROM unnest($1, $2) AS n(lane, cursor) WHERE l.lane = n.lane",
				  2, types, values, NULL);
}

/* The lanes of this publisher, a bit each */
static uint32
my_lanes(const Sweep *sweep)
{
	uint32		lanes = 0;

	for (int lane = 0; lane < OUTBOX_SWEPT_LANES; lane++)
	{
		if (sweep->mine[lane])
			lanes |= 1U << lane;
	}
	return lanes;
}

/*
 * The rescan is owed until the cursors say so: both in one transaction.  Who
 * clears the last lane's bit deletes the row.  Rows that this snapshot doesn't
 * show are for the next pass.
 */
bool
sweep_read_prepared(Sweep *sweep)
{
	static const Oid types[] = {UUIDARRAYOID, INT4OID};
	Datum		values[2];
	Datum		cursor[2];
	ArrayType  *ids;
	pg_uuid_t  *lowest;
	bool		isnull;

	values[1] = Int32GetDatum(my_lanes(sweep));
	store_query("SELECT ARRAY(SELECT first_id FROM outbox.prepared WHERE lanes & $1 <> 0"
				" ORDER BY first_id)", 1, types + 1, values + 1);
	ids = DatumGetArrayTypePCopy(SPI_getbinval(SPI_tuptable->vals[0],
											   SPI_tuptable->tupdesc, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	if (ArrayGetNItems(ARR_NDIM(ids), ARR_DIMS(ids)) == 0)
		return false;
	lowest = (pg_uuid_t *) ARR_DATA_PTR(ids);

	values[0] = PointerGetDatum(ids);
	cursor[0] = UUIDPGetDatum(lowest);
	cursor[1] = values[1];
	store_execute("UPDATE outbox.lane SET cursor = $1 WHERE cursor > $1 AND (1 << lane) & $2 <> 0",
				  2, (Oid[]) {UUIDOID, INT4OID}, cursor, NULL);
	store_execute("UPDATE outbox.prepared AS p SET lanes = p.lanes & ~$2"
				  " FROM (SELECT first_id FROM outbox.prepared WHERE first_id = ANY ($1)"
				  "  ORDER BY first_id FOR UPDATE) AS mine WHERE p.first_id = mine.first_id",
				  2, types, values, NULL);
	store_execute("DELETE FROM outbox.prepared WHERE first_id = ANY ($1) AND lanes = 0",
				  1, types, values, NULL);
	sweep_go_back(sweep, message_id_clock(lowest));
	for (int lane = 0; lane < OUTBOX_SWEPT_LANES; lane++)
	{
		if (sweep->mine[lane])
			sweep->saved[lane] = Min(sweep->saved[lane], message_id_clock(lowest));
	}
	return true;
}
