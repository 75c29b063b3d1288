/*-------------------------------------------------------------------------
 *
 * log_scan.h
 *	  Reading the log in the order of ids, across its segments.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_LOG_SCAN_H
#define OUTBOX_LOG_SCAN_H

#include "executor/tuptable.h"
#include "utils/snapshot.h"

#include "message_id.h"
#include "outbox.h"

/* A row of the log; topic and slot are valid until the scan moves on */
typedef struct LogRow
{
	pg_uuid_t	id;
	ItemPointerData place;		/* in the segment its id names; invalid if it
								 * isn't there */
	MessageClock clock;
	TimestampTz updated_at;
	int			attempts;
	int			lane;
	MessageStatus status;
	const char *topic;			/* terminated */
	TupleTableSlot *slot;		/* for the columns not read yet */
} LogRow;

typedef struct LogScan LogScan;

/*
 * Starts a scan at a tick of the clock.  Needs a transaction and the floor
 * known; takes AccessShareLock on the segments in use until its end.
 * Allocates in the current memory context.
 */
extern LogScan *log_scan_begin(MessageClock from, Snapshot snapshot);

/* The next row in the order of ids; false at the end */
extern bool log_scan_next(LogScan *scan, LogRow *row);

extern void log_scan_end(LogScan *scan);

/*
 * Reads one message wherever it is.  NULL if there is none, else to be ended
 * with log_scan_end when the row isn't needed any more.
 */
extern LogScan *log_fetch(const pg_uuid_t *id, Snapshot snapshot, LogRow *row);

#endif							/* OUTBOX_LOG_SCAN_H */
