/*-------------------------------------------------------------------------
 *
 * retention_move.c
 *	  Moves what outlives its segment to segment -1, and deletes it there when
 *	  it is done with.
 *
 * A row is deleted here and inserted there in one transaction, and not by an
 * UPDATE of the partition key: who waits for its lock finds no row then and
 * looks into segment -1, where the UPDATE would be an error for it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "identity.h"
#include "retention.h"
#include "ring.h"
#include "store.h"

/* Rows of the segment that one step looks at */
#define MOVE_STEP		1000

/* Moved or deleted in one statement at most */
#define MOVE_MAX		250

/* Of a row l: is it done with, and was that before $2? */
#define IS_DONE_WITH \
	"(l.updated_at < $2" \
	" AND (l.status IN ('C', 'F') OR l.status = 'S' AND NOT EXISTS" \
	"  (SELECT FROM outbox.topic_config AS c" \
	"   WHERE c.topic = l.topic AND c.result_topic IS NOT NULL))" \
	" AND NOT EXISTS (SELECT FROM outbox.handler_call AS h WHERE h.message_id = l.id))"

/* What one step has read */
typedef struct Window
{
	pg_uuid_t	ids[MOVE_STEP];
	int			n;
	pg_uuid_t	chosen[MOVE_MAX];	/* those to be moved, or deleted */
	int			nchosen;
} Window;

/* Between two sweeps of segment -1, at least and at most (seconds) */
#define SWEEP_MIN		10
#define SWEEP_MAX		3600

/* The sweep of segment -1 has come so far */
static pg_uuid_t swept;

static const Oid id_and_time[] = {UUIDOID, TIMESTAMPTZOID};
static const Oid ids_and_time[] = {UUIDARRAYOID, TIMESTAMPTZOID};

/* The rows behind after, as far as one statement can deal with the chosen */
static Window *
read_window(const char *name, const char *condition, const pg_uuid_t *after,
			TimestampTz cutoff)
{
	Window	   *window = palloc(sizeof(Window));
	Datum		values[2] = {UUIDPGetDatum(after), TimestampTzGetDatum(cutoff)};
	uint64		rows;

	rows = store_execute(psprintf("SELECT l.id, %s FROM %s AS l"
								  " WHERE l.id > $1 ORDER BY l.id LIMIT "
								  CppAsString2(MOVE_STEP), condition, name),
						 2, id_and_time, values, NULL);
	window->n = window->nchosen = 0;
	for (uint64 i = 0; i < rows; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		pg_uuid_t  *id = DatumGetUUIDP(SPI_getbinval(tuple, desc, 1, &isnull));

		if (DatumGetBool(SPI_getbinval(tuple, desc, 2, &isnull)))
		{
			if (window->nchosen == MOVE_MAX)
				break;
			window->chosen[window->nchosen++] = *id;
		}
		window->ids[window->n++] = *id;
	}
	SPI_freetuptable(SPI_tuptable);
	return window;
}

/*
 * Locks those of the ids that nobody else has locked, and for which the
 * condition holds; returns how many are in locked then, ascending.
 */
static int
lock_rows(const char *name, const char *condition, const pg_uuid_t *ids, int n,
		  TimestampTz cutoff, pg_uuid_t *locked)
{
	Datum		values[2] = {store_id_array(ids, n), TimestampTzGetDatum(cutoff)};
	int			nlocked;

	nlocked = (int) store_execute(psprintf("SELECT l.id FROM %s AS l WHERE l.id = ANY ($1)"
										   " AND %s ORDER BY l.id"
										   " FOR UPDATE OF l SKIP LOCKED", name, condition),
								  2, ids_and_time, values, NULL);
	for (int i = 0; i < nlocked; i++)
	{
		bool		isnull;

		locked[i] = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i],
												 SPI_tuptable->tupdesc, 1, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	return nlocked;
}

/*
 * Moves those that nobody has locked; returns the first one that isn't there
 * any more or was locked, n if there is none.
 */
static int
move_rows(const char *name, const pg_uuid_t *ids, int n, TimestampTz cutoff)
{
	pg_uuid_t	locked[MOVE_MAX];
	Datum		values[1];
	int			nlocked = lock_rows(name, "NOT " IS_DONE_WITH, ids, n, cutoff, locked);
	int			first = 0;

	while (first < nlocked && memcmp(&locked[first], &ids[first], UUID_LEN) == 0)
		first++;
	if (nlocked == 0)
		return first;

	log_guard_expect_own();
	values[0] = store_id_array(locked, nlocked);
	store_execute(psprintf("WITH gone AS (DELETE FROM %s WHERE id = ANY ($1) RETURNING *)"
						   " INSERT INTO outbox.log_kept (id, segment, lane, op, status,"
						   "  attempts, updated_at, result, error, topic, key, payload, headers)"
						   " SELECT id, " CppAsString2(OUTBOX_SEGMENT_KEPT) ", lane, op, status,"
						   "  attempts, updated_at, result, error, topic, key, payload, headers"
						   " FROM gone", name),
				  1, ids_and_time, values, NULL);
	return first;
}

/* The row before that one, or where the window began */
static void
stop_before(const Window *window, const pg_uuid_t *id, pg_uuid_t *after)
{
	for (int i = 0; i < window->n && memcmp(&window->ids[i], id, UUID_LEN) < 0; i++)
		*after = window->ids[i];
}

MoveProgress
retention_move(int segment, pg_uuid_t *after, TimestampTz cutoff)
{
	char	   *name = store_segment_name(segment);
	Window	   *window = read_window(name, "NOT " IS_DONE_WITH, after, cutoff);
	int			first;

	if (window->n == 0)
		return MOVE_DONE;
	if (window->nchosen > 0)
	{
		first = move_rows(name, window->chosen, window->nchosen, cutoff);
		if (first < window->nchosen)
		{
			stop_before(window, &window->chosen[first], after);
			return first == 0 ? MOVE_LOCKED : MOVE_MORE;
		}
	}
	*after = window->ids[window->n - 1];
	return MOVE_MORE;
}

/* ---------------------------------------------------------------------
 * Segment -1
 * --------------------------------------------------------------------- */

/* What somebody has locked is for the next sweep */
static void
delete_rows(const char *name, const Window *window, TimestampTz cutoff)
{
	pg_uuid_t	locked[MOVE_MAX];
	Datum		values[1];
	int			nlocked = lock_rows(name, IS_DONE_WITH, window->chosen, window->nchosen,
									cutoff, locked);

	values[0] = store_id_array(locked, nlocked);
	store_execute(psprintf("DELETE FROM %s WHERE id = ANY ($1)", name),
				  1, ids_and_time, values, NULL);
}

TimestampTz
retention_kept_step(TimestampTz now)
{
	int64		pause = ring_span(outbox_retention) / 4;
	TimestampTz cutoff = now - outbox_retention * USECS_PER_SEC;
	char	   *name = store_segment_name(OUTBOX_SEGMENT_KEPT);
	Window	   *window;
	Datum		values[1];

	if (!retention_lock(name, RowExclusiveLock))
		return now + SWEEP_MIN * USECS_PER_SEC;
	window = read_window(name, IS_DONE_WITH, &swept, cutoff);
	if (window->nchosen > 0)
		delete_rows(name, window, cutoff);
	if (window->n > 0)
	{
		swept = window->ids[window->n - 1];
		return now;
	}

	/* as old: what the brokers answered */
	values[0] = TimestampTzGetDatum(cutoff);
	store_execute("DELETE FROM outbox.topic_request WHERE request = ANY (ARRAY("
				  " SELECT request FROM outbox.topic_request WHERE finished_at < $1"
				  " FOR UPDATE SKIP LOCKED))", 1, (Oid[]) {TIMESTAMPTZOID}, values, NULL);
	memset(&swept, 0, sizeof(swept));
	return now + Min(Max(pause, SWEEP_MIN * USECS_PER_SEC), SWEEP_MAX * USECS_PER_SEC);
}

void
retention_kept_failed(void)
{
	memset(&swept, 0, sizeof(swept));
}
