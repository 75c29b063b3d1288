/*-------------------------------------------------------------------------
 *
 * ring.h
 *	  Which segment of the log's ring new messages go to.
 *
 * It is the turn of the next one after a fourteenth of outbox.retention, so
 * that of sixteen one is being filled and one emptied.  All of it is in shared
 * memory, and found out anew from the ids in the log after a start.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RING_H
#define OUTBOX_RING_H

#include "message_id.h"
#include "outbox.h"

/* How long one segment is filled, in microseconds */
extern int64 ring_span(int retention);

/*
 * New messages go to that segment, and have done so since then.  The caller
 * holds OutboxShared.lock exclusively.
 */
extern void ring_begin(DatabaseSlot *slot, int segment, MessageClock since);

/* Is the current segment's time over, by the last tick taken?  Any process. */
static inline bool
ring_is_due(DatabaseSlot *slot)
{
	return pg_atomic_read_u64(&outbox_shared->clock) >=
		pg_atomic_read_u64(&slot->segment_due);
}

/*
 * Moves on to the next empty segment if it is time; stays where it is if there
 * is none.  Any process; takes OutboxShared.lock.
 */
extern void ring_advance(DatabaseSlot *slot);

/* outbox.retention may have changed: counts the segment's time anew */
extern void ring_retime(DatabaseSlot *slot);

/*
 * No id in a segment is above that clock: PG_UINT64_MAX if it isn't known, for
 * messages may still be put there.  Reading the log may begin behind it.
 */
static inline MessageClock
ring_end(DatabaseSlot *slot, int segment)
{
	return pg_atomic_read_u64(&slot->segment_end[segment == OUTBOX_SEGMENT_KEPT ?
												 OUTBOX_SEGMENTS : segment]);
}

/*
 * Says so, unless that is the current segment.  The caller knows that nobody is
 * just adding to it.  Takes OutboxShared.lock.
 */
extern void ring_seal(DatabaseSlot *slot, int segment, MessageClock end);

/* Segments may hold more than is known.  The caller holds OutboxShared.lock. */
extern void ring_unseal_all(DatabaseSlot *slot);

/*
 * The segment is empty: it may be the next one.  Unless it is the current one
 * again.  Takes OutboxShared.lock.
 */
extern void ring_release(DatabaseSlot *slot, int segment);

/*
 * Something has been put into that segment, or changed there from what
 * retention would drop to what it must keep.  The caller has the segment's
 * lock already, and keeps it until its transaction's end: who has excluded
 * writers and reads the number then has seen what it counts, or will see the
 * number change.
 */
extern void ring_reopen(DatabaseSlot *slot, int segment);

#endif							/* OUTBOX_RING_H */
