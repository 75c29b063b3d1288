/*-------------------------------------------------------------------------
 *
 * inbox_ring.c
 *	  The ring of segments that outbox.inbox is kept in.
 *
 * No index knows the time.  But rows are only inserted, into one segment after
 * the other, so the first row of a segment tells well enough when it was begun,
 * and all in it is older than the first row of the one that followed.
 *
 * Whoever inserts finds copies of a message by the primary key of the segment,
 * even if their transactions don't see each other.  Two that insert into
 * different segments would not.  So housekeeping moves on to the next segment
 * while nobody has inserted into the old one and not committed yet, and
 * inbox_add looks into the old one again if that happened since it had looked.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "storage/lmgr.h"
#include "utils/timestamp.h"

#include "inbox_ring.h"
#include "relation.h"
#include "retention.h"
#include "store.h"
#include "worker.h"

/* In DatabaseSlot.inbox_used, beside a bit for each segment: these are known */
#define INBOX_KNOWN		(1u << OUTBOX_SEGMENTS)

#define ALL_SEGMENTS	(INBOX_KNOWN - 1)

/* Segments that one retention is spread over: every one is looked into */
#define SEGMENTS_KEPT	4

/* Between two tries of what somebody is in the way of (ms) */
#define RETRY_MIN		50
#define RETRY_MAX		2000

/* So often it may just be a query */
#define TRIES_UNSAID	8

/* Between two looks at the segments, at least and at most (ms) */
#define LOOK_MIN		1000
#define LOOK_MAX		60000

static int	emptied = -1;		/* is being emptied; -1: none */
static bool truncated = false;	/* so it was, once that is committed */
static int	tries = 0;

/* When the present segment became that, as far as this process knows */
static TimestampTz advanced_at = DT_NOEND;

char *
inbox_segment_name(int segment)
{
	return psprintf("outbox.inbox_%d", segment);
}

static Oid
segment_oid(int segment)
{
	return outbox_relation_oid(strchr(inbox_segment_name(segment), '.') + 1);
}

/* The time of a segment's first row; DT_NOEND if it is empty */
static TimestampTz
begun_at(int segment)
{
	return store_fetch_time(psprintf("SELECT handled_at FROM %s LIMIT 1",
									 inbox_segment_name(segment)));
}

/* Reads the times of the segments; returns those that hold anything */
static uint32
read_times(TimestampTz *times)
{
	uint32		used = 0;

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		times[i] = begun_at(i);
		if (times[i] != DT_NOEND)
			used |= 1u << i;
	}
	return used;
}

uint32
inbox_ring_used(DatabaseSlot *db)
{
	uint32		used = pg_atomic_read_u32(&db->inbox_used);
	TimestampTz times[OUTBOX_SEGMENTS];
	int			last = 0;

	if (used & INBOX_KNOWN)
		return used & ALL_SEGMENTS;
	used = read_times(times);
	for (int i = 1; i < OUTBOX_SEGMENTS; i++)
	{
		if (times[i] != DT_NOEND && (times[last] == DT_NOEND || times[i] > times[last]))
			last = i;
	}

	/* Only the first may say where to go on: another may have moved since */
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	if (!(pg_atomic_read_u32(&db->inbox_used) & INBOX_KNOWN))
		pg_atomic_write_u32(&db->inbox_segment, last);
	used |= pg_atomic_fetch_or_u32(&db->inbox_used, used | INBOX_KNOWN);
	LWLockRelease(outbox_shared->lock);
	return used & ALL_SEGMENTS;
}

void
inbox_ring_distrust(DatabaseSlot *db)
{
	pg_atomic_fetch_and_u32(&db->inbox_used, ~INBOX_KNOWN);
}

/* As open_current_segment in log_append.c; the bit is set before the rows are there */
int
inbox_ring_open(DatabaseSlot *db)
{
	for (;;)
	{
		int			segment = (int) pg_atomic_read_u32(&db->inbox_segment);

		LockRelationOid(segment_oid(segment), RowExclusiveLock);
		if ((int) pg_atomic_read_u32(&db->inbox_segment) != segment)
			continue;
		pg_atomic_fetch_or_u32(&db->inbox_used, 1u << segment);
		return segment;
	}
}

/* ---------------------------------------------------------------------
 * Housekeeping
 * --------------------------------------------------------------------- */

static TimestampTz
retry(TimestampTz now, int segment, bool of_writers)
{
	if (++tries >= TRIES_UNSAID)
		retention_waits(RETENTION_INBOX,
						psprintf("segment %d of the inbox waits for %s", segment,
								 retention_lock_holder(inbox_segment_name(segment),
													   of_writers)));
	return TimestampTzPlusMilliseconds(now, backoff_delay(tries, RETRY_MIN, RETRY_MAX));
}

static void
done(void)
{
	tries = 0;
	retention_waits(RETENTION_INBOX, "");
}

/* The next one in the ring's order that holds nothing; the same if there is none */
static int
next_segment(int segment, uint32 used)
{
	for (int i = 1; i < OUTBOX_SEGMENTS; i++)
	{
		int			next = (segment + i) % OUTBOX_SEGMENTS;

		if (!(used & (1u << next)))
			return next;
	}
	return segment;
}

/*
 * Moves on to the next segment if this one has been filled long enough; the
 * lock is kept until the transaction's end, a moment later.  Returns when it is
 * due.
 */
static TimestampTz
advance(DatabaseSlot *db, TimestampTz now, const TimestampTz *times, uint32 used)
{
	int			current = (int) pg_atomic_read_u32(&db->inbox_segment);
	int			next = next_segment(current, used);
	TimestampTz due;

	if (times[current] == DT_NOEND || next == current)
		return DT_NOEND;
	due = times[current] + outbox_inbox_retention * USECS_PER_SEC / SEGMENTS_KEPT;
	if (due > now)
		return due;
	if (!retention_exclude_writers(inbox_segment_name(current)))
		return retry(now, current, true);
	pg_atomic_write_u32(&db->inbox_segment, next);
	advanced_at = now;
	done();
	return now;
}

/*
 * The oldest segment besides the current one.  All in it is older than the
 * first row of the next, or the time of the last move.  Returns when it is due:
 * at once if somebody has deleted all that was in it.
 */
static TimestampTz
oldest_due(DatabaseSlot *db, const TimestampTz *times, uint32 used, int *oldest)
{
	int			current = (int) pg_atomic_read_u32(&db->inbox_segment);
	TimestampTz until = advanced_at;

	*oldest = -1;
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		if (i == current || !(used & (1u << i)))
			continue;
		if (*oldest < 0 || times[i] == DT_NOEND || times[i] < times[*oldest])
			*oldest = i;
		if (times[i] == DT_NOEND)
			return 0;
	}
	if (*oldest < 0)
		return DT_NOEND;
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		if (i != *oldest && times[i] != DT_NOEND)
			until = Min(until, times[i]);
	}
	return until == DT_NOEND ? DT_NOEND : until + outbox_inbox_retention * USECS_PER_SEC;
}

static TimestampTz
look(DatabaseSlot *db, TimestampTz now)
{
	TimestampTz times[OUTBOX_SEGMENTS];
	uint32		used = read_times(times);
	TimestampTz next;
	TimestampTz due;
	int			oldest;

	/* what was restored since has to be looked into, too */
	used |= pg_atomic_fetch_or_u32(&db->inbox_used, used) & ALL_SEGMENTS;
	next = advance(db, now, times, used);
	due = oldest_due(db, times, used, &oldest);
	if (due <= now)
	{
		/* nobody asks it any more, so that its lock is free some time */
		pg_atomic_fetch_and_u32(&db->inbox_used, ~(1u << oldest));
		emptied = oldest;
		return now;
	}
	if (tries == 0)
		next = Max(Min(next, due), TimestampTzPlusMilliseconds(now, LOOK_MIN));
	return Min(next, TimestampTzPlusMilliseconds(now, LOOK_MAX));
}

/* A publisher mustn't wait for who has locked a segment of the inbox */
static bool
lock_for_reading(void)
{
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		if (!retention_lock(inbox_segment_name(i), AccessShareLock))
			return false;
	}
	return true;
}

TimestampTz
inbox_ring_step(TimestampTz now)
{
	DatabaseSlot *db = outbox_my_database();

	if (!lock_for_reading())
		return TimestampTzPlusMilliseconds(now, LOOK_MIN);
	(void) inbox_ring_used(db);
	if (emptied < 0)
		return look(db, now);
	if (!retention_exclude_all(inbox_segment_name(emptied)))
		return retry(now, emptied, false);

	/* a consumer that had to find out again may have begun with it again */
	if (emptied == (int) pg_atomic_read_u32(&db->inbox_segment))
	{
		emptied = -1;
		return now;
	}
	store_execute(psprintf("TRUNCATE %s", inbox_segment_name(emptied)), 0, NULL, NULL, NULL);
	truncated = true;
	return now;
}

void
inbox_ring_committed(void)
{
	DatabaseSlot *db = outbox_my_database();

	if (!truncated)
		return;

	/* a consumer that had to find out again may have set it */
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	if (emptied != (int) pg_atomic_read_u32(&db->inbox_segment))
		pg_atomic_fetch_and_u32(&db->inbox_used, ~(1u << emptied));
	LWLockRelease(outbox_shared->lock);
	truncated = false;
	emptied = -1;
	done();
}

void
inbox_ring_failed(void)
{
	truncated = false;
	emptied = -1;
	done();
}
