/*-------------------------------------------------------------------------
 *
 * result_apply.h
 *	  What results do to the messages they are about.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RESULT_APPLY_H
#define OUTBOX_RESULT_APPLY_H

#include "result.h"
#include "store_offset.h"

/* A result as it arrived */
typedef struct ReceivedResult
{
	MessageResult result;
	const char *topic;			/* that it came on */
	ResultCounts *counts;		/* of its partition */
} ReceivedResult;

/*
 * Applies results, in the order of their arrival, and counts in each one's
 * counts what became of it.  Adds up the messages that were confirmed and
 * failed.  Called in a transaction that worker_begin began, with the offset
 * rows locked.
 */
extern void results_apply(ReceivedResult *results, int n, int *confirmed, int *failed);

#endif							/* OUTBOX_RESULT_APPLY_H */
