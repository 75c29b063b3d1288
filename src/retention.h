/*-------------------------------------------------------------------------
 *
 * retention.h
 *	  Retention of the log: empties the oldest segment when all in it is old.
 *
 * Tasks of housekeeping.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RETENTION_H
#define OUTBOX_RETENTION_H

#include "storage/lockdefs.h"

#include "message_id.h"
#include "outbox.h"

/* The task that empties segments; see retention.c */
extern TimestampTz retention_step(TimestampTz now);
extern void retention_committed(void);
extern void retention_failed(void);

/* ---- retention_move.c: what outlives its segment ---- */

/* The task that deletes what is old and final of segment -1 */
extern TimestampTz retention_kept_step(TimestampTz now);
extern void retention_kept_failed(void);

typedef enum MoveProgress
{
	MOVE_MORE,					/* call it again */
	MOVE_LOCKED,				/* somebody has locked the next row: later */
	MOVE_DONE					/* the segment holds nothing more to keep */
} MoveProgress;

/*
 * Looks at the next rows of a segment behind *after, and moves those that must
 * be kept to segment -1.  What is final was that before cutoff.
 */
extern MoveProgress retention_move(int segment, pg_uuid_t *after, TimestampTz cutoff);

/* ---- retention_wait.c: what outbox.stat shows; in SPI ---- */

/* What retention waits for; "": for nothing */
extern void retention_waits(RetentionRing ring, const char *why);

/*
 * Who has a lock on a table that is in the way of readers or, if of_writers,
 * of writers only; palloc'd.
 */
extern char *retention_lock_holder(const char *table, bool of_writers);

/* Who has the oldest snapshot, palloc'd */
extern char *retention_snapshot_holder(void);

/* ---- retention_empty.c: locks without waiting ---- */

/*
 * Locks a table to read it, or to change rows, without waiting: false if
 * somebody has it for himself.  Until the transaction's end.
 */
extern bool retention_lock(const char *table, LOCKMODE lock);

/*
 * Locks a table so that only readers may be at it, without waiting: false if
 * somebody has written to it, or maintains it.  Until the transaction's end.
 */
extern bool retention_exclude_writers(const char *table);

/*
 * Locks a table and its TOAST table against everybody, without waiting; false
 * if somebody else has it, and nothing is locked then.
 */
extern bool retention_exclude_all(const char *table);

/*
 * Does every snapshot show what was committed before that transaction began?
 * False, too, if somebody has the table for himself.
 */
extern bool retention_seen_by_all(const char *table, TransactionId before);

#endif							/* OUTBOX_RETENTION_H */
