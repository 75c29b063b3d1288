/*-------------------------------------------------------------------------
 *
 * ring.c
 *	  Which segment of the log's ring new messages go to.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ring.h"

/* Segments that one retention is spread over */
#define SEGMENTS_KEPT	14

int64
ring_span(int retention)
{
	return (int64) retention * USECS_PER_SEC / SEGMENTS_KEPT;
}

static void
set_end(DatabaseSlot *slot, int segment, MessageClock end)
{
	pg_atomic_write_u64(&slot->segment_end[segment == OUTBOX_SEGMENT_KEPT ?
										   OUTBOX_SEGMENTS : segment], end);
}

void
ring_begin(DatabaseSlot *slot, int segment, MessageClock since)
{
	set_end(slot, segment, PG_UINT64_MAX);
	pg_write_barrier();
	pg_atomic_write_u32(&slot->segment, segment);
	pg_atomic_write_u64(&slot->segment_since, since);
	pg_atomic_write_u64(&slot->segment_due,
						since + message_clock_ticks(ring_span(outbox_retention)));
	ring_reopen(slot, segment);
}

/* The next empty segment in the ring's order; the same if there is none */
static int
next_empty(int segment, uint32 used)
{
	for (int i = 1; i < OUTBOX_SEGMENTS; i++)
	{
		int			next = (segment + i) % OUTBOX_SEGMENTS;

		if (!(used & segment_bit(next)))
			return next;
	}
	return segment;
}

/*
 * Retention clears a segment's bit when it is empty and nobody can be about to
 * write to it, and whoever writes sets it: see log_append.c.
 */
void
ring_advance(DatabaseSlot *slot)
{
	MessageClock now = message_clock_read();

	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	if (now >= pg_atomic_read_u64(&slot->segment_due))
	{
		int			current = (int) pg_atomic_read_u32(&slot->segment);
		uint32		used = pg_atomic_read_u32(&slot->segments_used);
		int			next = used & segment_bit(current) ? next_empty(current, used) : current;

		if (next != current || !(used & segment_bit(current)))
			ring_begin(slot, next, now);
		else
			pg_atomic_write_u64(&slot->segment_due,
								now + message_clock_ticks(ring_span(outbox_retention) / 16));
	}
	LWLockRelease(outbox_shared->lock);
}

void
ring_retime(DatabaseSlot *slot)
{
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	pg_atomic_write_u64(&slot->segment_due,
						pg_atomic_read_u64(&slot->segment_since) +
						message_clock_ticks(ring_span(outbox_retention)));
	LWLockRelease(outbox_shared->lock);
}

void
ring_reopen(DatabaseSlot *slot, int segment)
{
	if (segment != OUTBOX_SEGMENT_KEPT)
		pg_atomic_fetch_add_u32(&slot->reopened[segment], 1);
}

void
ring_seal(DatabaseSlot *slot, int segment, MessageClock end)
{
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	if (segment != (int) pg_atomic_read_u32(&slot->segment))
		set_end(slot, segment, end);
	LWLockRelease(outbox_shared->lock);
}

void
ring_unseal_all(DatabaseSlot *slot)
{
	for (int segment = OUTBOX_SEGMENT_KEPT; segment < OUTBOX_SEGMENTS; segment++)
	{
		ring_reopen(slot, segment);
		set_end(slot, segment, PG_UINT64_MAX);
	}
}

void
ring_release(DatabaseSlot *slot, int segment)
{
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	if (segment != (int) pg_atomic_read_u32(&slot->segment))
		pg_atomic_fetch_and_u32(&slot->segments_used, ~segment_bit(segment));
	LWLockRelease(outbox_shared->lock);
}
