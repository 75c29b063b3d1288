/*-------------------------------------------------------------------------
 *
 * recovery.h
 *	  Messages with a time of their own: no result yet, sent again by hand.
 *
 * The recovery sweep reads the log behind the publish sweep, with a cursor
 * for each distinct result_timeout, and looks once at what was SENT that long
 * ago.  What isn't due then, or is published again later, has a row in
 * outbox.delayed.  The first publisher does it for all; the others only say
 * what to expect.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RECOVERY_H
#define OUTBOX_RECOVERY_H

#include "log_scan.h"
#include "sweep.h"
#include "topic_config.h"

/* A row of outbox.delayed */
typedef struct Delayed
{
	TimestampTz due_at;
	pg_uuid_t	id;
} Delayed;

/*
 * One bounded step: turns what is due from SENT to NEW or DEAD.  Needs SPI;
 * for the first publisher only.  True if there is more to do at once.
 */
extern bool recovery_step(Sweep *sweep);

/* topic_config_refresh read something new; needs SPI */
extern void recovery_topics_changed(void);

/* When the next step is due; DT_NOEND if there is nothing to wait for */
extern TimestampTz recovery_next(void);

/*
 * A delayed message is due, but its topic is held: from now on it is one like
 * any other of that topic.  Needs SPI.
 */
extern void recovery_give_lane(const LogRow *row);

/* A step is due now: somebody may have written to outbox.delayed */
extern void recovery_wake(void);

/* Rows of outbox.delayed from that time on may have become visible */
extern void recovery_go_back(TimestampTz due_at);

/* A message of such a topic became SENT: a step is due when its time is over */
extern void recovery_expect(const TopicConfig *config);

/* NEW messages that outbox.delayed wants published; valid until the next step */
extern const Delayed *recovery_ready(int *n);

/* These need no row any more; needs SPI */
extern void recovery_forget(const Delayed *rows, int n);

/* Looks at these again at their time; needs SPI */
extern void recovery_schedule(const Delayed *rows, int n);

/* The transaction that may have scheduled something has committed */
extern void recovery_committed(void);

#endif							/* OUTBOX_RECOVERY_H */
