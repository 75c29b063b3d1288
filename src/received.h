/*-------------------------------------------------------------------------
 *
 * received.h
 *	  A record that was read and isn't applied yet.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RECEIVED_H
#define OUTBOX_RECEIVED_H

#include "partition.h"
#include "result.h"

typedef struct Received
{
	Partition  *partition;
	uint32		generation;		/* of the partition, when it was read */
	LogAnchor	place;			/* ANCHOR_NONE: it couldn't be read */

	/* from a result topic */
	const char *problem;		/* why it is no result; NULL if it is one */
	MessageResult result;

	/* from a subscribed topic */
	BridgeRecord record;
} Received;

/* The partition has gone back since: it will be read again */
static inline bool
received_is_void(const Received *received)
{
	return received->generation != received->partition->generation;
}

#endif							/* OUTBOX_RECEIVED_H */
