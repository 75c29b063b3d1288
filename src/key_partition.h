/*-------------------------------------------------------------------------
 *
 * key_partition.h
 *	  Which partition of its topic a record goes to.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_KEY_PARTITION_H
#define OUTBOX_KEY_PARTITION_H

/*
 * The partition, from 0, of a record whose key has these bytes, in a topic of
 * so many (1 or more): where Java's producer and the bridge put it.
 */
extern int32 key_partition(const char *key, int len, int32 partitions);

#endif							/* OUTBOX_KEY_PARTITION_H */
