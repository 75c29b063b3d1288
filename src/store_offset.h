/*-------------------------------------------------------------------------
 *
 * store_offset.h
 *	  outbox.consumer_offset: how far each partition was read.
 *
 * Called in a transaction that worker_begin began.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_STORE_OFFSET_H
#define OUTBOX_STORE_OFFSET_H

#include "storage/itemptr.h"

typedef enum AnchorKind
{
	ANCHOR_NONE,				/* nothing to know the log by */
	ANCHOR_LOG_START,			/* the log began at offset */
	ANCHOR_RECORD				/* a record that was applied */
} AnchorKind;

/* What a log is known by */
typedef struct LogAnchor
{
	AnchorKind	kind;
	int64		offset;
	int64		timestamp;		/* of ANCHOR_RECORD only, like the next */
	int64		checksum;
} LogAnchor;

typedef struct OffsetRow
{
	const char *topic;
	int32		partition;
	bool		exists;			/* if not, the rest means nothing */
	ItemPointerData ctid;
	int64		next_offset;
	LogAnchor	anchor;
} OffsetRow;

/* What the records of a partition did */
typedef struct ResultCounts
{
	int64		applied;
	int64		repeated;
	int64		contrary;
	int64		unknown;
	int64		bad;
	int64		lost;
} ResultCounts;

/* Reads the row of row->topic and row->partition */
extern void store_offset_read(OffsetRow *row);

/*
 * Locks a row, or makes it with the given position if there was none.  False
 * if it isn't any more as it was read: somebody else changed it.
 */
extern bool store_offset_lock(OffsetRow *row, int64 next_offset, const LogAnchor *anchor);

/* Changes a locked row; counts are added */
extern void store_offset_save(OffsetRow *row, int64 next_offset, const LogAnchor *anchor,
							  const ResultCounts *counts);

#endif							/* OUTBOX_STORE_OFFSET_H */
