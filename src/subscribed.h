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
 * replies, the inbox, dead records, progress.  Returns how many it has dealt
 * with, which may be fewer if they take long: a transaction must end.  Called in a transaction that
 * worker_begin began, with the offset rows locked.
 *
 * alone: there is but one record, and it answers for what its handler left to
 * the end of the transaction.  Otherwise a failure of that is raised, and the
 * records have to be handled again, each alone.
 */
extern int	subscribed_handle(Worker *worker, Received *received, int n, bool alone);

/* Something else than its handler failed for a record that was alone */
extern void subscribed_failed(Worker *worker, Received *received, const ErrorData *error);

#endif							/* OUTBOX_SUBSCRIBED_H */
