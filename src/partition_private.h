/*-------------------------------------------------------------------------
 *
 * partition_private.h
 *	  What partition.c and partition_verify.c share.
 *
 * All of it is the consumer's, outside of transactions, but for the progress
 * that the next transaction saves (Progress.dirty).
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_PARTITION_PRIVATE_H
#define OUTBOX_PARTITION_PRIVATE_H

#include "partition.h"

/* A record that can't be read, or an anchor, is tried so often, so far apart (ms) */
#define PARTITION_TRIES		3
#define PARTITION_TRY_DELAY	500

/*---- partition.c ----*/

/* The time so many milliseconds from now */
extern TimestampTz partition_in_ms(int ms);

/* Ends the reading, if there is one, and begins another at the offset */
extern void partition_read_from(Partition *partition, Bridge *bridge,
								PartitionState state, int64 offset);

/* Does what is due; true if that was something */
extern bool partition_serve(Partition *partition, Bridge *bridge, TimestampTz now);

/* When it wants to be served next */
extern TimestampTz partition_due(const Partition *partition);

/*---- partition_verify.c ----*/

/* Begins a verification; a reading goes on meanwhile */
extern void partition_watch(Partition *partition, Bridge *bridge);

/*
 * True if between the record at the offset and what is read next there is
 * nothing but what isn't shown to readers.
 */
extern bool partition_was_read_last(const Partition *partition, int64 offset);

/* The answer to partition_watch */
extern void partition_take_watermarks(Partition *partition, Bridge *bridge,
									  const BridgeEvent *event);

/* The first record that was found where the anchor should be, or behind it */
extern void partition_take_anchor(Partition *partition, Bridge *bridge,
								  const BridgeRecord *record);

/* There is no record where the anchor was, but the log goes on */
extern void partition_anchor_gone(Partition *partition, Bridge *bridge);

/* Nothing came where the anchor was; that may pass, but not for ever */
extern void partition_unclear(Partition *partition, Bridge *bridge, const char *why);

#endif							/* OUTBOX_PARTITION_PRIVATE_H */
