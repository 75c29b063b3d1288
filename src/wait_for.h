/*-------------------------------------------------------------------------
 *
 * wait_for.h
 *	  outbox.wait_for: sleeps until a message has its final status.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_WAIT_FOR_H
#define OUTBOX_WAIT_FOR_H

#include "utils/uuid.h"

/* The place of the waiters in shared memory; from the hooks in outbox.c */
extern Size wait_for_shmem_size(void);
extern void wait_for_shmem_init(void);

/* Registers the transaction callback; from _PG_init, once */
extern void wait_for_init(void);

/*
 * This transaction has changed the status of that message: its commit wakes
 * who waits for it.  COMMIT PREPARED doesn't: see wait_for_wake_all.
 */
extern void wait_for_changed(const pg_uuid_t *id);

/*
 * Makes all who wait in this database look again.  What they shall see must be
 * visible to everybody.  Raises no ERROR.
 */
extern void wait_for_wake_all(void);

#endif							/* OUTBOX_WAIT_FOR_H */
