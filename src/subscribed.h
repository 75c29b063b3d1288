/*-------------------------------------------------------------------------
 *
 * subscribed.h
 *	  Handling the records of subscriptions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SUBSCRIBED_H
#define OUTBOX_SUBSCRIBED_H

#include "received.h"
#include "worker.h"

/*
 * Handles records of one role, in order, with all that follows from it: their
 * replies, the inbox, dead records, progress.  Called in a transaction that
 * worker_begin began, with the offset rows locked.
 *
 * alone: there is but one record, and it answers for what its handler left to
 * the end of the transaction.  Otherwise a failure of that is raised, and the
 * records have to be handled again, each alone.
 */
extern void subscribed_handle(Worker *worker, Received *received, int n, bool alone);

#endif							/* OUTBOX_SUBSCRIBED_H */
