/*-------------------------------------------------------------------------
 *
 * received.h
 *	  What the consumer has read and not applied yet.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RECEIVED_H
#define OUTBOX_RECEIVED_H

#include "partition.h"
#include "result.h"
#include "worker.h"

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

/* ---- the batch of them; of the consumer's main loop only ---- */

/* To be called once */
extern void received_init(void);

/* It takes no more: it has to be applied */
extern bool received_full(void);

/*
 * Applies the batch if the event's record doesn't belong into it.  False if
 * the bridge, and the event with it, is gone then.
 */
extern bool received_make_room(Worker *worker, const BridgeEvent *event);

/* Puts a record into it */
extern void received_take(Partition *partition, const BridgeEvent *event,
						  PartitionNews news);

/*
 * Applies it and saves the positions, in one transaction, or in several where
 * that takes long; where one fails because of what handlers left to its end, in
 * one a record.  It is empty then.
 */
extern void received_apply(Worker *worker);

/* consumer.c: reads the configuration if it may have changed; needs SPI */
extern void consumer_load_config(void);

#endif							/* OUTBOX_RECEIVED_H */
