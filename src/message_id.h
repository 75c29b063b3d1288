/*-------------------------------------------------------------------------
 *
 * message_id.h
 *	  Message ids: version-7 UUIDs in the order of capture.
 *
 * The clock counts 1/4096 ms since 1970 and never stands still: each id takes
 * one tick of its own, so ids rise strictly across all sessions.
 *
 *	48 bits milliseconds | 4 version | 12 bits of a millisecond | 2 variant |
 *	8 segment | 54 random
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_MESSAGE_ID_H
#define OUTBOX_MESSAGE_ID_H

#include "utils/timestamp.h"
#include "utils/uuid.h"

typedef uint64 MessageClock;

/* In DatabaseSlot.segments_used */
#define segment_bit(segment) \
	((uint32) 1 << ((segment) == OUTBOX_SEGMENT_KEPT ? OUTBOX_SEGMENTS : (segment)))

/*
 * Takes the next id for a segment of the ring.  The caller has announced its
 * transaction (announce.h) and the floor is known.
 */
extern void message_id_generate(pg_uuid_t *id, int segment);

/* An id of that tick which no message has */
extern void message_id_at_clock(pg_uuid_t *id, MessageClock clock, int segment);

/*
 * The last tick taken, or the time if that is later.  No tick up to it will be
 * taken any more.  Full barrier.
 */
extern MessageClock message_clock_read(void);

/* Makes every id to come larger than this one */
extern void message_clock_raise(MessageClock floor);

/* Parts of an id */
extern MessageClock message_id_clock(const pg_uuid_t *id);
extern int	message_id_segment(const pg_uuid_t *id);
extern TimestampTz message_id_timestamp(const pg_uuid_t *id);

/* The smallest id of a tick, and the tick of a time */
extern void message_id_lowest(MessageClock clock, pg_uuid_t *id);
extern MessageClock message_clock_at(TimestampTz timestamp);
extern TimestampTz message_clock_timestamp(MessageClock clock);

/* The ticks of a stretch of time in microseconds */
extern MessageClock message_clock_ticks(int64 microseconds);

/*
 * The largest id in a segment, whatever became of its row; false if there is
 * none.  Needs a transaction; takes AccessShareLock on the segment.
 */
extern bool message_largest_id(int segment, pg_uuid_t *id);

/*
 * Raises the clock above every id in this database's log, once after each
 * start of the server; finds out the current segment on the way.  Needs a
 * transaction; takes AccessShareLock on the segments.
 */
extern void message_floor_ensure(void);

/* hash(topic, key) modulo 16; key NULL: of the id */
extern int	message_lane(const char *topic, int topic_len, const char *key,
						 int key_len, const pg_uuid_t *id);

#endif							/* OUTBOX_MESSAGE_ID_H */
