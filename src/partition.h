/*-------------------------------------------------------------------------
 *
 * partition.h
 *	  One partition that the consumer reads: where it stands, and whether the
 *	  log it stands in is still the one it began to read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_PARTITION_H
#define OUTBOX_PARTITION_H

#include "bridge.h"
#include "store_offset.h"
#include "utils/timestamp.h"

typedef enum PartitionState
{
	PARTITION_UNLOADED,			/* its row isn't read yet */
	PARTITION_PAUSED,			/* until somebody changes its row */
	PARTITION_WAITING,			/* for its time (due) to begin */
	PARTITION_CHECKING,			/* for the watermarks, reading nothing */
	PARTITION_ANCHOR,			/* for the record at the anchor */
	PARTITION_READING			/* goes on from "read" */
} PartitionState;

/* Where to begin in a partition that was never read */
typedef enum StartKind
{
	START_EARLIEST,
	START_LATEST,
	START_TIME
} StartKind;

typedef struct StartPosition
{
	StartKind	kind;
	int64		time;			/* milliseconds since 1970 */
} StartPosition;

/* What the row is to become with the next transaction */
typedef struct Progress
{
	bool		dirty;
	bool		active;			/* some was applied since the last verification */
	OffsetState state;
	RecordCounts counts;
	LogAnchor	last;			/* the last record applied */
} Progress;

typedef struct Partition
{
	PartitionState state;
	StartPosition start;
	OffsetRow	row;			/* as the database has it */
	Progress	now;
	Progress	remembered;		/* for a transaction that fails, as is the next */
	OffsetRow	remembered_row;
	int64		remembered_read;
	uint32		remembered_generation;
	int64		read;			/* the first offset not read */
	uint32		generation;		/* what was read in an earlier one is void */
	int64		seen_end;		/* of the log; 0: it wasn't seen */
	int64		gap_from;		/* from here on there is nothing to read, */
	int64		gap_to;			/* until here; 0: none is known */

	/* what was asked of the bridge */
	uint32		tag;			/* of the reading, 0: none */
	bool		first_only;		/* that reading ends with its first record */
	uint32		watch_tag;		/* of the question for watermarks, 0: none */
	int64		watch_next;		/* next, and */
	LogAnchor	candidate;		/* last, when that was asked */
	int64		low;			/* the answer */

	TimestampTz due;			/* when to do something without being asked */
	int			interval;		/* between two verifications, ms */
	int			failures;		/* in a row */
	int			unclear;		/* verifications in a row that told nothing */
	int64		unreadable;		/* the offset that couldn't be read */
	int			unreadable_tries;
} Partition;

/* What an event means for the consumer */
typedef enum PartitionNews
{
	PARTITION_NO_NEWS,
	PARTITION_NEW_RECORD,		/* to be handled, then partition_applied */
	PARTITION_UNREADABLE_RECORD /* at event->offset: to be passed over likewise */
} PartitionNews;

extern Partition *partition_make(const char *topic, int32 number, ReadKind kind);
extern void partition_free(Partition *partition);

/* Takes over its row, which store_offset_read has read: it may begin */
extern void partition_loaded(Partition *partition);

/* Its row has to be read again; what wasn't saved is forgotten */
extern void partition_unload(Partition *partition, Bridge *bridge);

/* Stops it until its due time; never if that is DT_NOEND */
extern void partition_stop(Partition *partition, Bridge *bridge, TimestampTz due);

/* What was asked of a bridge that is gone gets no answer */
extern void partition_forget_bridge(Partition *partition);

/* Looks soon whether the log is the one it was */
extern void partition_verify_soon(Partition *partition);

/*
 * Does what is due for all partitions that the consumer has; lowers *wake to
 * when it wants to be called again.
 */
extern void partitions_serve(Bridge *bridge, TimestampTz now, TimestampTz *wake);

/* Takes an event with one of its tags */
extern PartitionNews partition_event(Partition *partition, Bridge *bridge,
									 const BridgeEvent *event);

/* What a record is known by: its place, its time and all that it says */
extern LogAnchor partition_place(const BridgeRecord *record);

/* Nothing was applied yet, or all of it has to be again: it begins at the offset */
extern void partition_begin_at(Partition *partition, int64 offset);

/* The brokers said where the log ends */
extern void partition_see_end(Partition *partition, int64 end);

/* ---- within the transaction that applies what was read ---- */

/* The record at that place was dealt with: the position is behind it */
extern void partition_applied(Partition *partition, const LogAnchor *place);

/*
 * Where all that was read is applied, the position moves over what isn't shown
 * to readers: marks of transactions, what was aborted.
 */
extern void partition_pass_gap(Partition *partition);

/* It was not: it is read again, and all that follows, after a while */
extern void partition_retry(Partition *partition, Bridge *bridge, int64 offset,
							int attempts, const char *error);

/* Somebody has its row: it begins again from what was saved, a little later */
extern void partition_put_off(Partition *partition, Bridge *bridge);

/*
 * Reads no further until an operator calls outbox.skip; behind which offset is
 * what the hint proposes.
 */
extern void partition_pause(Partition *partition, Bridge *bridge, int64 skip,
							const char *why,...) pg_attribute_printf(4, 5);

/* Remembers its progress, and goes back to it when the transaction has failed */
extern void partition_remember(Partition *partition);
extern void partition_restore(Partition *partition);

/* Its changes were committed */
extern void partition_saved(Partition *partition);

#endif							/* OUTBOX_PARTITION_H */
