/*-------------------------------------------------------------------------
 *
 * dead_replay.h
 *	  Handling dead records again, after outbox.replay.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_DEAD_REPLAY_H
#define OUTBOX_DEAD_REPLAY_H

#include "worker.h"

/* There may be others than were known */
extern void dead_replays_distrust(void);

/* When the next one is due, as far as is known; DT_NOEND: never */
extern TimestampTz dead_replays_due(void);

/* Handles one that is due, in a transaction of its own */
extern void dead_replays_step(Worker *worker);

#endif							/* OUTBOX_DEAD_REPLAY_H */
