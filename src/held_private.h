/*-------------------------------------------------------------------------
 *
 * held_private.h
 *	  What held.c, held_try.c and held_table.c share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_HELD_PRIVATE_H
#define OUTBOX_HELD_PRIVATE_H

#include "held.h"

/* All marks, also the released ones that the table still has */
extern dlist_head held_marks;

/* A reason as a constant; raises ERROR for what is none */
extern const char *held_reason(const char *reason);

/*
 * The mark of a partition, or of the topic (-1, or a number that contradicts
 * what is known): that takes the place of those of its partitions, and it is
 * the caller's to have it wait.  A new one is WAITING, above every message.
 */
extern Held *held_enter(const char *topic, int32 partition, int32 partitions,
						bool *found);

/* One that failed waits, longer than the last time */
extern void held_wait_longer(Held *held);

/* Forgets all marks, whatever the table says */
extern void held_forget_all(void);

/* Forgets a mark that the table doesn't have any more */
extern void held_forget(Held *held);

#endif							/* OUTBOX_HELD_PRIVATE_H */
