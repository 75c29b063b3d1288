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
#include "utils/timestamp.h"

/* Longer texts are cut */
#define OFFSET_TEXT_LEN		512

/* What a partition is read for; outbox.consumer_offset.kind */
typedef enum ReadKind
{
	READ_RESULTS = 'r',
	READ_SUBSCRIPTION = 's'
} ReadKind;

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

/* Where the reading of a partition stands */
typedef struct OffsetState
{
	int64		next;			/* the first offset not applied; -1: the log's start */
	int64		end;			/* of the log, when it was last seen; -1: unknown */
	LogAnchor	anchor;
	char		paused[OFFSET_TEXT_LEN];	/* why nothing is read; "" if it is */

	/* the record at "next" failed so often, and is tried again then */
	int			retry_attempts; /* 0: it didn't */
	TimestampTz retry_at;
	char		retry_error[OFFSET_TEXT_LEN];
} OffsetState;

typedef struct OffsetRow
{
	const char *topic;
	int32		partition;
	ReadKind	kind;
	bool		exists;			/* if not, the rest means nothing */
	ItemPointerData ctid;
	OffsetState state;
} OffsetRow;

/* What the records of a partition did */
typedef struct RecordCounts
{
	int64		applied;
	int64		failed;
	int64		dead;
	int64		repeated;
	int64		contrary;
	int64		unknown;
	int64		bad;
	int64		lost;
	char		last_error[OFFSET_TEXT_LEN];	/* of a failed or dead one; "": none */
} RecordCounts;

/* Reads the row of row->topic, row->partition and row->kind */
extern void store_offset_read(OffsetRow *row);

typedef enum OffsetLock
{
	OFFSET_LOCKED,
	OFFSET_BUSY,				/* somebody else has it locked */
	OFFSET_CHANGED				/* it isn't any more as it was read */
} OffsetLock;

/* Locks a row, or makes it with the given state if there was none; never waits */
extern OffsetLock store_offset_lock(OffsetRow *row, const OffsetState *state);

/* Changes a locked row; counts are added */
extern void store_offset_save(OffsetRow *row, const OffsetState *state,
							  const RecordCounts *counts);

#endif							/* OUTBOX_STORE_OFFSET_H */
