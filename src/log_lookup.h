/*-------------------------------------------------------------------------
 *
 * log_lookup.h
 *	  Where messages are in the log, and in which state.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_LOG_LOOKUP_H
#define OUTBOX_LOG_LOOKUP_H

#include "store.h"

/*
 * Fills the states of those of the ascending ids that one segment of the log
 * has, and returns how many these are; the others are left as they are.  Under
 * a snapshot of its own, which shows what this transaction changed; in a
 * transaction, takes AccessShareLock on the segment.
 */
extern int	log_lookup(int segment, const pg_uuid_t *ids, int n, MessageState *states);

#endif							/* OUTBOX_LOG_LOOKUP_H */
