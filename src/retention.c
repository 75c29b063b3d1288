/*-------------------------------------------------------------------------
 *
 * retention.c
 *	  Retention of the log: empties the oldest segment when all in it is old.
 *
 * TRUNCATE frees a segment whatever its size, but it isn't MVCC-safe and needs
 * the table for itself.  So a segment goes in four phases, each in short
 * transactions, none of which waits for anybody:
 *
 * 1. PROBE.  A lock that excludes writers is had for a moment.  The segment
 *	  isn't the current one, so whoever has put a message into it has ended
 *	  by then, be it prepared or announced, and nobody will put one there any
 *	  more: see open_current_segment.
 * 2. MOVE.  What must be kept is moved to segment -1.
 * 3. WAIT, until every snapshot shows that.
 * 4. TRUNCATE, under a lock that is had at once or not at all: one that is
 *	  waited for would hold up whoever comes after.
 *
 * Meanwhile messages of the segment can still change.  Towards a final status
 * that does no harm.  Who makes one NEW again counts up "reopened", while it has
 * the lock of a writer: if phase 4 has its lock and finds the same number as
 * phase 1 did, there was nobody; else it begins anew.
 *
 * All of the state is this process's.  After a crash it begins anew as well.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "retention.h"
#include "ring.h"
#include "store.h"
#include "worker.h"

/* Between two tries of what somebody is in the way of (ms) */
#define RETRY_MIN		100
#define RETRY_MAX		5000

/* So often it may just be a query */
#define TRIES_UNSAID	4

/* Between two looks at the segments, at least and at most (ms) */
#define LOOK_MIN		1000
#define LOOK_MAX		60000

typedef enum Phase
{
	PHASE_NONE,
	PHASE_PROBE,
	PHASE_MOVE,
	PHASE_WAIT,
	PHASE_TRUNCATED				/* once that is committed */
} Phase;

static Phase phase = PHASE_NONE;
static int	segment;			/* that is being emptied */
static TimestampTz newest;		/* of its messages */
static uint32 reopened;			/* of the segment, in phase 1 */
static pg_uuid_t after;			/* phase 2 has come so far */
static TransactionId moved_before;	/* phase 2 ended before this transaction */
static int	tries;				/* of the present phase */

static void
enter_phase(Phase new_phase)
{
	phase = new_phase;
	tries = 0;
	retention_waits(RETENTION_LOG, "");
}

/*
 * What is that old can be dropped.  A little later than outbox.retention says,
 * so that what came in last has most likely got its result by then, and needn't
 * be moved.
 */
static TimestampTz
due_for(TimestampTz time)
{
	return time + outbox_retention * USECS_PER_SEC + ring_span(outbox_retention) / 4;
}

/* Somebody is in the way; who that is, is looked up once it takes longer */
static TimestampTz
retry(TimestampTz now, bool of_writers)
{
	char	   *name = store_segment_name(segment);

	if (++tries >= TRIES_UNSAID)
	{
		char	   *holder = phase == PHASE_WAIT && !retention_seen_by_all(name, moved_before) ?
			retention_snapshot_holder() : retention_lock_holder(name, of_writers);

		retention_waits(RETENTION_LOG, psprintf("segment %d waits for %s", segment, holder));
	}
	return TimestampTzPlusMilliseconds(now, backoff_delay(tries, RETRY_MIN, RETRY_MAX));
}

/* Of the largest id in a segment, whatever became of its row; 0 if there is none */
static MessageClock
largest_clock(int which)
{
	pg_uuid_t	id;

	return message_largest_id(which, &id) ? message_id_clock(&id) : 0;
}

/*
 * Notes the largest id of a segment to which nothing is added any more: sweeps
 * that are above it needn't look there.  False if somebody may be just adding.
 */
static bool
seal(DatabaseSlot *db, int which)
{
	if (!retention_exclude_writers(store_segment_name(which)))
		return false;
	ring_seal(db, which, largest_clock(which));
	return true;
}

/* Does that for all it can be done for; false if one is left */
static bool
seal_segments(DatabaseSlot *db)
{
	uint32		used = pg_atomic_read_u32(&db->segments_used);
	bool		all = true;

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		if (used & segment_bit(i) && i != (int) pg_atomic_read_u32(&db->segment) &&
			ring_end(db, i) == PG_UINT64_MAX)
			all = seal(db, i) && all;
	}
	if (used & segment_bit(OUTBOX_SEGMENT_KEPT) &&
		ring_end(db, OUTBOX_SEGMENT_KEPT) == PG_UINT64_MAX &&
		retention_lock(store_segment_name(OUTBOX_SEGMENT_KEPT), AccessShareLock))
		ring_seal(db, OUTBOX_SEGMENT_KEPT, largest_clock(OUTBOX_SEGMENT_KEPT));
	return all;
}

/* Picks the segment whose newest message is the oldest; returns when it is due */
static TimestampTz
choose_segment(DatabaseSlot *db)
{
	uint32		used = pg_atomic_read_u32(&db->segments_used);
	int			current = (int) pg_atomic_read_u32(&db->segment);
	TimestampTz oldest = DT_NOEND;

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		MessageClock end = ring_end(db, i);
		TimestampTz time;

		if (i == current || !(used & segment_bit(i)))
			continue;
		if (end == PG_UINT64_MAX && !retention_lock(store_segment_name(i), AccessShareLock))
			continue;
		if (end == PG_UINT64_MAX)
			end = largest_clock(i);
		time = end == 0 ? 0 : message_clock_timestamp(end);
		if (time < oldest)
		{
			oldest = time;
			segment = i;
		}
	}
	newest = oldest;
	return oldest == DT_NOEND ? DT_NOEND : due_for(oldest);
}

static TimestampTz
look(DatabaseSlot *db, TimestampTz now)
{
	TimestampTz due;
	TimestampTz next;

	/* also where nothing new is captured, so that the last ones go, too */
	(void) message_clock_read();
	if (ring_is_due(db))
		ring_advance(db);
	next = seal_segments(db) ?
		message_clock_timestamp(pg_atomic_read_u64(&db->segment_due)) : now;
	due = choose_segment(db);
	if (due <= now)
	{
		enter_phase(PHASE_PROBE);
		return now;
	}
	next = Max(Min(due, next), TimestampTzPlusMilliseconds(now, LOOK_MIN));
	return Min(next, TimestampTzPlusMilliseconds(now, LOOK_MAX));
}

static TimestampTz
probe(DatabaseSlot *db, TimestampTz now)
{
	if (!retention_exclude_writers(store_segment_name(segment)))
		return retry(now, true);
	reopened = pg_atomic_read_u32(&db->reopened[segment]);
	memset(&after, 0, sizeof(after));
	enter_phase(PHASE_MOVE);
	return now;
}

static TimestampTz
move(DatabaseSlot *db, TimestampTz now)
{
	MessageClock end;

	if (!retention_lock(store_segment_name(segment), RowExclusiveLock) ||
		!retention_lock(store_segment_name(OUTBOX_SEGMENT_KEPT), RowExclusiveLock))
		return retry(now, false);
	end = largest_clock(segment);

	/* before the rows are there: as for any segment */
	if (ring_end(db, OUTBOX_SEGMENT_KEPT) < end)
		ring_seal(db, OUTBOX_SEGMENT_KEPT, end);
	pg_atomic_fetch_or_u32(&db->segments_used, segment_bit(OUTBOX_SEGMENT_KEPT));
	switch (retention_move(segment, &after, now - outbox_retention * USECS_PER_SEC))
	{
		case MOVE_MORE:
			enter_phase(PHASE_MOVE);
			return now;
		case MOVE_LOCKED:
			return retry(now, true);
		case MOVE_DONE:
			break;
	}

	/* above this transaction's own, if it has moved anything */
	moved_before = XidFromFullTransactionId(ReadNextFullTransactionId());
	enter_phase(PHASE_WAIT);
	return now;
}

static TimestampTz
truncate_segment(DatabaseSlot *db, TimestampTz now)
{
	char	   *name = store_segment_name(segment);

	if (!retention_seen_by_all(name, moved_before) || !retention_exclude_all(name))
		return retry(now, false);
	if (pg_atomic_read_u32(&db->reopened[segment]) != reopened)
	{
		enter_phase(PHASE_PROBE);
		return now;
	}
	store_execute(psprintf("TRUNCATE %s", name), 0, NULL, NULL, NULL);
	enter_phase(PHASE_TRUNCATED);
	return now;
}

TimestampTz
retention_step(TimestampTz now)
{
	DatabaseSlot *db = outbox_my_database();

	/* it may be the current one again after adopt(), or outbox.retention longer */
	if (phase != PHASE_NONE &&
		(segment == (int) pg_atomic_read_u32(&db->segment) || due_for(newest) > now))
		enter_phase(PHASE_NONE);

	switch (phase)
	{
		case PHASE_PROBE:
			return probe(db, now);
		case PHASE_MOVE:
			return move(db, now);
		case PHASE_WAIT:
			return truncate_segment(db, now);
		case PHASE_NONE:
		case PHASE_TRUNCATED:
			break;
	}
	return look(db, now);
}

/* From now on the segment may be the next one; until now nobody could use it */
void
retention_committed(void)
{
	if (phase != PHASE_TRUNCATED)
		return;
	ring_release(outbox_my_database(), segment);
	enter_phase(PHASE_NONE);
}

void
retention_failed(void)
{
	enter_phase(PHASE_NONE);
}
