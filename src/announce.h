/*-------------------------------------------------------------------------
 *
 * announce.h
 *	  Tells the publish sweep which transactions may still commit messages
 *	  below its position, and wakes it when they end.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ANNOUNCE_H
#define OUTBOX_ANNOUNCE_H

#include "message_id.h"
#include "outbox.h"

/* Registers the transaction callbacks; from _PG_init, once */
extern void announce_init(void);

/*
 * Announces that this transaction will write messages.  To be called before
 * it takes its first id; later calls cost nothing.  Returns the clock it
 * announced.  Raises ERROR like outbox_my_database.
 */
extern MessageClock announce_transaction(void);

/*
 * Remembers an id that was taken, for the range of a prepared transaction, and
 * its lane, for whom to wake
 */
extern void announce_id(const pg_uuid_t *id, int lane);

/*
 * Makes the commit of this transaction wake the workers of this database, and
 * all who wait for a message
 */
extern void announce_wake_at_commit(void);

/* COMMIT PREPARED has ended: raises the generations, wakes the publishers */
extern void announce_wake_now(void);

/* The first publisher has something to do earlier than it thought */
extern void announce_wake_first_publisher(DatabaseSlot *slot);

/* A transaction that may commit messages with ids at or above its clock */
typedef struct OpenTransaction
{
	int			slot;			/* in OutboxShared.announcements */
	MessageClock clock;
	TransactionId xid;			/* invalid: it ended meanwhile */
	pid_t		pid;
	TimestampTz xact_start;
} OpenTransaction;

/*
 * Reads the announcements of this database into an array of
 * OutboxShared.nannouncements elements; returns how many.  Full barrier
 * before and after.  Called by the sweep between reading the clock and taking
 * its snapshot.
 */
extern int	announce_read(OpenTransaction *open);

#endif							/* OUTBOX_ANNOUNCE_H */
