/*-------------------------------------------------------------------------
 *
 * inbox_ring.h
 *	  The ring of segments that outbox.inbox is kept in.
 *
 * Like the log's, with outbox.inbox_retention, but of fewer segments at a time.
 * Nothing in it has to be kept longer, so an old segment is just truncated.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_INBOX_RING_H
#define OUTBOX_INBOX_RING_H

#include "outbox.h"

/* The segments that may hold anything, a bit each.  Needs SPI. */
extern uint32 inbox_ring_used(DatabaseSlot *db);

/*
 * The segment that new rows go to, locked for that until the transaction's end.
 * Called by a consumer after inbox_ring_used.
 */
extern int	inbox_ring_open(DatabaseSlot *db);

/* Name of a segment, palloc'd */
extern char *inbox_segment_name(int segment);

/* Rows may have come in that no consumer wrote: looks again */
extern void inbox_ring_distrust(DatabaseSlot *db);

/* The tasks of housekeeping.c */
extern TimestampTz inbox_ring_step(TimestampTz now);
extern void inbox_ring_committed(void);
extern void inbox_ring_failed(void);

#endif							/* OUTBOX_INBOX_RING_H */
