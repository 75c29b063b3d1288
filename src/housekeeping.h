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

#endif							/* OUTBOX_HOUSEKEEPING_H */
