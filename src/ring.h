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
 * Something has been, or is about to be, put into that segment, or changed there
 * from what retention would drop to what it must keep.  The caller has the
 * segment's lock, or takes it now, and keeps it until its transaction's end.
 */
extern void ring_reopen(DatabaseSlot *slot, int segment);

#endif							/* OUTBOX_RING_H */
