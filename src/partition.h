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
	PARTITION_WAITING,			/* for its time (due) to begin */
	PARTITION_CHECKING,			/* for the watermarks, reading nothing */
	PARTITION_ANCHOR,			/* for the record at the anchor */
	PARTITION_READING			/* goes on from "next" */
} PartitionState;

typedef struct Partition
{
	PartitionState state;
	OffsetRow	row;			/* as the database has it */

	/* what the row is to become with the next transaction */
	bool		dirty;
	int64		next;			/* the first offset not read; -1: the log's start */
	LogAnchor	anchor;
	ResultCounts counts;

	LogAnchor	last;			/* the last record read */
	bool		active;			/* some was read since the last verification */

	/* what was asked of the bridge */
	uint32		tag;			/* of the reading, 0: none */
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

extern Partition *partition_make(const char *topic, int32 number);
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

/* Does what is due; lowers *wake to when it wants to be called again */
extern void partition_serve(Partition *partition, Bridge *bridge, TimestampTz now,
							TimestampTz *wake);

/*
 * Takes an event with one of its tags.  True if it is a record that the
 * consumer has to handle, and save: the position is behind it already.
 */
extern bool partition_event(Partition *partition, Bridge *bridge, const BridgeEvent *event);

/* Its changes were committed */
extern void partition_saved(Partition *partition);

#endif							/* OUTBOX_PARTITION_H */
