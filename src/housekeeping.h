/*-------------------------------------------------------------------------
 *
 * housekeeping.h
 *	  What the first publisher does besides publishing: retention.
 *
 * All of it is called by publishers, between passes and not in a transaction.
 * Whatever goes wrong in it is logged and tried again later, and
 * never keeps a message from going out.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_HOUSEKEEPING_H
#define OUTBOX_HOUSEKEEPING_H

#include "worker.h"

/*
 * Does the steps that are due, each in a bounded transaction of its own, if
 * this is the first publisher.  The brokers needn't be there.
 */
extern void housekeeping_turn(Worker *worker);

/* The same, then waits for so many milliseconds or until the next step is due */
extern void housekeeping_wait(Worker *worker, long timeout);

/* When the next step is due; DT_NOEND for all but the first publisher */
extern TimestampTz housekeeping_next(const Worker *worker);

/*
 * A task of it.  step does a bounded piece, in a transaction that worker_begin
 * began, and returns when the next one is due: now, if there is more at once.
 * Then committed is called, or after an ERROR failed.  Either may be NULL.
 */
typedef struct HousekeepingTask
{
	const char *name;
	TimestampTz (*step) (TimestampTz now);
	void		(*committed) (void);
	void		(*failed) (void);
} HousekeepingTask;

#endif							/* OUTBOX_HOUSEKEEPING_H */
