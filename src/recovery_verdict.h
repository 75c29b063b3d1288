/*-------------------------------------------------------------------------
 *
 * recovery_verdict.h
 *	  What recovery decides about messages, collected and then written.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RECOVERY_VERDICT_H
#define OUTBOX_RECOVERY_VERDICT_H

#include "recovery.h"

/* What one step found out, to be written at its end */
typedef struct Verdicts
{
	pg_uuid_t  *again;			/* SENT to NEW */
	int			nagain;
	pg_uuid_t  *dead;			/* SENT to DEAD */
	const char **dead_errors;
	int			ndead;
	Delayed    *later;			/* to look at again */
	int			nlater;
	Delayed    *done;			/* rows to delete */
	int			ndone;
} Verdicts;

/* For a step that looks at so many messages */
extern Verdicts *verdicts_make(int max);

/* Judges a SENT message; true if it becomes NEW now */
extern bool verdict_sent(Verdicts *verdicts, const pg_uuid_t *id, const TopicConfig *config,
						 int attempts, TimestampTz updated_at, TimestampTz now);

/* The result of a message that is due is known, and waits for its handler */
extern void verdict_later(Verdicts *verdicts, const Delayed *row);

/* Carries them out; needs SPI */
extern void verdicts_write(Verdicts *verdicts);

#endif							/* OUTBOX_RECOVERY_VERDICT_H */
