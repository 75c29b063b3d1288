/*-------------------------------------------------------------------------
 *
 * result_apply.h
 *	  What results do to the messages they are about.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RESULT_APPLY_H
#define OUTBOX_RESULT_APPLY_H

#include "received.h"

/*
 * Applies results, in the order of their arrival, counts in each one's
 * partition what became of it, and moves that on.  Adds up the messages that
 * were confirmed and failed.  Called in a transaction that worker_begin began,
 * with the offset rows locked.
 *
 * alone: there is but one, and its handler answers for what it left to the end
 * of the transaction; see subscribed.h.
 */
extern void results_apply(Received *received, int n, bool alone,
						  int *confirmed, int *failed);

#endif							/* OUTBOX_RESULT_APPLY_H */
